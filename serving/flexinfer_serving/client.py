"""The client's side of one request: its body, its leaving, and what it is sent.

`receive` has one reader at a time: first `body`, then `gone`. A client that does not read is given up after
*write_timeout_s*, so that it cannot hold a slot for ever.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from flexinfer.errors import InvalidInput

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

# After the first wait a body must come at least this fast; a byte now and then is an attack, not a slow link.
_SLOWEST_BYTES_PER_S = 16 * 1024
# What is read and thrown away after a refusal, so that the answer is not lost in a reset.
LINGER_S = 1.0
LINGER_BYTES = 64 * 1024 * 1024


class ClientGone(Exception):
    """The client has left. Inside the router only."""


class Client:
    def __init__(
        self, scope: Scope, receive: Receive, send: Send, *, write_timeout_s: float = 60.0
    ) -> None:
        self.scope = scope
        self._receive = receive
        self._send = send
        self._write_timeout_s = write_timeout_s
        self.has_started = False
        self.has_ended = False
        self._has_body = _announces_body(scope)

    def header(self, name: bytes) -> str | None:
        """Return the first header of that lower-case name."""
        found = next((value for key, value in self.scope["headers"] if key == name), None)
        return None if found is None else str(found, "latin-1")

    async def body(self, *, limit_bytes: int, timeout_s: float) -> bytes:
        """Return the whole body.

        Raises:
            InvalidInput: codes `body_too_large`, `request_timeout`.
            ClientGone: it left before the end.
        """
        declared = self.header(b"content-length") or ""
        if declared.isdecimal() and int(declared[:18]) > limit_bytes:
            raise _too_large(limit_bytes)
        loop = asyncio.get_running_loop()
        started_s = loop.time()
        found = bytearray()
        try:
            while True:
                allowed_s = timeout_s + len(found) / _SLOWEST_BYTES_PER_S
                async with asyncio.timeout_at(min(started_s + allowed_s, loop.time() + timeout_s)):
                    message = await self._receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                found += message.get("body", b"")
                if len(found) > limit_bytes:
                    raise _too_large(limit_bytes)
                if not message.get("more_body", False):
                    self._has_body = False
                    return bytes(found)
        except TimeoutError as error:
            raise InvalidInput(
                f"the body did not come within {timeout_s:g} s (got {len(found)} bytes)",
                code="request_timeout",
            ) from error

    async def gone(self) -> None:
        """Return when the client has left."""
        while (await self._receive())["type"] != "http.disconnect":
            continue

    async def start(self, status: int, headers: Headers) -> None:
        self.has_started = True
        await self._write({"type": "http.response.start", "status": status, "headers": headers})

    async def write(self, data: bytes) -> None:
        """Send *data*; waits while the client is slower than we are."""
        await self._write({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self, data: bytes = b"") -> None:
        self.has_ended = True
        await self._write({"type": "http.response.body", "body": data, "more_body": False})

    async def answer(self, status: int, headers: Headers, body: bytes) -> None:
        """Send a whole answer; if the request's body was not read, read on for a moment, then close."""
        if not self._has_body:
            await self.start(status, headers)
            await self.end(body)
            return
        await self.start(status, [*headers, (b"connection", b"close")])
        await self.write(body)
        await self._linger()
        await self.end()

    def abort(self) -> None:
        """Reset the connection: the answer cannot be completed and must not look complete."""
        self.has_ended = True
        abort = self.scope.get("extensions", {}).get("flexinfer.abort")
        if abort is not None:
            abort()

    async def _linger(self) -> None:
        left = LINGER_BYTES
        try:
            async with asyncio.timeout(LINGER_S):
                while left > 0:
                    message = await self._receive()
                    left -= len(message.get("body", b""))
                    if message["type"] == "http.disconnect" or not message.get("more_body"):
                        return
        except TimeoutError:
            return

    async def _write(self, message: Message) -> None:
        try:
            async with asyncio.timeout(self._write_timeout_s):
                await self._send(message)
        except TimeoutError as error:
            self.abort()
            raise ClientGone from error


def _announces_body(scope: Scope) -> bool:
    return any(
        name == b"transfer-encoding" or (name == b"content-length" and value.strip() != b"0")
        for name, value in scope["headers"]
    )


def _too_large(limit_bytes: int) -> InvalidInput:
    return InvalidInput(
        f"the body is larger than the limit of {limit_bytes} bytes", code="body_too_large"
    )
