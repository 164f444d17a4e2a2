"""The logs that engines leave behind: the newest few of each Model are kept."""

from __future__ import annotations

import re
from collections.abc import Container, Sequence
from pathlib import Path

from flexinfer.printable import one_line

MAX_LOGS = 5
_MAX_LAST_WORDS = 300
_NAME = re.compile(r"engine-(?P<replica>(?P<model>.+)-[0-9a-f]{6}-[0-9]+)\.log(\.1)?")


def prune_logs(folder: Path, model: str, *, running: Container[str]) -> None:
    """Remove the logs of *model*'s replicas but for the newest ones and those that are *running*."""
    found: list[tuple[float, Path]] = []
    try:
        for file in folder.iterdir():
            match = _NAME.fullmatch(file.name)
            if match and match["model"] == model and match["replica"] not in running:
                found.append((file.stat().st_mtime, file))
    except OSError:
        return  # another time
    for _, file in sorted(found, reverse=True)[MAX_LOGS:]:
        file.unlink(missing_ok=True)


def last_words(lines: Sequence[str]) -> str:
    """Return the last of *lines* that says something, short and in one line; empty: none does."""
    for line in reversed(lines):
        plain = one_line(line.strip(), most=_MAX_LAST_WORDS).strip()
        if plain:
            return plain
    return ""
