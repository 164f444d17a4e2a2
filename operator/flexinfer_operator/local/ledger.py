"""What was observed, kept over restarts: statuses, generations, and how long starts took. `state.db`, SQLite.

Nothing here is the truth of anything but history: a database that cannot be read is put aside and begun anew.
Readers in other processes (`flexinfer model`) open it read-only.
"""

from __future__ import annotations

import os
import platform
import sqlite3
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from flexinfer.databases import is_damaged, put_aside
from flexinfer.errors import ResourceExhausted
from flexinfer.log import get_logger
from flexinfer.resources.model import Model, ModelStatus
from flexinfer_operator.plan.view import ColdStarts

log = get_logger(__name__)

P = TypeVar("P", bound=BaseModel)

VERSION = 1
PHASES = ("fetch", "verify", "start", "load", "first_token")
# Starts kept for each artifact and machine, and those of them that the estimate is made from.
MAX_KEPT = 200
MAX_USED = 20
# Broken databases kept beside the good one.
MAX_ASIDE = 20
# Another program may hold it for a moment. Who writes tries again anyway.
_BUSY_S = 1.0
# Databases of before them are given them. Whoever does not know them writes and reads all the rest, so it is no new
# version.
_ADDED = ("file", "model")
_ADD = "ALTER TABLE models ADD COLUMN {} TEXT NOT NULL DEFAULT ''"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS models (
    name TEXT PRIMARY KEY, spec_hash TEXT NOT NULL, generation INTEGER NOT NULL,
    created_unix_s INTEGER NOT NULL, starts INTEGER NOT NULL DEFAULT 0, status TEXT NOT NULL DEFAULT '',
    file TEXT NOT NULL DEFAULT '', model TEXT NOT NULL DEFAULT ''
) STRICT;
CREATE TABLE IF NOT EXISTS cold_starts (
    id INTEGER PRIMARY KEY, digest TEXT NOT NULL, machine TEXT NOT NULL, at_unix_s REAL NOT NULL,
    replica TEXT NOT NULL, fetch REAL NOT NULL, verify REAL NOT NULL, start REAL NOT NULL, load REAL NOT NULL,
    first_token REAL NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX IF NOT EXISTS cold_starts_of ON cold_starts (digest, machine, id);
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownModel:
    """What is remembered of a Model."""

    spec_hash: str
    generation: int
    created_unix_s: int
    starts: int = 0
    status: ModelStatus | None = None
    file: str = ""
    """The name of the file in `models/` that defines it; empty: it was remembered before that was kept."""
    model: Model | None = None
    """Its last good state: it holds while the file is refused. None: remembered before that was kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ColdStartRecord:
    """One start that came to be ready. `phases`: seconds of each of PHASES; what is absent took none."""

    digest: str
    replica: str
    at_unix_s: float
    phases: Mapping[str, float] = field(default_factory=dict)

    @property
    def total_s(self) -> float:
        """Seconds until the replica was ready; the first token is the router's to add."""
        return sum(s for name, s in self.phases.items() if name != "first_token")


def machine_name() -> str:
    """Return what tells this machine's starts from those of another one with the same home."""
    return f"{platform.node()}/{platform.machine()}/{os.cpu_count()}"


class _Unknown(sqlite3.DatabaseError):
    """The file can be read, and holds what this program cannot use."""


def _is_broken(error: sqlite3.DatabaseError) -> bool:
    """Say whether the file itself is at fault."""
    return isinstance(error, _Unknown) or is_damaged(error)


def _put_aside(path: Path, why: str) -> None:
    """Rename the database, over nothing that was put aside before.

    Raises:
        ResourceExhausted: code `state_db`: MAX_ASIDE are there already.
    """
    aside = put_aside(path, most=MAX_ASIDE)
    if aside is None:
        raise ResourceExhausted(
            f"{path}: {why}; {MAX_ASIDE} broken ones lie beside it already: remove some",
            code="state_db",
        )
    log.error("state_db_put_aside", path=str(path), aside=str(aside), error=why)


class Ledger:
    """The database at *path*. Blocking; for one thread.

    Every method may raise what the making of one does, and has written nothing then.

    Raises:
        ResourceExhausted: code `state_db`: the disk refuses, or another program held it for *busy_s*.
    """

    def __init__(self, path: Path, *, machine: str, busy_s: float = _BUSY_S) -> None:
        self._path = path
        self._machine = machine
        self._busy_s = busy_s
        try:
            try:
                self._db = self._opened()
            except sqlite3.DatabaseError as error:
                if not _is_broken(error):  # locked, or the disk refuses: what it holds is good
                    raise
                _put_aside(path, str(error))
                self._db = self._opened()
        except (sqlite3.Error, OSError) as error:
            raise ResourceExhausted(f"{path}: {error}", code="state_db") from error

    def _opened(self) -> sqlite3.Connection:
        db = sqlite3.connect(self._path, timeout=self._busy_s, check_same_thread=False)
        try:
            os.chmod(self._path, 0o600)
            db.execute("PRAGMA journal_mode=WAL")
            # A crash of the machine may lose the last moments, never the file.
            db.execute("PRAGMA synchronous=NORMAL")
            version = int(db.execute("PRAGMA user_version").fetchone()[0])
            if version not in (0, VERSION):
                raise _Unknown(f"version {version}, expected {VERSION}")
            # What is damaged inside is found now, not by the first who reads there.
            found = str(db.execute("PRAGMA quick_check(1)").fetchone()[0])
            if found != "ok":
                raise _Unknown(found)
            db.executescript(_SCHEMA)
            for column in set(_ADDED) - _columns(db):
                db.execute(_ADD.format(column))
            db.execute(f"PRAGMA user_version={VERSION}")
            db.commit()
        except BaseException:
            db.close()
            raise
        return db

    def close(self) -> None:
        self._db.close()

    def models(self) -> dict[str, KnownModel]:
        with self._told():
            return _models(self._db)

    def estimates(self) -> dict[str, ColdStarts]:
        """Return what starts take here, by artifact."""
        with self._told():
            digests = self._db.execute(
                "SELECT DISTINCT digest FROM cold_starts WHERE machine = ?", (self._machine,)
            ).fetchall()
            return {digest: self._estimate(digest) for (digest,) in digests}

    def save_all(self, models: Mapping[str, KnownModel | None]) -> None:
        """Remember Models, whole; None: forget it. All of them or none."""
        gone = [(name,) for name, known in models.items() if known is None]
        rows = [_row(name, known) for name, known in models.items() if known is not None]
        with self._told(), self._db:
            self._db.executemany("DELETE FROM models WHERE name = ?", gone)
            self._db.executemany(
                "INSERT INTO models"
                " (name, spec_hash, generation, created_unix_s, starts, status, file, model)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (name) DO UPDATE SET"
                " spec_hash=excluded.spec_hash, generation=excluded.generation,"
                " created_unix_s=excluded.created_unix_s, starts=excluded.starts,"
                " status=excluded.status, file=excluded.file, model=excluded.model",
                rows,
            )

    def add(self, start: ColdStartRecord) -> ColdStarts:
        """Remember one start and return what its artifact's starts take now."""
        values = [max(0.0, float(start.phases.get(name, 0.0))) for name in PHASES]
        with self._told(), self._db:
            self._db.execute(
                "INSERT INTO cold_starts (digest, machine, replica, at_unix_s, fetch, verify, start,"
                " load, first_token) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (start.digest, self._machine, start.replica, start.at_unix_s, *values),
            )
            self._db.execute(
                "DELETE FROM cold_starts WHERE digest = ? AND machine = ? AND id NOT IN (SELECT id"
                " FROM cold_starts WHERE digest = ? AND machine = ? ORDER BY id DESC LIMIT ?)",
                (start.digest, self._machine, start.digest, self._machine, MAX_KEPT),
            )
            # Before the commit: who is told that it failed adds the start again.
            return self._estimate(start.digest)

    def first_token(self, replica: str, digest: str, seconds: float) -> ColdStarts:
        """Add what a router measured to the newest start of *replica*; return what its artifact's starts take."""
        with self._told(), self._db:
            self._db.execute(
                "UPDATE cold_starts SET first_token = ? WHERE id = (SELECT MAX(id) FROM cold_starts"
                " WHERE replica = ? AND machine = ?)",
                (max(0.0, seconds), replica, self._machine),
            )
            return self._estimate(digest)

    def _estimate(self, digest: str) -> ColdStarts:
        return summarize(_starts(self._db, digest, self._machine, MAX_USED))

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise ResourceExhausted(f"{self._path}: {error}", code="state_db") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What another process reads of the database."""

    models: Mapping[str, KnownModel] = field(default_factory=dict)
    starts: Mapping[str, tuple[ColdStartRecord, ...]] = field(default_factory=dict)
    """By digest, newest first."""


def read_state(path: Path, *, machine: str, digests: Iterable[str] | None = None) -> State:
    """Return what the database at *path* holds, without touching it; nothing where there is none.

    *digests*: whose starts are wanted; None: those of all Models.

    Raises:
        ResourceExhausted: code `state_db`: it cannot be read.
    """
    if not path.exists():
        return State()
    try:
        with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=_BUSY_S)) as db:
            models = _models(db)
            named = digests
            if named is None:
                known = [one.status.artifact for one in models.values() if one.status is not None]
                named = {artifact.digest for artifact in known if artifact is not None}
            starts = {digest: _starts(db, digest, machine, MAX_USED) for digest in named}
            return State(models=models, starts=starts)
    except sqlite3.Error as error:
        raise ResourceExhausted(f"{path}: {error}", code="state_db") from error


def summarize(starts: Sequence[ColdStartRecord]) -> ColdStarts:
    """Return the median and the 95th percentile of whole starts, and the median of each phase that was measured."""
    if not starts:
        return ColdStarts(samples=0, p50_s=0.0, p95_s=0.0)
    totals = sorted(start.total_s for start in starts)
    measured = {name: [s.phases[name] for s in starts if s.phases.get(name)] for name in PHASES}
    phases = {name: statistics.median(found) for name, found in measured.items() if found}
    return ColdStarts(
        samples=len(starts),
        p50_s=statistics.median(totals),
        p95_s=totals[min(len(totals) - 1, -(-95 * len(totals) // 100) - 1)],
        phases=phases,
    )


def _row(name: str, known: KnownModel) -> tuple[object, ...]:
    status = "" if known.status is None else known.status.model_dump_json(by_alias=True)
    return (
        name,
        known.spec_hash,
        known.generation,
        known.created_unix_s,
        known.starts,
        status,
        known.file,
        "" if known.model is None else known.model.model_dump_json(by_alias=True),
    )


def _models(db: sqlite3.Connection) -> dict[str, KnownModel]:
    found = {}
    there = _columns(db)
    added = ", ".join(column if column in there else "''" for column in _ADDED)
    rows = db.execute(
        f"SELECT name, spec_hash, generation, created_unix_s, starts, status, {added} FROM models"
    )
    for name, spec_hash, generation, created, starts, status, file, model in rows:
        found[str(name)] = KnownModel(
            spec_hash=spec_hash,
            generation=generation,
            created_unix_s=created,
            starts=starts,
            status=_parsed(ModelStatus, status),
            file=file,
            model=_parsed(Model, model),
        )
    return found


def _parsed(kind: type[P], text: str) -> P | None:
    """Return what was written; None: nothing, or by another version of this program, so it is observed anew."""
    try:
        return kind.model_validate_json(text) if text else None
    except ValidationError:
        return None


def _columns(db: sqlite3.Connection) -> set[str]:
    return {str(column[1]) for column in db.execute("PRAGMA table_info(models)")}


def _starts(
    db: sqlite3.Connection, digest: str, machine: str, limit: int
) -> tuple[ColdStartRecord, ...]:
    rows = db.execute(
        "SELECT digest, replica, at_unix_s, fetch, verify, start, load, first_token FROM cold_starts"
        " WHERE digest = ? AND machine = ? ORDER BY id DESC LIMIT ?",
        (digest, machine, limit),
    )
    return tuple(
        ColdStartRecord(
            digest=row[0],
            replica=row[1],
            at_unix_s=row[2],
            phases=dict(zip(PHASES, row[3:], strict=True)),
        )
        for row in rows
    )
