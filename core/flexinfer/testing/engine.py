"""An engine on a script: a raw TCP server that answers, lies, breaks off, and logs what it saw.

It shows what no well-behaved server can be told to do: no headers, half a chunk, a reset, a clean end in the wrong
place. Its log is the truth that tests ask: how many requests, with which headers, closed when.

    async with ScriptedEngine(stream_of("a", "b")) as engine:
        ...
        assert engine.requests[0].headers["authorization"] == "Bearer k"
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar

from flexinfer.engine import (
    Cause,
    Endpoint,
    Engine,
    EngineArtifact,
    EngineError,
    Launch,
    Limits,
    Probe,
    Problem,
    Resources,
    Substage,
)


@dataclass(slots=True, eq=False)
class Seen:
    """One request as the engine saw it."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    closed: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the router's side of the connection is gone, or the answer is complete."""
    left_early: bool = False
    """The router closed before the script was through."""

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Wire:
    """What a script writes to."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.is_open = True

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def head(self, status: int, *headers: tuple[str, str]) -> None:
        lines = [f"HTTP/1.1 {status} Scripted", *(f"{name}: {value}" for name, value in headers)]
        await self.send("\r\n".join([*lines, "", ""]).encode())

    async def chunk(self, data: bytes) -> None:
        """Send one chunk of a chunked body; b"" ends it."""
        await self.send(b"%x\r\n%s\r\n" % (len(data), data))

    async def whole(self, status: int, body: bytes, kind: str = "application/json") -> None:
        await self.head(status, ("content-type", kind), ("content-length", str(len(body))))
        await self.send(body)

    def reset(self) -> None:
        """End with RST, as a killed process with unread input does."""
        sock: socket.socket = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()
        self.is_open = False

    def close(self) -> None:
        """End with FIN."""
        self.writer.close()
        self.is_open = False


class _Protocol(asyncio.StreamReaderProtocol):
    """Knows when the other side has left, also while nobody reads."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.left = asyncio.Event()

    def eof_received(self) -> bool | None:
        self.left.set()
        return super().eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self.left.set()
        super().connection_lost(exc)


Script = Callable[[Seen, Wire], Awaitable[None]]


class ScriptedEngine:
    """Answers each request with *script*, and `GET` with 200 unless *probe_status* says otherwise."""

    def __init__(self, script: Script, *, probe_status: int = 200) -> None:
        self.script = script
        self.probe_status = probe_status
        self.requests: list[Seen] = []
        self.probes = 0
        self.probe_paths: set[str] = set()
        self.connections = 0
        self.open_connections = 0
        self.arrived = asyncio.Event()
        """Set at each request; clear it to wait for the next one."""
        self.port = 0
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def __aenter__(self) -> ScriptedEngine:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()

    async def start(self, port: int = 0) -> None:
        loop = asyncio.get_running_loop()

        def protocol() -> _Protocol:
            return _Protocol(asyncio.StreamReader(loop=loop), self._accept, loop=loop)

        self._server = await loop.create_server(protocol, "127.0.0.1", port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Stop listening and reset what is open, as a kill does."""
        assert self._server is not None
        self._server.close()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        self.open_connections += 1
        wire = Wire(reader, writer)
        try:
            while wire.is_open and await self._exchange(wire):
                continue
        except (OSError, asyncio.IncompleteReadError):
            pass  # the router left: that is in the log
        except asyncio.CancelledError:
            wire.reset()
        finally:
            self.open_connections -= 1
            self._tasks.discard(task)
            writer.close()
            with suppress(OSError, asyncio.CancelledError):
                await writer.wait_closed()

    async def _exchange(self, wire: Wire) -> bool:
        try:
            head = await wire.reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            return False
        seen = await _read(head, wire.reader)
        if seen.method == "GET":
            self.probes += 1
            self.probe_paths.add(seen.path)
            await wire.whole(self.probe_status, b"{}")
            return True
        self.requests.append(seen)
        self.arrived.set()
        script = asyncio.ensure_future(self.script(seen, wire))
        protocol = wire.writer.transport.get_protocol()
        assert isinstance(protocol, _Protocol)
        left = asyncio.ensure_future(protocol.left.wait())
        try:
            await asyncio.wait({script, left}, return_when=asyncio.FIRST_COMPLETED)
            seen.left_early = not script.done() or script.exception() is not None
            if script.done():
                script.result()
            return script.done() and wire.is_open and not left.done()
        finally:
            script.cancel()
            left.cancel()
            await asyncio.gather(script, left, return_exceptions=True)
            seen.closed.set()


async def _read(head: bytes, reader: asyncio.StreamReader) -> Seen:
    first, *lines = head.decode("latin-1").split("\r\n")
    method, path, _ = first.split(" ", 2)
    headers = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if colon:
            headers[name.lower()] = value.strip()
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return Seen(method=method, path=path, headers=headers, body=body)


# Scripts ------------------------------------------------------------------------------------------------------


def event(text: str) -> bytes:
    """Return one chat chunk as an event."""
    chunk = {
        "id": "c1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "m",
        "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}],
    }
    return b"data: " + json.dumps(chunk, separators=(",", ":")).encode() + b"\n\n"


def chat(text: str) -> bytes:
    """Return a whole chat answer."""
    message = {"role": "assistant", "content": text}
    return json.dumps(
        {
            "id": "c1",
            "object": "chat.completion",
            "created": 1,
            "model": "m",
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
        }
    ).encode()


STREAM_HEAD = (("content-type", "text/event-stream"), ("transfer-encoding", "chunked"))


def answers(text: str = "hello") -> Script:
    """Answer chats, completions and embeddings, streamed where that was asked."""

    async def script(seen: Seen, wire: Wire) -> None:
        wanted = seen.json
        if seen.path.endswith("embeddings"):
            count = len(wanted["input"]) if isinstance(wanted["input"], list) else 1
            data = [
                {"object": "embedding", "index": index, "embedding": [0.5, 0.25]}
                for index in range(count)
            ]
            usage = {"prompt_tokens": 1, "total_tokens": 1}
            body = {"object": "list", "data": data, "model": "m", "usage": usage}
            await wire.whole(200, json.dumps(body).encode())
        elif wanted.get("stream"):
            await stream_of(*text)(seen, wire)
        else:
            await wire.whole(200, chat(text))

    return script


def stream_of(*parts: str) -> Script:
    """Stream *parts* and `[DONE]`."""

    async def script(seen: Seen, wire: Wire) -> None:
        await wire.head(200, *STREAM_HEAD)
        for part in parts:
            await wire.chunk(event(part))
        await wire.chunk(b"data: [DONE]\n\n")
        await wire.chunk(b"")

    return script


def status(code: int, body: bytes = b'{"error":{"code":503,"message":"busy"}}') -> Script:
    async def script(seen: Seen, wire: Wire) -> None:
        await wire.whole(code, body)

    return script


def raw(*pieces: bytes, end: str = "close") -> Script:
    """Send *pieces* as they are, then `close`, `reset`, or `hold` until the router leaves."""

    async def script(seen: Seen, wire: Wire) -> None:
        for piece in pieces:
            await wire.send(piece)
        if end == "close":
            wire.close()
        elif end == "reset":
            wire.reset()
        else:
            await asyncio.Event().wait()

    return script


class PlainEngine(Engine):
    """A plug-in that says the least an engine must; its program is a `ScriptedEngine`."""

    name: ClassVar[str] = "plain"
    tool: ClassVar[str] = "plain"
    formats: ClassVar[frozenset[str]] = frozenset({"gguf"})

    def problems(self, config: Mapping[str, Any]) -> tuple[Problem, ...]:
        return ()

    def limits(self, config: Mapping[str, Any], artifact: EngineArtifact | None = None) -> Limits:
        return Limits(context_tokens=4096, slots=4)

    def endpoints(self, config: Mapping[str, Any], artifact: EngineArtifact) -> frozenset[Endpoint]:
        return frozenset(Endpoint)

    def launch(
        self, config: Mapping[str, Any], artifact: EngineArtifact, resources: Resources
    ) -> Launch:
        probe = Probe(path="/health")
        return Launch(tool=self.tool, program=Path("plain"), argv=("{python}",), readiness=probe)

    def path(self, endpoint: Endpoint) -> str:
        return f"/v1/{endpoint}"

    def headers(self, key: str) -> Mapping[str, str]:
        return {"authorization": f"Bearer {key}"}

    def error(self, status: int, body: bytes, endpoint: Endpoint | None = None) -> EngineError:
        try:
            message = str(json.loads(body)["error"]["message"])
        except (ValueError, KeyError, TypeError):
            message = f"the engine answered {status}"
        if "context" in message:
            return EngineError(status=400, code="context_length_exceeded", message=message)
        kind = "server_error" if status >= 500 else "invalid_request_error"
        return EngineError(status=status, code="engine_error", message=message, type=kind)

    def substage(self, line: str) -> Substage | None:
        return None

    def cause(self, lines: Sequence[str], exit_code: int | None) -> Cause:
        return Cause(code="ended", message="it ended", remedy="", retryable=True)

    def metric_names(self) -> Mapping[str, str]:
        return {}
