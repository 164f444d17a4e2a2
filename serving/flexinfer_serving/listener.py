"""Uvicorn with h11, bounded: header time, header bytes, connections; and its own errors in OpenAI's shape."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import math
import resource
import secrets
import socket
from collections.abc import Iterator
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from flexinfer.errors import FlexInferError, InvalidInput, Unavailable
from flexinfer.log import get_logger
from flexinfer.process.ports import who_listens
from flexinfer.settings import ServeSection
from flexinfer_serving.client import LINGER_BYTES, LINGER_S, Receive, Scope, Send
from flexinfer_serving.framing import check_head
from flexinfer_serving.openai import errors

log = get_logger(__name__)

_BACKLOG = 2048
_KEEP_ALIVE_S = 30
_PEER_IS_THERE = {
    "TCP_KEEPIDLE": 30,
    "TCP_KEEPINTVL": 10,
    "TCP_KEEPCNT": 3,
    "TCP_USER_TIMEOUT": 60_000,  # ms; what was sent is acknowledged by then
}
# Above the limit of connections so many are told so; those beyond are only closed.
MAX_TOLD = 256
_OTHER_FILES = 256


class StrictConnection(h11.Connection):
    """A parser that sees no head before `check_head` has. What it refused is in `refusal`."""

    refusal: InvalidInput | None = None

    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        if self.their_state is h11.IDLE:
            try:
                check_head(self.trailing_data[0], limit_bytes=self.limit_bytes)
            except InvalidInput as refusal:
                self.refusal = refusal
                raise h11.RemoteProtocolError(refusal.message) from refusal
        return super().next_event()

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(h11.SERVER, limit_bytes)
        self.limit_bytes = limit_bytes


class BoundedProtocol(H11Protocol):
    """One connection.

    open      a head that does not come in time ends it with 408, one that is none with 400 or 431, and so does a
              body whose chunks are none, unless its answer has begun
    ending    the answer is out and our side is shut; what still comes is read and thrown away for a moment, so
              that the answer is not lost in a reset
    unread    an answer is complete, and its end waits for a client that reads nothing: cut after `write_timeout_s`
    """

    _header_timer: asyncio.TimerHandle | None = None
    _last_timer: asyncio.TimerHandle | None = None
    _is_ending = False
    _left_bytes = LINGER_BYTES

    def __init__(self, config: uvicorn.Config, *args: Any, **more: Any) -> None:
        super().__init__(config, *args, **more)
        assert isinstance(config, ListenerConfig)
        self._section = config.section
        self.conn = StrictConnection(config.section.max_header_bytes)
        inner: Any = self.app

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            scope["extensions"] = {"flexinfer.abort": self.transport.abort}
            # Two readers may differ on where a chunked body's trailer ends, so nothing may follow it here.
            if any(name == b"transfer-encoding" for name, _ in scope["headers"]):
                scope["headers"].append((b"connection", b"close"))
            await inner(scope, receive, send)

        self.app = app

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        excess = len(self.connections) - self._section.max_connections
        if excess > MAX_TOLD:
            transport.abort()
        elif excess > 0:
            self._close_with(
                Unavailable(
                    f"the router has its {self._section.max_connections} connections",
                    code="too_many_connections",
                    retry_after_s=1.0,
                )
            )
        else:
            self._start_header_timer()

    def data_received(self, data: bytes) -> None:
        if self._is_ending:
            self._left_bytes -= len(data)
            if self._left_bytes < 0:
                self.transport.abort()
            return
        super().data_received(data)
        if self._is_ending or self.transport.is_closing() or self.conn.their_state is not h11.IDLE:
            self._stop_header_timer()
        elif self._header_timer is None:
            self._start_header_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_header_timer()
        if self._last_timer is not None:
            self._last_timer.cancel()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        assert isinstance(self.conn, StrictConnection)
        self._close_with(
            self.conn.refusal or InvalidInput("the request is not valid HTTP", code="bad_request")
        )

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch_unread()

    def shutdown(self) -> None:
        if not self._is_ending:
            super().shutdown()

    def _watch_unread(self, before: int | None = None) -> None:
        """Reset the connection once what was written has not moved for the time allowed."""
        left = self.transport.get_write_buffer_size()
        if left and left == before:
            self.transport.abort()
        elif left:
            timeout_s = self._section.write_timeout_s
            if self._last_timer is not None:
                self._last_timer.cancel()
            self._last_timer = self.loop.call_later(timeout_s, self._watch_unread, left)

    def _start_header_timer(self) -> None:
        timeout_s = self._section.header_timeout_s
        self._header_timer = self.loop.call_later(timeout_s, self._header_timeout)

    def _stop_header_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _header_timeout(self) -> None:
        self._header_timer = None
        if not self.transport.is_closing():
            limit = f"{self._section.header_timeout_s:g} s"
            self._close_with(
                InvalidInput(
                    f"the request's head did not come within {limit}", code="request_timeout"
                )
            )

    def _close_with(self, error: FlexInferError) -> None:
        """Answer outside of h11, whose state no longer allows it, and end."""
        self._stop_header_timer()
        if self.cycle is not None and not self.cycle.response_complete:
            if self.cycle.response_started:
                self.transport.close()
                return
            self.cycle.disconnected = True  # the application hears that nobody is there any more
            self.cycle.message_event.set()
        self._is_ending = True
        self.flow.resume_reading()
        self.transport.write(_raw(errors.answer(error)))
        self.transport.write_eof()
        self._last_timer = self.loop.call_later(LINGER_S, self.transport.abort)


class ListenerConfig(uvicorn.Config):
    def __init__(self, app: Any, section: ServeSection, *, drain_timeout_s: float) -> None:
        super().__init__(
            app,
            http=BoundedProtocol,
            ws="none",
            lifespan="off",
            loop="asyncio",
            interface="asgi3",
            log_config=None,
            log_level="error",  # a stranger's bad requests are not worth a line each
            access_log=False,
            server_header=False,
            proxy_headers=False,
            backlog=_BACKLOG,
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=math.ceil(drain_timeout_s),
            h11_max_incomplete_event_size=section.max_header_bytes,
        )
        self.section = section


class Listener(uvicorn.Server):
    """A server whose signals are somebody else's."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def bind(host: str, port: int, *, setting: str) -> socket.socket:
    """Return a listening socket; *setting* names the port's setting in the error.

    Raises:
        InvalidInput: codes `port_taken`, whose message names who has it, and `bind_failed`.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            holder = who_listens(port) or "another process"
            raise InvalidInput(
                f"port {port} on {host} is taken by {holder}; choose another with {setting}",
                code="port_taken",
            ) from error
        raise InvalidInput(
            f"cannot listen on {host}:{port}: {error.strerror or error}", code="bind_failed"
        ) from error
    listening.setblocking(False)
    # Accepted sockets inherit it. asyncio sets it itself only where a socket names TCP as its protocol, which
    # one from `create_server` does not; without it each answer of two writes waits 40 ms for a delayed ACK.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # A peer that vanished without a word is noticed within about a minute, also while nothing is sent to it.
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _PEER_IS_THERE.items():
        if (option := getattr(socket, name, None)) is not None:
            listening.setsockopt(socket.IPPROTO_TCP, option, value)
    return listening


def allow_files(connections: int) -> int:
    """Let this process have the files that *connections* clients and their engines need, and return the limit.

    The usual limit of 1024 would end the connections before the limit that says 503 does.
    """
    wanted = 2 * (connections + MAX_TOLD) + _OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return wanted
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    if allowed < wanted:
        log.warning("few_files_allowed", allowed=allowed, wanted=wanted)
    return allowed


def _raw(answer: errors.Answer) -> bytes:
    head = [b"HTTP/1.1 %d Error\r\n" % answer.status]
    more = ((b"x-request-id", f"req-{secrets.token_hex(12)}".encode()), (b"connection", b"close"))
    head += [b"%s: %s\r\n" % pair for pair in (*answer.headers(), *more)]
    return b"".join([*head, b"\r\n", answer.body()])
