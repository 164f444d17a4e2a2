"""Steps of a start that have no process of their own to watch: look meanwhile whether they move, and end them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from flexinfer.oci import Digest
from flexinfer.store import Checkout, Errand, Store

T = TypeVar("T")

_EVERY_S = 0.5
# Between two looks. Hashing reads a hundred times that; what the loop reads for itself is far below it.
_MOVED_BYTES = 1024 * 1024
_OWN_IO = Path("/proc/self/io")


async def with_ticks(
    work: Awaitable[T], tick: Callable[[], None], *, every_s: float = _EVERY_S
) -> T:
    """Await *work* and call *tick* again and again until it is done, the first time after *every_s*."""
    ticking = asyncio.create_task(_ticks(tick, every_s))
    try:
        return await work
    finally:
        # Not awaited: a cancellation of ours that came then would be lost in its.
        ticking.cancel()


async def checked_out(store: Store, digest: Digest, errand: Errand) -> Checkout:
    """Return the lease. Cancelled, it gives *errand* up and waits for nobody: a lease that comes late is given back.

    A thread of its own works: it may wait for somebody else's hash of 40 GB, and nobody shall wait for it.
    """
    threads = ThreadPoolExecutor(1, thread_name_prefix="checkout")
    work = threads.submit(store.checkout, digest, errand=errand)
    threads.shutdown(wait=False)
    try:
        return await asyncio.wrap_future(work)
    except asyncio.CancelledError:
        errand.give_up()
        work.add_done_callback(_give_back)
        raise


class OwnReading:
    """Whether this process reads much: it verifies, in a thread, bytes that were touched."""

    def __init__(self, io: Path = _OWN_IO) -> None:
        self._io = io
        self._bytes = self._read()

    def moved(self) -> bool:
        """Return whether it read a lot since the last call. Where the system does not tell, it did."""
        before, self._bytes = self._bytes, self._read()
        if before is None or self._bytes is None:
            return True
        return self._bytes - before >= _MOVED_BYTES

    def _read(self) -> int | None:
        try:
            lines = self._io.read_text("ascii").splitlines()
        except OSError:
            return None
        return next((int(line[6:]) for line in lines if line.startswith("rchar:")), None)


def _give_back(work: Future[Checkout]) -> None:
    if not work.cancelled() and work.exception() is None:
        work.result().close()


async def _ticks(tick: Callable[[], None], every_s: float) -> None:
    while True:
        await asyncio.sleep(every_s)
        tick()
