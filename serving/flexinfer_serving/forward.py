"""Send one request to one replica, and read its answer: the seam that a hot path replaces.

What goes in is made: a path, headers of ours and a body of known length, never a client's framing, credentials
or cookies. What comes out is a status, a few headers and bytes as they arrive, read only as fast as the caller
asks. Faults have three names: *connect* (nothing was sent), *reset* (broken off), *timeout* (silent too long).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import httpx

from flexinfer.fleet import FleetReplica

# Closing is two system calls; what takes longer is a bug of the client library, not worth a caller's wait.
_CLOSE_TIMEOUT_S = 1.0
FaultKind = Literal["connect", "reset", "timeout"]


class UpstreamFault(Exception):
    """The replica could not be reached, broke off, or went silent. Inside the router only."""

    def __init__(self, kind: FaultKind, detail: str) -> None:
        super().__init__(f"{kind}: {detail}")
        self.kind: FaultKind = kind
        self.detail = detail


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """What comes before the body. Header names are lower case."""

    path: str
    headers: tuple[tuple[bytes, bytes], ...]
    method: str = "POST"


class Reply(Protocol):
    """A replica's answer. `close` must be called; it frees the replica at once if the answer was not read."""

    @property
    def status(self) -> int: ...

    @property
    def headers(self) -> Mapping[str, str]: ...

    async def next_chunk(self, timeout_s: float) -> bytes:
        """Return the next bytes, b"" at the end.

        Raises:
            UpstreamFault: reset or timeout.
        """
        ...

    async def close(self) -> None: ...


class Forwarder(Protocol):
    async def send(
        self, head: Head, body: bytes, replica: FleetReplica, *, timeout_s: float
    ) -> Reply:
        """Return once the replica's headers are here.

        Raises:
            UpstreamFault: nothing of an answer came.
        """
        ...

    async def answers(self, head: Head, replica: FleetReplica, *, timeout_s: float) -> bool:
        """Return whether the replica answers at all, other than that it is not ready (503)."""
        ...

    async def close(self) -> None: ...


# llama.cpp's server closes a connection that was idle for five seconds: let go of it before.
_KEEPALIVE_S = 4.0


class PooledForwarder:
    """Connections are kept and used again. One for each process; no limit of its own: gates bound the load."""

    def __init__(self, *, connect_timeout_s: float) -> None:
        self._client = httpx.AsyncClient(
            trust_env=False,
            follow_redirects=False,
            timeout=httpx.Timeout(None, connect=connect_timeout_s),
            limits=httpx.Limits(
                max_connections=None,
                max_keepalive_connections=256,
                keepalive_expiry=_KEEPALIVE_S,
            ),
        )

    async def send(
        self, head: Head, body: bytes, replica: FleetReplica, *, timeout_s: float
    ) -> Reply:
        request = httpx.Request(
            head.method,
            replica.url + head.path,
            headers=[*head.headers, (b"accept-encoding", b"identity")],
            content=body,
            extensions={"timeout": self._client.timeout.as_dict()},
        )
        try:
            async with asyncio.timeout(timeout_s):
                response = await self._client.send(request, stream=True)
        except TimeoutError as error:
            raise UpstreamFault("timeout", f"no answer within {timeout_s:g} s") from error
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise UpstreamFault("connect", type(error).__name__) from error
        except httpx.TransportError as error:
            raise UpstreamFault("reset", type(error).__name__) from error
        return _HttpxReply(response)

    async def answers(self, head: Head, replica: FleetReplica, *, timeout_s: float) -> bool:
        try:
            reply = await self.send(head, b"", replica, timeout_s=timeout_s)
        except UpstreamFault:
            return False
        await reply.close()
        return reply.status != 503

    async def close(self) -> None:
        await self._client.aclose()


class _HttpxReply:
    def __init__(self, response: httpx.Response) -> None:
        self._response = response
        # Without a chunk size: what the kernel has is what a client gets, nothing is gathered.
        self._chunks: AsyncIterator[bytes] = response.aiter_raw()

    @property
    def status(self) -> int:
        return self._response.status_code

    @property
    def headers(self) -> Mapping[str, str]:
        return self._response.headers

    async def next_chunk(self, timeout_s: float) -> bytes:
        try:
            async with asyncio.timeout(timeout_s):
                return await anext(self._chunks, b"")
        except TimeoutError as error:
            raise UpstreamFault("timeout", f"silent for {timeout_s:g} s") from error
        except httpx.TransportError as error:
            raise UpstreamFault("reset", type(error).__name__) from error

    async def close(self) -> None:
        try:
            async with asyncio.timeout(_CLOSE_TIMEOUT_S):
                await self._response.aclose()
        except (TimeoutError, httpx.TransportError):
            return  # the socket is closed either way
