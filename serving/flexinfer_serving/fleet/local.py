"""The fleet that this machine's operator runs, over its unix socket. Source and sink in one connection.

Lines as in `flexinfer.fleet`. A lost connection is tried again with growing pauses, for ever; meanwhile the last
snapshot holds, and the newest lease of each Model waits for the next connection.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from flexinfer import unixsocket
from flexinfer.errors import InvalidInput
from flexinfer.fleet import MAX_LINE, DemandLease, FleetSnapshot, lease_to_line, parse_line
from flexinfer.log import get_logger
from flexinfer_serving.fleet import FleetListener

log = get_logger(__name__)

_FIRST_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 2.0
_WRITE_TIMEOUT_S = 5.0
# What may gather while the operator is away: more replicas than that came and went unheard anyway.
_MAX_FIRST_TOKENS = 256


class LocalFleet:
    """See the module. *jitter* gives a factor for each pause, so that routers do not come back in step."""

    def __init__(
        self, socket: Path, *, jitter: Callable[[], float] = lambda: random.uniform(0.5, 1.0)
    ) -> None:
        self._socket = socket
        self._jitter = jitter
        self._pending: dict[str, DemandLease] = {}  # one per Model: bounded by the fleet
        self._has_pending = asyncio.Event()

    def renew(self, lease: DemandLease) -> None:
        self._keep(self._pending.get(lease.model), lease)

    def _keep(self, older: DemandLease | None, newer: DemandLease) -> None:
        """Let *newer* wait, with what *older* was to tell once."""
        if older is not None and older.first_token_s:
            both = {**older.first_token_s, **newer.first_token_s}
            newest = dict(tuple(both.items())[-_MAX_FIRST_TOKENS:])
            newer = replace(newer, first_token_s=newest)
        self._pending[newer.model] = newer
        self._has_pending.set()

    async def run(self, listener: FleetListener) -> None:
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                reader, writer = await unixsocket.connect(self._socket)
            except OSError as error:
                log.debug("operator_unreachable", error=str(error))
            else:
                if await self._converse(reader, writer, listener):
                    pause_s = _FIRST_PAUSE_S
            await asyncio.sleep(pause_s * self._jitter())
            pause_s = min(_LONGEST_PAUSE_S, pause_s * 2)

    async def _converse(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, listener: FleetListener
    ) -> bool:
        """Read and write until one side ends. Return whether a snapshot came."""
        heard = _Heard(listener)
        tasks = [
            asyncio.ensure_future(self._listen(reader, heard)),
            asyncio.ensure_future(self._speak(writer)),
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            ended = await asyncio.gather(*tasks, return_exceptions=True)
            if heard.generation is not None:
                listener.connected(False)
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()
        for error in ended:
            if isinstance(error, (OSError, TimeoutError, InvalidInput)):
                log.warning("operator_connection_lost", error=str(error))
            elif isinstance(error, Exception):
                raise error
        return heard.generation is not None

    async def _listen(self, reader: asyncio.StreamReader, heard: _Heard) -> None:
        buffer = bytearray()
        while data := await reader.read(262144):
            searched = len(buffer)
            buffer += data
            while (end := buffer.find(b"\n", searched)) >= 0:
                heard.line(bytes(buffer[:end]))
                del buffer[: end + 1]
                searched = 0
            if len(buffer) > MAX_LINE:
                raise InvalidInput(
                    f"fleet message of more than {MAX_LINE} bytes", code="fleet_message"
                )

    async def _speak(self, writer: asyncio.StreamWriter) -> None:
        while True:
            await self._has_pending.wait()
            self._has_pending.clear()
            while self._pending:
                model = next(iter(self._pending))
                lease = self._pending.pop(model)
                try:
                    writer.write(lease_to_line(lease))
                    async with asyncio.timeout(_WRITE_TIMEOUT_S):
                        await writer.drain()
                except BaseException:
                    self._keep(lease, self._pending.get(model, lease))
                    raise


class _Heard:
    """Pass each newer snapshot of one connection on. A new operator may count from the start again."""

    def __init__(self, listener: FleetListener) -> None:
        self._listener = listener
        self.generation: int | None = None

    def line(self, line: bytes) -> None:
        found = parse_line(line)
        if not isinstance(found, FleetSnapshot):
            raise InvalidInput("expected a snapshot from the operator", code="fleet_message")
        if self.generation is not None and found.generation <= self.generation:
            return
        if self.generation is None:
            self._listener.connected(True)
        self.generation = found.generation
        self._listener.applied(found)
