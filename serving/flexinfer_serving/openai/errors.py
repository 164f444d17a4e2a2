"""What a client is told when something goes wrong: one table, one shape.

`{"error": {"message", "type", "param", "code"}}`, everywhere, also inside a stream and from the HTTP parser.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

from flexinfer.errors import (
    Conflict,
    DeadlineExceeded,
    FlexInferError,
    IntegrityError,
    InvalidInput,
    NotFound,
    Overloaded,
    Unauthorized,
    Unavailable,
)

_STATUS_OF_CODE = {
    "body_too_large": 413,
    "header_fields_too_large": 431,
    "request_timeout": 408,
    "method_not_allowed": 405,
    "host_not_allowed": 421,
    "origin_not_allowed": 403,
}
_STATUS_OF_KIND: tuple[tuple[type[FlexInferError], int], ...] = (
    (InvalidInput, 400),
    (Unauthorized, 401),
    (NotFound, 404),
    (Conflict, 409),
    (Overloaded, 429),
    (Unavailable, 503),
    (DeadlineExceeded, 504),
    (IntegrityError, 502),
)
# The engine may have computed: a client library that asks again by itself would make it compute twice.
_MAY_HAVE_RUN = frozenset(
    {"upstream_disconnected", "upstream_incomplete", "upstream_invalid", "upstream_timeout"}
)
MAX_MESSAGE = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """An error as it goes to a client."""

    status: int
    code: str
    message: str
    type: str
    param: str | None = None
    retry_after_s: float | None = None

    def body(self) -> bytes:
        error = {
            "message": self.message[:MAX_MESSAGE],
            "type": self.type,
            "param": self.param,
            "code": self.code,
        }
        return json.dumps({"error": error}, ensure_ascii=False).encode("utf-8", "replace")

    def headers(self) -> list[tuple[bytes, bytes]]:
        """Return what goes with `body`, its framing included."""
        found = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(self.body())).encode()),
        ]
        if self.retry_after_s is not None:
            found.append((b"retry-after", str(max(1, math.ceil(self.retry_after_s))).encode()))
        if self.code in _MAY_HAVE_RUN:
            found.append((b"x-should-retry", b"false"))
        if self.status == 401:
            found.append((b"www-authenticate", b"Bearer"))
        return found


def answer(error: FlexInferError) -> Answer:
    """Return what a client is told of *error*."""
    status = _STATUS_OF_CODE.get(error.code)
    if status is None:
        status = next((s for kind, s in _STATUS_OF_KIND if isinstance(error, kind)), 500)
    return Answer(
        status=status,
        code=error.code,
        message=error.message,
        type=error_type(status),
        param=error.param,
        retry_after_s=error.retry_after_s,
    )


def error_type(status: int) -> str:
    """Return OpenAI's word for a class of errors."""
    if status == 401:
        return "authentication_error"
    if status == 403:
        return "permission_error"
    if status == 429:
        return "rate_limit_error"
    return "server_error" if status >= 500 else "invalid_request_error"
