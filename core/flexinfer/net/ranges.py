"""What an answer to a ranged request means for the bytes that are already here. Pure (RFC 9110 section 14)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

_CONTENT_RANGE = re.compile(r"bytes (?:(\d{1,19})-(\d{1,19})|\*)/(\d{1,19}|\*)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Continue:
    """The body goes on; its first `skip` bytes are already here."""

    skip: int
    total: int | None


@dataclass(frozen=True, slots=True)
class Complete:
    """Nothing is missing."""


@dataclass(frozen=True, slots=True)
class Restart:
    """What is here is not the beginning of what is there now."""

    reason: str


Meaning = Continue | Complete | Restart


def request_headers(offset: int, etag: str) -> dict[str, str]:
    """Return the headers that ask for what follows *offset*, if the file is still the one of *etag*."""
    if offset == 0:
        return {}
    headers = {"range": f"bytes={offset}-"}
    if etag and not etag.startswith("W/"):  # If-Range compares strongly: a weak tag never matches
        headers["if-range"] = etag
    return headers


def read_answer(status: int, headers: Mapping[str, str], *, offset: int, etag: str) -> Meaning:
    """Return what a 200, 206 or 416 means when *offset* bytes of the file tagged *etag* are here.

    A server may ignore `Range` and send everything: the first bytes are then skipped, not written twice.
    """
    now_tag = headers.get("etag", "")
    changed = bool(etag and now_tag and now_tag != etag)
    span = _CONTENT_RANGE.fullmatch(headers.get("content-range", ""))
    total = int(span[3]) if span and span[3] != "*" else None
    if changed and offset:
        return Restart(f"the file changed at the source ({etag} became {now_tag})")
    match status:
        case 206:
            if span is None or span[1] is None:
                return Restart("a partial answer without its Content-Range")
            if int(span[1]) != offset:
                return Restart(f"asked for bytes from {offset}, got them from {span[1]}")
            return Continue(skip=0, total=total)
        case 416:
            if total == offset and offset > 0:
                return Complete()
            return Restart(f"{offset} bytes are here, the source has {total}")
        case _:
            length = headers.get("content-length", "")
            return Continue(
                skip=offset, total=int(length) if length.isdigit() and len(length) < 20 else None
            )
