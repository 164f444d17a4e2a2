"""The processes of a folder of records that are alive."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from flexinfer.errors import InvalidInput
from flexinfer.process.adoption import is_alive
from flexinfer.process.record import Record

MAX_RECORDS = 200
"""More than one machine runs."""


def living(folder: Path) -> Iterator[Record]:
    """Yield the records `*.json` of *folder* whose process is alive, by name.

    One that cannot be read is left out: its writer was killed while writing, or its owner deals with it.
    """
    for file in sorted(folder.glob("*.json"))[:MAX_RECORDS] if folder.is_dir() else ():
        try:
            record = Record.read(file)
            if record is None or not is_alive(record):
                continue
        except (InvalidInput, OSError):
            continue
        yield record
