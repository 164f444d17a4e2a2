"""SQLite files that hold history only: a damaged one is put aside and begun anew, never deleted."""

from __future__ import annotations

import sqlite3
from pathlib import Path


def is_damaged(error: sqlite3.DatabaseError) -> bool:
    """Say whether the file itself is at fault. Extended codes hold the primary one in their low byte."""
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def put_aside(path: Path, *, most: int) -> Path | None:
    """Rename the database, over nothing that was put aside before, and return its new name.

    None: *most* lie there already, and nothing was done.

    Raises:
        OSError: it cannot be renamed.
    """
    names = [f"{path.name}.broken", *(f"{path.name}.broken.{n}" for n in range(2, most + 1))]
    taken = {entry.name for entry in path.parent.iterdir()}
    free = [
        name for name in names if not taken & {name + suffix for suffix in ("", "-wal", "-shm")}
    ]
    if not free:
        return None
    aside = path.with_name(free[0])
    # The database last: beside a new one, an old log of writes would be taken for its own.
    for suffix in ("-wal", "-shm", ""):
        found = path.with_name(path.name + suffix)
        if found.exists():
            found.rename(aside.with_name(aside.name + suffix))
    return aside
