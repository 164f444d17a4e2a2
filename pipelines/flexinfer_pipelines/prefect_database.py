"""The database of our own Prefect server. It holds the history of runs and nothing else. No Prefect here."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

from flexinfer.databases import is_damaged, put_aside
from flexinfer.errors import ProcessFailed
from flexinfer.files import disk_error
from flexinfer.log import get_logger
from flexinfer.places import Home

log = get_logger(__name__)
VARIABLE = "PREFECT_API_DATABASE_CONNECTION_URL"
MAX_ASIDE = 5
# A database of this size is checked whole within a second; of a larger one, what describes its tables.
WHOLE_BYTES = 64 * 1024 * 1024
_BUSY_S = 1.0
# How SQLite begins what it says of pages; the rest of a check is about what the tables' rows should hold.
_OF_PAGES = "***"


def file(home: Home) -> Path:
    return home.prefect / "prefect.db"


def url(home: Home) -> str:
    """Return how Prefect is told of it."""
    return f"sqlite+aiosqlite:///{file(home)}"


def is_ours(home: Home, environ: Mapping[str, str]) -> bool:
    """Return whether our server will use it: the user may have named another one."""
    return environ.get(VARIABLE, url(home)) == url(home)


def remedy(home: Home, environ: Mapping[str, str]) -> str:
    """Return where the database is and what to do with it when the server cannot start."""
    if not is_ours(home, environ):
        return f"its database is the one of {VARIABLE}"  # which may hold a password
    return (
        f"its database is {file(home)}: to begin with a new one, delete the folder {home.prefect}; "
        "only the history of runs is lost"
    )


def put_damaged_aside(path: Path, *, whole_bytes: int = WHOLE_BYTES) -> Path | None:
    """Rename the database if SQLite says that it is none, or malformed; return its new name. None: it is good.

    For who holds the server's lock. Up to *whole_bytes* the whole database is read.

    Raises:
        ProcessFailed: code `prefect_failed`: MAX_ASIDE are there already.
        ResourceExhausted: code `disk_error`: it cannot be renamed.
    """
    why = _damage(path, whole_bytes=whole_bytes)
    if not why:
        return None
    try:
        aside = put_aside(path, most=MAX_ASIDE)
    except OSError as error:
        raise disk_error(error, path=path) from error
    if aside is None:
        raise ProcessFailed(
            f"Prefect cannot start: {path}: {why}; {MAX_ASIDE} broken ones lie beside it already: remove some",
            code="prefect_failed",
        )
    log.warning(
        "prefect_db_put_aside",
        path=str(path),
        aside=str(aside),
        error=why,
        human=f"Prefect's database {path} is damaged ({why}): put aside as {aside.name}; the history of runs "
        "begins anew",
    )
    return aside


def _damage(path: Path, *, whole_bytes: int) -> str:
    """Return what SQLite says against the file itself; empty: nothing, or the server's own to report."""
    try:
        size = path.stat().st_size
    except OSError:
        return ""
    try:
        # Read-only: what can be written, SQLite would mend, and delete the log of writes of what it cannot read.
        address = f"{path.as_uri()}?mode=ro"
        with closing(sqlite3.connect(address, uri=True, timeout=_BUSY_S)) as db:
            db.execute("SELECT count(*) FROM sqlite_master").fetchone()
            if size <= whole_bytes:
                found = str(db.execute("PRAGMA quick_check(1)").fetchone()[0])
                return " ".join(found.split()) if found.startswith(_OF_PAGES) else ""
    except sqlite3.DatabaseError as error:
        return str(error) if is_damaged(error) else ""
    return ""
