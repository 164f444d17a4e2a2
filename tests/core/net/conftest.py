"""A scripted HTTP server on loopback: each request is answered by raw bytes, so that every fault can be made."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest

Reply = Callable[["Asked", asyncio.StreamWriter], Awaitable[None]]


@dataclass
class Asked:
    method: str
    target: str
    headers: dict[str, str]

    @property
    def first(self) -> int:
        """The first byte asked for."""
        return int(self.headers.get("range", "bytes=0-").removeprefix("bytes=").partition("-")[0])


@dataclass
class Server:
    url: str
    asked: list[Asked] = field(default_factory=list)
    connections: int = 0


@asynccontextmanager
async def serving(*replies: Reply) -> AsyncIterator[Server]:
    """Serve *replies* in order, the last one for ever."""
    found = Server("")
    left = list(replies)

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        found.connections += 1
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            method, target, _ = head[0].split(" ")
            pairs = (line.split(": ", 1) for line in head[1:] if line)
            asked = Asked(method, target, {k.lower(): v for k, v in pairs})
            found.asked.append(asked)
            reply = left.pop(0) if len(left) > 1 else left[0]
            await reply(asked, writer)
            await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    found.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield found
    finally:
        server.close()
        await server.wait_closed()


def says(status: int, body: bytes = b"", **headers: str) -> Reply:
    """Answer with a fixed head and body."""

    async def reply(_: Asked, writer: asyncio.StreamWriter) -> None:
        lines = {"content-length": str(len(body)), "connection": "close"}
        lines |= {name.replace("_", "-"): value for name, value in headers.items()}
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        writer.write(f"HTTP/1.1 {status} x\r\n{head}\r\n".encode() + body)

    return reply


def file(data: bytes, *, stop_after: int | None = None, etag: str = '"a"') -> Reply:
    """Answer as a good file server does; *stop_after*: break the connection after that many bytes of body."""

    async def reply(asked: Asked, writer: asyncio.StreamWriter) -> None:
        first = asked.first
        matches = asked.headers.get("if-range", etag) == etag
        if first >= len(data) and matches and "range" in asked.headers:
            writer.write(
                f"HTTP/1.1 416 x\r\ncontent-range: bytes */{len(data)}\r\n"
                "content-length: 0\r\nconnection: close\r\n\r\n".encode()
            )
            return
        if "range" in asked.headers and matches:
            body = data[first:]
            head = f"HTTP/1.1 206 x\r\ncontent-range: bytes {first}-{len(data) - 1}/{len(data)}\r\n"
        else:
            body = data
            head = "HTTP/1.1 200 x\r\n"
        head += f"content-length: {len(body)}\r\netag: {etag}\r\nconnection: close\r\n\r\n"
        writer.write(head.encode() + body[:stop_after])

    return reply


@pytest.fixture
def http() -> SimpleNamespace:
    """`http.serving(*replies)`, `http.says(status, …)`, `http.file(data, …)`."""
    return SimpleNamespace(serving=serving, says=says, file=file)
