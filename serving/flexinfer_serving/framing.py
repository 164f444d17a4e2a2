"""What a request's head must be before anything reads it: small, and of one meaning. Pure.

The parser behind this is more lenient than a proxy in front may be; where two readers can disagree on where a
request ends, the second request in it reaches the engine unseen (RFC 9112, 2.2, 5.2, 6.3, 11.2).
"""

from __future__ import annotations

import re

from flexinfer.errors import InvalidInput

MAX_HEADERS = 100
_END = b"\r\n\r\n"
_BARE_LINE_FEED = re.compile(rb"(?<!\r)\n")
_FOLDED = re.compile(rb"\n[ \t]")


def check_head(data: bytes, *, limit_bytes: int) -> None:
    """Check the head at the start of *data*, whole or as far as it has come.

    Raises:
        InvalidInput: codes `header_fields_too_large`, `bad_framing`.
    """
    end = data.find(_END)
    head = data if end < 0 else data[: end + len(_END)]
    if len(head) > limit_bytes:
        raise InvalidInput(
            f"expected a head of at most {limit_bytes} bytes", code="header_fields_too_large"
        )
    if _BARE_LINE_FEED.search(head):
        raise _ambiguous("a line of the head ends without CR LF")
    if _FOLDED.search(head):
        raise _ambiguous("a header is folded onto a second line")
    if end >= 0:
        _check_lines(head[:end].split(b"\r\n"))


def _check_lines(lines: list[bytes]) -> None:
    request, *headers = lines
    if len(headers) > MAX_HEADERS:
        raise InvalidInput(
            f"expected at most {MAX_HEADERS} headers, found {len(headers)}",
            code="header_fields_too_large",
        )
    found = [line.partition(b":") for line in headers]
    lengths = [value for name, _, value in found if name.strip().lower() == b"content-length"]
    is_coded = any(name.strip().lower() == b"transfer-encoding" for name, _, _ in found)
    if len(lengths) > 1 or any(b"," in value for value in lengths):
        raise _ambiguous("more than one Content-Length")
    if lengths and is_coded:
        raise _ambiguous("both Content-Length and Transfer-Encoding")
    if is_coded and request.endswith(b"/1.0"):
        raise _ambiguous("Transfer-Encoding in HTTP/1.0")


def _ambiguous(what: str) -> InvalidInput:
    return InvalidInput(what, code="bad_framing")
