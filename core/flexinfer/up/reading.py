"""Logs as people read them: one event a line, exceptions as tracebacks, several logs in the order of time. Pure."""

from __future__ import annotations

import heapq
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flexinfer.printable import one_line

_NOT_FIELDS = frozenset(
    {"event", "level", "logger", "timestamp", "human", "exception", "exc_info", "stack"}
)
# What these say below a warning is about themselves: a database's hundred migrations, a worker's task list.
_ROUTINE = ("alembic.", "docket.")
_ECHOES = (
    "Finished in state Failed(",
    "Encountered exception during execution:",
    "Task run failed with exception:",
)
# `log.format = console`.
_CONSOLE = re.compile(
    r"(?P<at>\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3,9}Z) \[(?P<level>[a-z]+) *\] (?P<rest>.*)",
    re.DOTALL,
)
_QUIET_LEVELS = ("debug", "info")
_LONGEST = 2000
_MAX_FRAMES = 20
_ENGINE = re.compile(r"engine-(?P<model>.+)-[0-9a-f]{6}-[0-9]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """One line of a log."""

    at: str
    """RFC 3339, UTC; empty: the line does not say."""
    log: str
    raw: str
    shown: tuple[str, ...]
    is_routine: bool = False


def read_line(log: str, raw: str) -> Said:
    """Return what the line *raw* of the log named *log* says, readable, and free of control characters."""
    try:
        event = json.loads(raw)
        at, level, what = str(event["timestamp"]), str(event["level"]), str(event["event"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return _text(log, raw)
    fields = " ".join(f"{k}={v}" for k, v in event.items() if k not in _NOT_FIELDS and v != what)
    head = _clean(f"{_short(at)} {log} {level}: {what} {fields}".rstrip())
    logger = str(event.get("logger", ""))
    return Said(
        at=at,
        log=log,
        raw=raw,
        shown=(head, *(f"    {_clean(line)}" for line in _traceback(event))),
        is_routine=(level in _QUIET_LEVELS and logger.startswith(_ROUTINE)) or is_echo(event),
    )


def is_echo(event: Mapping[str, Any]) -> bool:
    """Return whether Prefect says again how a run or task of ours failed: `build_failed` has said so, once."""
    is_runs = event.get("logger") in ("prefect.flow_runs", "prefect.task_runs")
    return is_runs and str(event.get("event")).startswith(_ECHOES)


def timed(lines: Iterable[Said], *, before: str) -> list[tuple[str, Said]]:
    """Return the lines of one log with when each was written, ascending.

    A line that does not say it belongs to the one before it, the first ones to the one after them; *before*: when
    the log was last written, for a log in which none says it.
    """
    found = list(lines)
    at = next((line.at for line in found if line.at), before)
    with_times = []
    for line in found:
        at = max(at, line.at)
        with_times.append((at, line))
    return with_times


def merged(logs: Sequence[Sequence[tuple[str, Said]]], *, last: int) -> list[Said]:
    """Return the *last* lines of all *logs*, in the order of time; what belongs together stays together."""
    ordered = heapq.merge(*logs, key=lambda one: one[0])
    found = [line for _, line in ordered]
    return found[-last:]


def engine_logs(model: str, logs: Iterable[str]) -> tuple[str, ...]:
    """Return which of *logs* are those of *model*'s engines."""
    return tuple(
        log for log in logs if (match := _ENGINE.fullmatch(log)) and match["model"] == model
    )


def models_with_logs(logs: Iterable[str]) -> tuple[str, ...]:
    """Return the Models that have an engine's log among *logs*."""
    matches = (_ENGINE.fullmatch(log) for log in logs)
    return tuple(sorted({match["model"] for match in matches if match}))


def _text(log: str, raw: str) -> Said:
    """Return a line that is no event of ours: as text, or a library's own."""
    match = _CONSOLE.fullmatch(raw)
    if match is None:
        return Said(at="", log=log, raw=raw, shown=(_clean(f"{'':18} {log}: {raw}"),))
    shown = _clean(f"{_short(match['at'])} {log} {match['level']}: {match['rest'].strip()}")
    return Said(at=match["at"], log=log, raw=raw, shown=(shown,))


def _short(at: str) -> str:
    """Return `11-24 16:22:01.463` of an RFC 3339 time."""
    return f"{at[5:10]} {at[11:23]}" if len(at) >= 23 else at


def _traceback(event: Mapping[str, Any]) -> Iterator[str]:
    """Yield an exception, the one that was raised first, each with where it came from."""
    raised = event.get("exception")
    if isinstance(raised, str):
        yield from raised.splitlines()
    if not isinstance(raised, list):
        return
    for number, one in enumerate(raised):
        if not isinstance(one, dict):
            continue
        caused = "" if number == 0 else "caused by " if one.get("is_cause") else "while handling "
        yield f"{caused}{one.get('exc_type')}: {one.get('exc_value')}"
        frames = one.get("frames")
        kept = [frame for frame in frames if isinstance(frame, dict)] if frames else []
        if len(kept) > _MAX_FRAMES:
            yield f"  … {len(kept) - _MAX_FRAMES} frames left out"
        for frame in kept[-_MAX_FRAMES:]:
            yield f"  {frame.get('filename')}:{frame.get('lineno')} in {frame.get('name')}"


def _clean(text: str) -> str:
    """One line, no control characters: a log may hold what a stranger sent."""
    return one_line(text, most=_LONGEST)
