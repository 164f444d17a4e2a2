"""The operator's end of the unix socket: snapshots out, leases in. One slow or broken router never holds another.

A router gets the newest snapshot, not each one: what it has not taken in yet is replaced by what is newer.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from flexinfer import unixsocket
from flexinfer.errors import InvalidInput
from flexinfer.fleet import DemandLease, FleetSnapshot, parse_line, snapshot_to_line
from flexinfer.log import get_logger

log = get_logger(__name__)

MAX_ROUTERS = 256
# A lease is small; the fleet's own limit (MAX_LINE) is for snapshots.
MAX_LEASE_BYTES = 256 * 1024
_READ_BYTES = 64 * 1024
_WRITE_TIMEOUT_S = 10.0


class Ear(Protocol):
    """Who hears what routers say. Called in the event loop."""

    def router_connected(self, connection: int) -> None: ...

    def router_said(self, connection: int, lease: DemandLease) -> None: ...

    def router_left(self, connection: int) -> None: ...


class RouterServer:
    """Serves routers at *path*. *newest* gives the snapshot for one that has just come."""

    def __init__(self, path: Path, ear: Ear, newest: Callable[[], FleetSnapshot | None]) -> None:
        self._path = path
        self._ear = ear
        self._newest = newest
        self._server: asyncio.Server | None = None
        self._outboxes: dict[int, _Outbox] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._numbers = itertools.count(1)

    async def start(self) -> None:
        """Begin to serve. Raises as `unixsocket.serve`."""
        self._server = await unixsocket.serve(self._path, self._accept)

    async def close(self) -> None:
        """Take no more routers and leave those that are here."""
        if self._server is not None:
            self._server.close()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._server is not None:
            await self._server.wait_closed()
            self._path.unlink(missing_ok=True)

    def send(self, snapshot: FleetSnapshot) -> None:
        """Have *snapshot* sent to every router."""
        if self._outboxes:
            line = snapshot_to_line(snapshot)
            for outbox in self._outboxes.values():
                outbox.put(line)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            if len(self._outboxes) < MAX_ROUTERS:
                await self._converse(reader, writer)
            else:
                log.warning("router_refused", limit=MAX_ROUTERS)
        except asyncio.CancelledError:
            pass  # we are closing; the server that made this task does not await it
        finally:
            self._tasks.discard(task)
            writer.close()
            with suppress(OSError, asyncio.CancelledError):
                await writer.wait_closed()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = next(self._numbers)
        outbox = _Outbox()
        self._outboxes[connection] = outbox
        self._ear.router_connected(connection)
        newest = self._newest()
        if newest is not None:
            outbox.put(snapshot_to_line(newest))
        log.info("router_connected", connection=connection)
        tasks = [
            asyncio.ensure_future(self._hear(connection, reader)),
            asyncio.ensure_future(outbox.drain(writer)),
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
            del self._outboxes[connection]
            self._ear.router_left(connection)
        why = [str(e) or type(e).__name__ for e in ended if isinstance(e, Exception)]
        log.info("router_left", connection=connection, error="; ".join(why))

    async def _hear(self, connection: int, reader: asyncio.StreamReader) -> None:
        buffer = bytearray()
        while data := await reader.read(_READ_BYTES):
            buffer += data
            *lines, rest = buffer.split(b"\n")
            if len(rest) > MAX_LEASE_BYTES:
                raise InvalidInput(
                    f"a lease of more than {MAX_LEASE_BYTES} bytes", code="fleet_message"
                )
            buffer = bytearray(rest)
            for line in lines:
                said = parse_line(bytes(line))
                if not isinstance(said, DemandLease):
                    raise InvalidInput("expected a lease from a router", code="fleet_message")
                self._ear.router_said(connection, said)


class _Outbox:
    """The one line that a router shall get next."""

    def __init__(self) -> None:
        self._line = b""
        self._has_line = asyncio.Event()

    def put(self, line: bytes) -> None:
        self._line = line
        self._has_line.set()

    async def drain(self, writer: asyncio.StreamWriter) -> None:
        """Write until the router is gone or takes nothing for too long."""
        while True:
            await self._has_line.wait()
            self._has_line.clear()
            writer.write(self._line)
            async with asyncio.timeout(_WRITE_TIMEOUT_S):
                await writer.drain()
