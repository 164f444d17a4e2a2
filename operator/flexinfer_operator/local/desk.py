"""The ledger as the event loop sees it: what is known is in memory, what is written waits for one thread.

Writes of one Model's state replace one another while they wait, so the queue is as long as there are Models; of
starts the newest MAX_STARTS wait. A database that cannot be opened or written (locked, a full disk) stops nothing:
it is said once, what is in memory holds, and the writing is tried again with growing pauses.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar, TypeVarTuple

from flexinfer.clock import Clock
from flexinfer.errors import ResourceExhausted
from flexinfer.log import get_logger
from flexinfer.resources.model import Condition, Model
from flexinfer_operator.local.ledger import ColdStartRecord, KnownModel, Ledger, machine_name
from flexinfer_operator.plan.status import instant
from flexinfer_operator.plan.view import ColdStarts

log = get_logger(__name__)

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

MAX_STARTS = 256
# Between two tries to write.
_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Start:
    """Something measured of a start that is not written yet."""

    digest: str
    write: Callable[[Ledger], ColdStarts]
    then: Callable[[str], None]


class Desk:
    """See the module. For one event loop."""

    def __init__(self, path: Path, clock: Clock) -> None:
        self._path = path
        self._clock = clock
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ledger")
        self._ledger: Ledger | None = None
        self._models: dict[str, KnownModel] = {}
        self._estimates: dict[str, ColdStarts] = {}
        self._waiting: dict[str, KnownModel | None] = {}
        self._starts: deque[_Start] = deque(maxlen=MAX_STARTS)
        self._writer: asyncio.Task[None] | None = None
        self._closing = asyncio.Event()
        self._is_in_trouble = False

    async def open(self) -> None:
        """Read what is remembered; where that is impossible now, begin without it."""
        try:
            self._models, self._estimates = await self._read()
        except ResourceExhausted as error:
            self._complain(error)
            self._write()

    async def close(self) -> None:
        """Write what waits, or give it up, and close the database. Bounded by two tries."""
        self._closing.set()
        if self._writer is not None:
            await asyncio.gather(self._writer, return_exceptions=True)
        if self._ledger is not None:
            await self._in_thread(self._ledger.close)
            self._ledger = None
        self._thread.shutdown(wait=True)

    def names(self) -> frozenset[str]:
        return frozenset(self._models)

    def known(self, name: str) -> KnownModel | None:
        return self._models.get(name)

    def last_good(self, file: str) -> Model | None:
        """Return the Model that the file of this name held when it was last good. For any thread."""
        found = [known.model for known in list(self._models.values()) if known.file == file]
        return found[0] if len(found) == 1 else None

    def file_of(self, name: str) -> str:
        """Return the name of the file that defined Model *name* last; empty: it is not known. For any thread."""
        known = self._models.get(name)
        return "" if known is None else known.file

    def estimate(self, digest: str) -> ColdStarts | None:
        """Return what starts of *digest* took here; None: there was none."""
        return self._estimates.get(digest)

    def save(self, name: str, known: KnownModel) -> None:
        self._models[name] = known
        self._waiting[name] = known
        self._write()

    def forget(self, name: str) -> None:
        self._models.pop(name, None)
        self._waiting[name] = None
        self._write()

    def tidy(self, names: Collection[str], *, is_whole: bool) -> None:
        """Forget what was seen of Models that are not among *names*: they are gone where *is_whole*, else their
        files may be those that nobody can read now, and only their history is kept."""
        for name in self.names() - set(names):
            if is_whole:
                self.forget(name)
            elif self._models[name].status is not None:
                self.save(name, replace(self._models[name], status=None))

    def stopped(self, name: str) -> None:
        """Let the status say that nothing runs: the operator has ended its engines."""
        known = self._models.get(name)
        if known is None or known.status is None or known.status.phase not in ("Ready", "Loading"):
            return
        stamp = instant(self._clock.unix_s())
        conditions = tuple(
            Condition(
                type=one.type,
                status="False",
                reason="OperatorStopped",
                last_transition_time=stamp,
            )
            if one.type in ("Loaded", "Ready")
            else one
            for one in known.status.conditions
        )
        status = known.status.model_copy(
            update={
                "phase": "Idle",
                "replicas": 0,
                "conditions": conditions,
                "loading_substage": "",
                "loading_progress_at": "",
            }
        )
        self.save(name, replace(known, status=status))

    def add(self, start: ColdStartRecord, *, then: Callable[[str], None]) -> None:
        """Remember one start; *then* is told its digest when the estimate is new."""
        self._measure(start.digest, lambda ledger: ledger.add(start), then)

    def first_token(
        self, replica: str, digest: str, seconds: float, *, then: Callable[[str], None]
    ) -> None:
        """Add to the start of *replica* what a router measured; *then* is told as in `add`."""
        self._measure(digest, lambda ledger: ledger.first_token(replica, digest, seconds), then)

    def _measure(
        self, digest: str, write: Callable[[Ledger], ColdStarts], then: Callable[[str], None]
    ) -> None:
        self._starts.append(_Start(digest=digest, write=write, then=then))
        self._write()

    def _write(self) -> None:
        """Have what waits written, by the one task that writes."""
        if self._writer is None and not self._closing.is_set():
            self._writer = asyncio.get_running_loop().create_task(self._written())

    async def _written(self) -> None:
        pause_s = _FIRST_PAUSE_S
        try:
            while self._waiting or self._starts or self._ledger is None:
                is_last_try = self._closing.is_set()
                try:
                    await self._write_all()
                except ResourceExhausted as error:
                    self._complain(error)
                    if is_last_try:
                        return
                    with suppress(TimeoutError):
                        async with asyncio.timeout(pause_s):
                            await self._closing.wait()
                    pause_s = min(_LONGEST_PAUSE_S, pause_s * 2)
                else:
                    pause_s = _FIRST_PAUSE_S
                    self._recovered()
        finally:
            self._writer = None

    async def _write_all(self) -> None:
        if self._ledger is None:
            models, estimates = await self._read()
            # What was seen and forgotten since is newer.
            forgotten = {name for name, known in self._waiting.items() if known is None}
            kept = {name: known for name, known in models.items() if name not in forgotten}
            self._models = {**kept, **self._models}
            self._estimates = {**estimates, **self._estimates}
        assert self._ledger is not None
        if self._waiting:
            # What comes while these are written waits for the next round.
            batch = dict(self._waiting)
            try:
                await self._in_thread(self._ledger.save_all, batch)
            except ResourceExhausted:
                raise
            except Exception:
                await self._save_each(self._ledger, batch)
            for name, known in batch.items():
                if self._waiting.get(name) is known:
                    del self._waiting[name]
        if self._starts:
            start = self._starts[0]
            try:
                self._estimates[start.digest] = await self._in_thread(start.write, self._ledger)
            except ResourceExhausted:
                raise
            except Exception as error:
                log.error("start_not_remembered", digest=start.digest, exc_info=error)
            if self._starts and self._starts[0] is start:  # else the newest pushed it out
                self._starts.popleft()
            start.then(start.digest)

    async def _save_each(self, ledger: Ledger, batch: Mapping[str, KnownModel | None]) -> None:
        """Save what can be saved: one that breaks the code does not hold the others."""
        for name, known in batch.items():
            try:
                await self._in_thread(ledger.save_all, {name: known})
            except ResourceExhausted:
                raise
            except Exception as error:
                log.error("model_not_remembered", model=name, exc_info=error)

    async def _read(self) -> tuple[dict[str, KnownModel], dict[str, ColdStarts]]:
        def read() -> tuple[Ledger, dict[str, KnownModel], dict[str, ColdStarts]]:
            ledger = Ledger(self._path, machine=machine_name())
            try:
                return ledger, ledger.models(), ledger.estimates()
            except BaseException:
                ledger.close()
                raise

        self._ledger, models, estimates = await self._in_thread(read)
        return models, estimates

    async def _in_thread(self, work: Callable[[*Ts], T], *arguments: *Ts) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, work, *arguments)

    def _complain(self, error: ResourceExhausted) -> None:
        if not self._is_in_trouble:
            self._is_in_trouble = True
            human = (
                f"what is seen of Models is kept in memory until it can be written: {error.message}"
            )
            log.error("state_db_unavailable", error=error.message, human=human)

    def _recovered(self) -> None:
        if self._is_in_trouble:
            self._is_in_trouble = False
            log.info("state_db_available", human=f"{self._path} is written again")
