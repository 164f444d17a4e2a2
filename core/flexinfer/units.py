"""Durations and sizes as people write them: `5m`, `250ms`, `50Gi`, `64MiB`."""

from __future__ import annotations

import re

from flexinfer.errors import InvalidInput

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kKMGTP]?)(i?)(B?)")
_POWER = {"": 0, "k": 1, "K": 1, "M": 2, "G": 3, "T": 4, "P": 5}
# The longest that anything here may wait; a larger number is a mistake in units.
MAX_DURATION_S = 366 * 86400.0


def parse_duration_s(text: str | int | float) -> float:
    """Return seconds for `90`, `90s`, `1m30s`, `250ms`, `2h` or `1d`.

    Raises:
        InvalidInput: not of that form, negative, or above a year.
    """
    if isinstance(text, (int, float)) and not isinstance(text, bool):
        seconds = float(text)
    else:
        stripped = str(text).strip()
        if re.fullmatch(r"\d+(\.\d+)?", stripped):
            seconds = float(stripped)
        elif stripped and _DURATION.sub("", stripped) == "":
            seconds = sum(float(n) * _SECONDS[u] for n, u in _DURATION.findall(stripped))
        else:
            raise InvalidInput(f"duration {text!r}: expected a form such as 90s, 5m or 1h30m")
    if not 0 <= seconds <= MAX_DURATION_S:
        raise InvalidInput(f"duration {text!r}: expected 0 to {MAX_DURATION_S:.0f} seconds")
    return seconds


def parse_size_bytes(text: str | int) -> int:
    """Return bytes for `4096`, `64MiB`, `50Gi` (powers of 1024) or `10GB` (powers of 1000).

    Raises:
        InvalidInput: not of that form, or negative.
    """
    if isinstance(text, int) and not isinstance(text, bool):
        if text < 0:
            raise InvalidInput(f"size {text!r}: expected 0 or more bytes")
        return text
    match = _SIZE.fullmatch(str(text).strip())
    if match is None:
        raise InvalidInput(f"size {text!r}: expected a form such as 50Gi, 64MiB or 10GB")
    number, prefix, binary, _ = match.groups()
    base = 1024 if binary else 1000
    return int(float(number) * base ** _POWER[prefix])


def format_bytes(count: int) -> str:
    """Return *count* with one decimal and a binary unit: `93.8 MiB`."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def format_duration(seconds: float) -> str:
    """Return *seconds* in the largest two units that matter: `850ms`, `7.1s`, `2m5s`, `3h4m`."""
    if seconds < 1:
        return f"{seconds * 1000:.0f}ms"
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}m{rest}s" if rest else f"{minutes}m"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes}m" if minutes else f"{hours}h"
