"""Prefect's database is put aside when SQLite calls it damaged, and only then."""

from __future__ import annotations

import random
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from flexinfer.errors import ProcessFailed
from flexinfer.places import Home
from flexinfer_pipelines.prefect_database import (
    MAX_ASIDE,
    VARIABLE,
    file,
    is_ours,
    put_damaged_aside,
    remedy,
    url,
)


@pytest.fixture
def path(home: Home) -> Path:
    """A database of a few pages."""
    path = file(home)
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("CREATE TABLE runs (name TEXT NOT NULL)")
        db.executemany("INSERT INTO runs VALUES (?)", [("x" * 100,) for _ in range(500)])
    return path


def names(path: Path) -> set[str]:
    return {one.name for one in path.parent.iterdir()}


def test_what_is_no_database_is_put_aside_with_its_log_of_writes(home: Home) -> None:
    path = file(home)
    data = random.Random(1).randbytes(3000)
    path.write_bytes(data)
    for suffix in ("-wal", "-shm"):
        path.with_name(path.name + suffix).write_bytes(b"its")
    aside = put_damaged_aside(path)
    assert aside is not None and aside.read_bytes() == data
    assert names(path) == {f"prefect.db.broken{suffix}" for suffix in ("", "-wal", "-shm")}


def test_a_malformed_one_is_put_aside(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[100:4096] = b"\xff" * 3996  # what describes its tables
    path.write_bytes(data)
    assert put_damaged_aside(path, whole_bytes=0) is not None


def test_one_that_is_damaged_inside_is_put_aside_unless_it_is_large(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[8192:12288] = b"\xff" * 4096
    path.write_bytes(data)
    assert put_damaged_aside(path, whole_bytes=len(data) - 1) is None
    assert path.exists()
    assert put_damaged_aside(path, whole_bytes=len(data)) is not None


def test_a_cut_one_is_put_aside(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5000])
    assert put_damaged_aside(path) is not None


def test_a_good_one_stays(path: Path) -> None:
    before = path.read_bytes()
    assert put_damaged_aside(path) is None
    assert path.read_bytes() == before


def test_rows_that_break_a_rule_are_no_damage(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("CREATE TABLE rules (n INTEGER)")
        db.execute("INSERT INTO rules VALUES (NULL)")
        db.execute("PRAGMA writable_schema=ON")
        db.execute(
            "UPDATE sqlite_master SET sql = 'CREATE TABLE rules (n INTEGER NOT NULL)' WHERE name = 'rules'"
        )
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA quick_check").fetchone() == ("NULL value in rules.n",)
    assert put_damaged_aside(path) is None


def test_one_that_another_program_holds_stays(path: Path) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("PRAGMA locking_mode=EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        assert put_damaged_aside(path) is None
    assert path.exists()


def test_none_is_made_where_none_is(home: Home) -> None:
    path = file(home)
    assert put_damaged_aside(path) is None
    path.mkdir()
    assert put_damaged_aside(path) is None
    assert path.is_dir()


def test_those_put_aside_never_replace_one_another(home: Home) -> None:
    path = file(home)
    for number in range(MAX_ASIDE):
        path.write_bytes(b"no database %d" % number * 100)
        assert put_damaged_aside(path) is not None
    assert len(names(path)) == MAX_ASIDE
    path.write_bytes(b"one more" * 100)
    with pytest.raises(ProcessFailed, match="remove some") as refused:
        put_damaged_aside(path)
    assert refused.value.code == "prefect_failed"
    assert path.read_bytes() == b"one more" * 100


def test_a_database_of_the_users_own_is_not_ours_and_not_told(home: Home) -> None:
    theirs = {VARIABLE: "postgresql+asyncpg://me:secret@db/prefect"}
    assert not is_ours(home, theirs)
    assert "secret" not in remedy(home, theirs)
    assert is_ours(home, {}) and is_ours(home, {VARIABLE: url(home)})
    assert str(file(home)) in remedy(home, {})
