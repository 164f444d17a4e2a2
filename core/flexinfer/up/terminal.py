"""The children's logs as one readable terminal: what is meant for people, warnings and errors."""

from __future__ import annotations

import json
import os
import select
import shutil
import stat
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flexinfer.printable import one_line
from flexinfer.process import LogReader
from flexinfer.up.reading import is_echo

_SHOWN_LEVELS = ("warning", "error", "critical")
_HIDDEN_FIELDS = {"event", "level", "logger", "timestamp", "human", "exception", "stack"}
_LONGEST = 400


def render(name: str, line: str) -> str | None:
    """Return what a person sees of one log line of child *name*; None: nothing."""
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None  # a library's own output: it is in the log file
    if not isinstance(event, dict):
        return None
    if human := event.get("human"):
        return _clean(str(human))
    if event.get("level") not in _SHOWN_LEVELS or is_echo(event):
        return None
    return _clean(f"{name}: {event.get('event', '')}{_fields(event)}{_cause(event)}")


def installing(line: str) -> str:
    """Return what a person sees of a line of pip's: what is fetched and how much it is; empty: nothing."""
    match line.split():
        case ["Collecting", what, *_]:
            return f"looking for {what}"
        case ["Downloading", file, *size]:
            name, _, rest = file.rpartition("/")[2].partition("-")
            return " ".join(("fetching", name, rest.partition("-")[0], *size))
        case ["Installing", "collected", "packages:", *names]:
            return f"unpacking {', '.join(name.rstrip(',') for name in names[:8])}"
        case _:
            return ""


def _fields(event: dict[str, Any]) -> str:
    shown = [f"{k}={v}" for k, v in event.items() if k not in _HIDDEN_FIELDS]
    return f" ({', '.join(shown)})" if shown else ""


def _cause(event: dict[str, Any]) -> str:
    raised = event.get("exception")
    if isinstance(raised, list) and raised and isinstance(raised[0], dict):
        return f": {raised[0].get('exc_type')}: {raised[0].get('exc_value')}"
    return ""


def _clean(text: str) -> str:
    """One line, no control characters: a log may hold what a stranger sent."""
    return one_line(text, most=_LONGEST)


def last_lines(reader: LogReader | None, *, lines: int = 50) -> tuple[str, ...]:
    """Return the last *lines* that *reader* has not given yet; of a flood those of its first 32 MiB."""
    found: list[str] = []
    for _ in range(32):
        found = [*found, *(reader.read() if reader is not None else ())][-lines:]
        if reader is None or not reader.is_behind:
            break
    return tuple(found)


class Terminal:
    """Standard output, for as long as somebody reads it."""

    def __init__(self) -> None:
        self.has_left = False
        """Its reader went away, as `| head` does. A terminal that hung up is told by a signal instead."""

    def say(self, line: str) -> None:
        """Print *line* at once. Where that fails, this and all after it goes nowhere: models are served on."""
        try:
            print(line, flush=True)
        except OSError as error:
            self.has_left = self.has_left or isinstance(error, BrokenPipeError)
            descriptor = os.open(os.devnull, os.O_WRONLY)
            os.dup2(descriptor, sys.stdout.fileno())
            os.close(descriptor)

    def look(self) -> bool:
        """Return whether the reader has left, also while there is nothing to say."""
        if not self.has_left and stat.S_ISFIFO(os.fstat(sys.stdout.fileno()).st_mode):
            poll = select.poll()
            poll.register(sys.stdout.fileno(), 0)
            self.has_left = any(events & select.POLLERR for _, events in poll.poll(0))
        return self.has_left


@dataclass(slots=True)
class Follower:
    """Follows the log of one child from its present end."""

    name: str
    reader: LogReader

    @classmethod
    def at_end(cls, name: str, path: Path) -> Follower:
        return cls(name, LogReader(path, at_end=True))

    def new_lines(self) -> list[str]:
        """Return what there is to show since the last call."""
        shown = (render(self.name, line) for line in self.reader.read())
        return [line for line in shown if line is not None]


def own_name() -> str:
    """Return how the user can call us from where they are."""
    if shutil.which("flexinfer"):
        return "flexinfer"
    script = Path(sys.executable).parent / "flexinfer"
    with suppress(ValueError):
        return (
            os.path.relpath(script)
            if len(os.path.relpath(script)) < len(str(script))
            else str(script)
        )
    return str(script)
