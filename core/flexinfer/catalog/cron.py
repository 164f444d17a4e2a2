"""Whether a text is a schedule of five cron fields: minute, hour, day of month, month, day of week."""

from __future__ import annotations

import re

MAX_LENGTH = 200

_MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")
_DAYS = ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT")
# Name, least, greatest, names with the number of the first.
_FIELDS: tuple[tuple[str, int, int, tuple[str, ...], int], ...] = (
    ("minute", 0, 59, (), 0),
    ("hour", 0, 23, (), 0),
    ("day of month", 1, 31, (), 0),
    ("month", 1, 12, _MONTHS, 1),
    ("day of week", 0, 7, _DAYS, 0),
)
_PART = re.compile(
    r"(?:(\*)|([0-9]{1,2}|[A-Za-z]{3})(?:-([0-9]{1,2}|[A-Za-z]{3}))?)(?:/([0-9]{1,2}))?"
)


def problem(schedule: str) -> str | None:
    """Return what is wrong with *schedule*, None if it is well formed."""
    if len(schedule) > MAX_LENGTH:
        return f"expected a schedule of at most {MAX_LENGTH} characters"
    fields = schedule.split()
    if len(fields) != len(_FIELDS):
        named = ", ".join(name for name, *_ in _FIELDS)
        return f"schedule {schedule!r}: expected five fields ({named}), found {len(fields)}"
    for text, (name, least, greatest, names, first) in zip(fields, _FIELDS, strict=True):
        for part in text.split(","):
            if not _is_part(part, least, greatest, names, first):
                return f"schedule {schedule!r}: {name} cannot be {part!r} ({least} to {greatest})"
    return None


def _is_part(part: str, least: int, greatest: int, names: tuple[str, ...], first: int) -> bool:
    match = _PART.fullmatch(part)
    if match is None:
        return False
    star, start, end, step = match.groups()
    if step is not None and int(step) == 0:
        return False
    if star:
        return True
    numbers = [_number(word, names, first) for word in (start, end) if word is not None]
    if any(number is None or not least <= number <= greatest for number in numbers):
        return False
    return len(numbers) < 2 or (numbers[0] or 0) <= (numbers[1] or 0)


def _number(word: str, names: tuple[str, ...], first: int) -> int | None:
    if word.isdigit():
        return int(word)
    return names.index(word.upper()) + first if word.upper() in names else None
