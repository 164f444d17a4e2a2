"""The client: one request with its redirects, credentials bound to where they belong, bounded answers.

It stands on httpcore, the engine below httpx: checking an address before it is dialled needs a network backend,
which httpx has no argument for. Bodies are taken as they are sent (`Accept-Encoding: identity`), so that no
answer can grow after it was measured.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Self
from urllib.parse import urljoin

import httpcore

from flexinfer.errors import InvalidInput, TransferError
from flexinfer.net.connect import CheckedBackend, Resolver, resolve
from flexinfer.net.policy import Origin, Policy, origin_of
from flexinfer.net.trust import proxy_for, split_credentials, ssl_context

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_MAX_REDIRECTS = 5
_MAX_ERROR_BODY = 64 * 1024
_USER_AGENT = "flexinfer"


class StatusError(TransferError):
    """A server answered with something else than success."""

    default_code = "http_status"

    def __init__(self, url: str, status: int, headers: Mapping[str, str], body: bytes) -> None:
        origin = origin_of(url, userinfo=True)
        said = headers.get("x-error-message") or " ".join(
            body[:200].decode("utf-8", "replace").split()
        )
        super().__init__(f"{origin}: HTTP {status}{': ' + said if said else ''}", side="source")
        self.status = status
        self.headers = headers
        self.retryable = status == 429 or status >= 500  # type: ignore[misc]  # per answer, not per class


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    connect_s: float = 10.0
    stall_s: float = 60.0
    """The longest time without a byte."""


@dataclass(slots=True, kw_only=True)
class Answer:
    """The head of an answer; its body streams."""

    url: str
    status: int
    headers: Mapping[str, str]
    """Names in lower case; the last one of a name wins."""
    _response: httpcore.Response = field(repr=False)

    async def chunks(self) -> AsyncIterator[bytes]:
        async for chunk in self._response.aiter_stream():
            yield chunk

    async def read(self, *, max_bytes: int) -> bytes:
        """Return the whole body.

        Raises:
            TransferError: code `answer_too_large`.
        """
        body = bytearray()
        async for chunk in self.chunks():
            body += chunk
            if len(body) > max_bytes:
                raise TransferError(
                    f"{origin_of(self.url)}: answer is above {max_bytes} bytes",
                    side="source",
                    code="answer_too_large",
                )
        return bytes(body)


class Client:
    """Asks allowed hosts. Use as an async context manager; not shared between event loops."""

    def __init__(
        self,
        policy: Policy,
        *,
        environ: Mapping[str, str],
        credentials: Mapping[tuple[str, int], str] | None = None,
        timeouts: Timeouts = Timeouts(),
        resolver: Resolver = resolve,
    ) -> None:
        """*credentials*: (host, port) → the value of its `Authorization` header."""
        self.policy = policy
        self.timeouts = timeouts
        self._environ = environ
        self._credentials = dict(credentials or {})
        self._resolver = resolver
        self._pools: dict[str, httpcore.AsyncConnectionPool] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for pool in self._pools.values():
            await pool.aclose()
        self._pools.clear()

    @asynccontextmanager
    async def stream(
        self, method: str, url: str, headers: Mapping[str, str] | None = None
    ) -> AsyncIterator[Answer]:
        """Yield the answer of the last hop, whatever its status is; at most 5 redirects, for GET and HEAD.

        Raises:
            InvalidInput: code `source_not_allowed`, at the hop that is not.
            TransferError: codes `connect_failed`, `too_many_redirects`.
        """
        for name in headers or {}:
            if name.lower() in ("authorization", "cookie", "host", "accept-encoding"):
                raise InvalidInput(f"header {name}: set by the client, from its credentials")
        for _ in range(_MAX_REDIRECTS + 1):
            origin = self.policy.check(url)
            pool = self._pool(origin)
            async with _transport_errors(origin):
                async with pool.stream(
                    method,
                    url.partition("#")[0],
                    headers=self._headers(origin, headers or {}),
                    extensions={"timeout": self._timeout()},
                ) as response:
                    found = {k.decode("latin-1").lower(): v.decode("latin-1")
                             for k, v in response.headers}  # fmt: skip
                    if response.status not in _REDIRECTS or method not in ("GET", "HEAD"):
                        yield Answer(
                            url=url, status=response.status, headers=found, _response=response
                        )
                        return
                    url = urljoin(url, found.get("location", ""))
        raise TransferError(
            f"{origin}: more than {_MAX_REDIRECTS} redirects",
            side="source",
            code="too_many_redirects",
        )

    async def get(
        self, url: str, *, max_bytes: int, headers: Mapping[str, str] | None = None
    ) -> tuple[Mapping[str, str], bytes]:
        """Return headers and body of a successful answer.

        Raises:
            StatusError: any other answer. Also what `stream` raises.
        """
        async with self.stream("GET", url, headers) as answer:
            if answer.status != 200:
                raise await status_error(answer)
            return answer.headers, await answer.read(max_bytes=max_bytes)

    def _headers(self, origin: Origin, headers: Mapping[str, str]) -> list[tuple[str, str]]:
        sent = [("host", str(origin).partition("://")[2]), ("user-agent", _USER_AGENT)]
        sent += [("accept-encoding", "identity"), *headers.items()]
        # Bound to host and port: a redirect elsewhere never sees it, nor does plain http that nobody configured.
        value = self._credentials.get(origin.address)
        if value and (origin.scheme == "https" or origin in self.policy.configured):
            sent.append(("authorization", value))
        return sent

    def _timeout(self) -> dict[str, float]:
        connect, stall = self.timeouts.connect_s, self.timeouts.stall_s
        return {"connect": connect, "read": stall, "write": stall, "pool": stall}

    def _pool(self, origin: Origin) -> httpcore.AsyncConnectionPool:
        url = proxy_for(origin, self._environ)
        key = f"{origin.scheme} {url}"
        if key not in self._pools:
            # Reading the authorities takes 50 ms: only where they are needed.
            is_secret = "https" in (origin.scheme, url.partition("://")[0])
            context = ssl_context(self._environ) if is_secret else None
            self._pools[key] = self._proxied(url, context) if url else self._direct(context)
        return self._pools[key]

    def _direct(self, context: ssl.SSLContext | None) -> httpcore.AsyncConnectionPool:
        return httpcore.AsyncConnectionPool(
            ssl_context=context,
            network_backend=CheckedBackend(self.policy, self._resolver),
            max_connections=8,
            keepalive_expiry=30.0,
        )

    def _proxied(self, url: str, context: ssl.SSLContext | None) -> httpcore.AsyncConnectionPool:
        plain, auth = split_credentials(url)
        # The user chose the proxy, so its address is theirs; names behind it are the proxy's to resolve.
        backend = CheckedBackend(Policy.of((), configured=(plain,)), self._resolver)
        proxy = httpcore.Proxy(
            plain, auth=auth, ssl_context=context if plain.startswith("https") else None
        )
        return httpcore.AsyncConnectionPool(
            ssl_context=context,
            proxy=proxy,
            network_backend=backend,
            max_connections=8,
            keepalive_expiry=30.0,
        )


async def status_error(answer: Answer) -> StatusError:
    """Return the error for *answer*, with the beginning of its body."""
    body = b""
    if answer.status != 416:
        async for chunk in answer.chunks():
            body += chunk
            if len(body) >= _MAX_ERROR_BODY:
                break
    return StatusError(answer.url, answer.status, answer.headers, body)


@asynccontextmanager
async def _transport_errors(origin: Origin) -> AsyncIterator[None]:
    try:
        yield
    except (httpcore.ConnectError, httpcore.ConnectTimeout, httpcore.ProxyError) as error:
        raise TransferError(
            f"{origin}: cannot connect ({error})", side="source", code="connect_failed"
        ) from error
    except httpcore.TimeoutException as error:
        raise TransferError(
            f"{origin}: no byte for too long", side="source", code="transfer_stalled"
        ) from error
    except (httpcore.NetworkError, httpcore.ProtocolError) as error:
        raise TransferError(f"{origin}: connection broke ({error})", side="source") from error
