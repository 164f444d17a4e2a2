"""What every request of the public listener passes first: host, origin, key. Plain ASGI, deny by default.

Only `/livez` and `/readyz` are open. A refusal is in OpenAI's shape and carries the request id.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
import secrets
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

from flexinfer.errors import FlexInferError, InvalidInput, Unauthorized
from flexinfer.exposure import is_loopback
from flexinfer.log import get_logger
from flexinfer.settings import ServeSection
from flexinfer_serving.client import Client, Message, Receive, Scope, Send
from flexinfer_serving.openai import errors
from flexinfer_serving.router import Router

log = get_logger(__name__)

App = Callable[[Scope, Receive, Send], Awaitable[None]]
Pairs = list[tuple[bytes, bytes]]

OPEN_PATHS = frozenset({"/livez", "/readyz"})
MAX_KEY_CHARS = 512
_REQUEST_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_LABEL = r"[A-Za-z0-9_-]+"
_HOST = re.compile(
    rf"(?:\[(?P<v6>[0-9A-Fa-f:.]+)\]|(?P<name>{_LABEL}(?:\.{_LABEL})*\.?))(?::[0-9]{{1,5}})?"
)
_EXPOSED_HEADERS = (
    b"x-request-id, x-flexinfer-explain, x-flexinfer-model, x-flexinfer-replica, "
    b"x-flexinfer-cold-start, x-flexinfer-dropped, retry-after"
)
_HEADER_LIST = re.compile(r"[A-Za-z0-9_, -]{0,1024}")


class Guard:
    """Let through to *app* what is well framed, meant for us, from an allowed page, and with a key."""

    def __init__(self, app: App, router: Router, *, section: ServeSection | None = None) -> None:
        """*section*: what this listener allows, if not what the router's settings say."""
        self._app = app
        self._router = router
        self._section = section or router.section
        self._keys = [_digest(key.get_secret_value()) for key in self._section.api_keys]
        self._hosts = frozenset(h.lower() for h in self._section.allowed_hosts if h)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return  # no lifespan is asked for, and websockets are off
        offered = _header(scope, b"x-request-id") or ""
        request_id = offered if _REQUEST_ID.fullmatch(offered) else f"req-{secrets.token_hex(12)}"
        scope.setdefault("state", {})["request_id"] = request_id
        extra: Pairs = [(b"x-request-id", request_id.encode()), *self._cors(scope)]
        state = "open"

        async def told(message: Message) -> None:
            nonlocal state
            if message["type"] == "http.response.start":
                state = "started"
                message["headers"] = [*message.get("headers", ()), *extra]
            elif not message.get("more_body", False):
                state = "ended"
            await send(message)

        client = Client(scope, receive, told)
        try:
            self._check(scope)
            if _is_preflight(scope):
                await client.answer(204, [(b"content-length", b"0")], b"")
                return
            await self._app(scope, receive, told)
        except FlexInferError as error:
            self._count(error)
            answer = errors.answer(error)
            await client.answer(answer.status, answer.headers(), answer.body())
        except Exception:
            log.exception("request_crashed", request_id=request_id, path=scope["path"][:128])
            if state != "ended":
                client.abort()

    # Checks -----------------------------------------------------------------------------------------------

    def _check(self, scope: Scope) -> None:
        if scope["path"] in OPEN_PATHS:
            return  # probes come by address, without a key
        self._check_host(scope)
        self._check_origin(scope)
        if not _is_preflight(scope):
            self._check_key(scope)

    def _check_host(self, scope: Scope) -> None:
        """Refuse a name that is not ours: a page can make its own name lead to 127.0.0.1 (DNS rebinding)."""
        header = _header(scope, b"host") or ""
        host = _host(header)
        if host in self._hosts or is_loopback(host):
            return
        # An address cannot be rebound; beyond loopback it is how others reach us, and keys are set.
        if not is_loopback(self._section.host) and _is_address(host):
            return
        host = host or header
        raise InvalidInput(
            f"host {host[:64]!r} is not served here; name it in FLEXINFER_SERVE__ALLOWED_HOSTS",
            code="host_not_allowed",
        )

    def _check_origin(self, scope: Scope) -> None:
        """Refuse other sites' pages: a browser sends their requests even where it hides the answer."""
        origin = _header(scope, b"origin")
        if origin is None or self._allows(origin):
            return
        if _netloc(origin) == (_header(scope, b"host") or "").lower():
            return
        raise InvalidInput(
            f"origin {origin[:64]!r} is not allowed; name it in FLEXINFER_SERVE__CORS_ORIGINS",
            code="origin_not_allowed",
        )

    def _check_key(self, scope: Scope) -> None:
        found = [value for name, value in scope["headers"] if name == b"authorization"]
        if len(found) > 1:
            raise InvalidInput("two Authorization headers", code="duplicate_header")
        if not self._keys:
            return
        scheme, _, key = found[0].partition(b" ") if found else (b"", b"", b"")
        offered = _digest(key) if scheme == b"Bearer" and len(key) <= MAX_KEY_CHARS else b""
        # Every key is compared, so that the time does not tell which one was close.
        matches = [hmac.compare_digest(offered, one) for one in self._keys]
        if not any(matches):
            raise Unauthorized(
                "no or wrong API key; send Authorization: Bearer <key>", code="invalid_api_key"
            )

    def _allows(self, origin: str) -> bool:
        return "*" in self._section.cors_origins or origin in self._section.cors_origins

    def _cors(self, scope: Scope) -> Pairs:
        origin = _header(scope, b"origin")
        if origin is None or not self._allows(origin):
            return []
        found = [
            (b"access-control-allow-origin", origin.encode("latin-1")),
            (b"access-control-expose-headers", _EXPOSED_HEADERS),
            (b"vary", b"Origin"),
        ]
        if _is_preflight(scope):
            # An allowed page may send what it likes (client libraries add headers of their own): we read few.
            asked = _header(scope, b"access-control-request-headers") or ""
            allowed = asked if _HEADER_LIST.fullmatch(asked) else "authorization, content-type"
            found += [
                (b"access-control-allow-methods", b"GET, POST, OPTIONS"),
                (b"access-control-allow-headers", allowed.encode()),
                (b"access-control-max-age", b"600"),
            ]
        return found

    def _count(self, error: FlexInferError) -> None:
        self._router.metrics.add(
            "flexinfer_requests_total", model="other", route="other", code=error.code
        )


def _header(scope: Scope, name: bytes) -> str | None:
    found = next((value for key, value in scope["headers"] if key == name), None)
    return None if found is None else str(found, "latin-1")


def _host(header: str) -> str:
    """Return the host of a Host header, lower case, without its port; empty: it is no `name`, `address` or `[v6]`."""
    match = _HOST.fullmatch(header)
    if match is None:
        return ""
    if match["v6"] is None:
        return match["name"].lower()
    try:
        ipaddress.IPv6Address(match["v6"])
    except ValueError:
        return ""
    return match["v6"].lower()


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _is_preflight(scope: Scope) -> bool:
    asks = _header(scope, b"access-control-request-method")
    return scope["method"] == "OPTIONS" and asks is not None


def _digest(key: str | bytes) -> bytes:
    return hashlib.sha256(key.encode() if isinstance(key, str) else key).digest()


def _netloc(origin: str) -> str | None:
    """Return the host and port of an Origin, lower case; None where it is no address."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:  # such as `http://[evil`
        return None
