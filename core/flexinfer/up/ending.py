"""What is said of a child that cannot be kept running, in the class of its own exit code. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence

from flexinfer.errors import (
    Conflict,
    FlexInferError,
    IntegrityError,
    InvalidInput,
    NotFound,
    ProcessFailed,
    Unauthorized,
    Unavailable,
)
from flexinfer.up.reading import read_line

_LINES = 8
_CLASSES = {
    one.exit_code: one
    for one in (InvalidInput, Unauthorized, NotFound, Conflict, Unavailable, IntegrityError)
}
_LAST_WORD = re.compile(r"error\[(?P<code>[a-z0-9_]+)\]: (?P<message>.+)")


def failure(name: str, *, code: int, times: int, said: Sequence[str]) -> FlexInferError:
    """Return why *name*, which ended *times* times and the last time with *code*, is given up.

    *said*: what it wrote since its last start. An error of ours is repeated as it is; of all else the last lines
    are shown.
    """
    kind = _CLASSES.get(code)
    if (own := own_error(said)) is not None:
        own_code, message = own
        return (kind or ProcessFailed)(f"{name} ended: {message}", code=own_code)
    shown = [text.strip() for raw in said for text in read_line(name, raw).shown][-_LINES:]
    words = "".join(f"\n  {line}" for line in shown) or " it said nothing"
    count = "once" if times == 1 else f"{times} times"
    text = f"{name} ended {count}, last with {code}:{words}"
    return kind(text) if kind is not None else ProcessFailed(text, code="service_failed")


def own_error(said: Sequence[str]) -> tuple[str, str] | None:
    """Return code and message of the last error that one of our programs told in *said*; None: it told none."""
    own = [match for line in said if (match := _LAST_WORD.fullmatch(line.strip()))]
    return (own[-1]["code"], own[-1]["message"]) if own else None
