"""Sockets to checked addresses only: the name is resolved once, judged, and the judged address is dialled.

httpcore asks a backend for each connection and does TLS itself afterwards, with the name: so the certificate is
that of the host while the address is the one that was judged, and a second look-up cannot slip another in.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

import httpcore

from flexinfer.net.policy import Policy, check_addresses, literal_address

Resolver = Callable[[str, int], Awaitable[Sequence[str]]]
_MAX_ADDRESSES = 8


async def resolve(host: str, port: int) -> tuple[str, ...]:
    """Return the addresses of *host* as the system knows them, in its order, without doubles."""
    if literal_address(host) is not None:
        return (host,)
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return tuple(dict.fromkeys(str(entry[4][0]) for entry in found))


class CheckedBackend(httpcore.AsyncNetworkBackend):
    """Opens TCP connections; refuses what the policy does not let near."""

    def __init__(self, policy: Policy, resolver: Resolver = resolve) -> None:
        self._policy = policy
        self._resolver = resolver
        self._inner = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        try:
            async with asyncio.timeout(timeout):
                addresses = await self._resolver(host, port)
        except TimeoutError as error:
            raise httpcore.ConnectTimeout(f"{host}: no address within {timeout:g} s") from error
        except OSError as error:
            raise httpcore.ConnectError(f"{host}: {error.strerror or error}") from error
        if not addresses:
            raise httpcore.ConnectError(f"{host}: no address")
        if not self._policy.is_configured(host, port):
            check_addresses(host, addresses)
        last: Exception | None = None
        for address in addresses[:_MAX_ADDRESSES]:
            try:
                return await self._inner.connect_tcp(
                    address,
                    port,
                    timeout=timeout,
                    local_address=local_address,
                    socket_options=socket_options,
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                last = error
        raise httpcore.ConnectError(f"{host}:{port}: {last}") from last

    async def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[Any] | None = None
    ) -> httpcore.AsyncNetworkStream:
        raise httpcore.ConnectError(f"{path}: unix sockets are not asked")

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
