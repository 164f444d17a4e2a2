"""Durations and sizes as people write them: `5m`, `250ms`, `50Gi`, `64MiB`."""

from __future__ import annotations

import re
from fractions import Fraction

from flexinfer.errors import InvalidInput

_NUMBER = r"[0-9]+(?:\.[0-9]+)?"
_UNITS = (("d", 86400.0), ("h", 3600.0), ("m", 60.0), ("s", 1.0), ("ms", 0.001))
# Each unit at most once, the largest first.
_DURATION = re.compile("".join(f"(?:({_NUMBER}){unit})?" for unit, _ in _UNITS))
_SIZE = re.compile(rf"({_NUMBER}) ?(?:([kKMGTP])(i?))?B?")
_POWER = {None: 0, "k": 1, "K": 1, "M": 2, "G": 3, "T": 4, "P": 5}
# No measure that anyone writes is longer.
_LONGEST = 40
# The longest that anything here may wait; a larger number is a mistake in units.
MAX_DURATION_S = 366 * 86400.0
# What a file system can count.
MAX_SIZE_BYTES = 2**63 - 1


def parse_duration_s(text: str | int | float) -> float:
    """Return seconds for `90`, `90s`, `1m30s`, `250ms`, `2h` or `1d`.

    Raises:
        InvalidInput: not of that form, negative, or above a year.
    """
    if isinstance(text, bool) or not isinstance(text, (str, int, float)):
        raise _bad("duration", text, "a form such as 90s, 5m or 1h30m")
    seconds = text if isinstance(text, (int, float)) else _seconds(text)
    if not 0 <= seconds <= MAX_DURATION_S:
        raise _bad("duration", text, f"0 to {MAX_DURATION_S:.0f} seconds")
    return float(seconds)


def _seconds(text: str) -> float:
    stripped = text.strip()
    if 0 < len(stripped) <= _LONGEST:
        if re.fullmatch(_NUMBER, stripped):
            return float(stripped)
        if match := _DURATION.fullmatch(stripped):
            pairs = zip(match.groups(), _UNITS, strict=True)
            return sum(float(number) * factor for number, (_, factor) in pairs if number)
    raise _bad("duration", text, "a form such as 90s, 5m or 1h30m")


def parse_size_bytes(text: str | int) -> int:
    """Return bytes for `4096`, `64MiB`, `50Gi` (powers of 1024) or `10GB` (powers of 1000).

    A fraction of a byte is dropped.

    Raises:
        InvalidInput: not of that form, negative, or more than a file system can count.
    """
    if isinstance(text, bool) or not isinstance(text, (str, int)):
        raise _bad("size", text, "a form such as 50Gi, 64MiB or 10GB")
    size = text if isinstance(text, int) else _bytes(text)
    if not 0 <= size <= MAX_SIZE_BYTES:
        raise _bad("size", text, f"0 to {MAX_SIZE_BYTES} bytes")
    return size


def _bytes(text: str) -> int:
    stripped = text.strip()
    match = _SIZE.fullmatch(stripped) if len(stripped) <= _LONGEST else None
    if match is None:
        raise _bad("size", text, "a form such as 50Gi, 64MiB or 10GB")
    number, prefix, binary = match.groups()
    # Exact: a float holds no more than 53 bits.
    return int(Fraction(number) * (1024 if binary else 1000) ** _POWER[prefix])


def _bad(what: str, found: object, expected: str) -> InvalidInput:
    shown = repr(
        found[:_LONGEST] + "…" if isinstance(found, str) and len(found) > _LONGEST else found
    )
    return InvalidInput(f"{what} {shown[:80]}: expected {expected}")


def format_bytes(count: int) -> str:
    """Return *count* with one decimal and a binary unit: `93.8 MiB`."""
    if abs(count) < 1024:
        return f"{count} B"
    size = float(count)
    for unit in ("KiB", "MiB", "GiB"):
        size /= 1024
        if abs(round(size, 1)) < 1024:
            return f"{size:.1f} {unit}"
    return f"{size / 1024:.1f} TiB"


def format_duration(seconds: float) -> str:
    """Return *seconds* in the largest two units that matter: `850ms`, `7.1s`, `2m5s`, `3h4m`."""
    if round(seconds * 1000) < 1000:
        return f"{seconds * 1000:.0f}ms"
    if round(seconds, 1) < 60:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}m{rest}s" if rest else f"{minutes}m"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes}m" if minutes else f"{hours}h"
