"""state.db that cannot be opened or written: nothing stops, it is said once, and written when it can be."""

from __future__ import annotations

import asyncio
import resource
import sqlite3
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from flexinfer.clock import SystemClock
from flexinfer.fleet import DemandLease
from flexinfer.places import Home
from flexinfer.resources.model import ModelStatus
from flexinfer_operator.local.desk import MAX_STARTS, Desk
from flexinfer_operator.local.ledger import (
    ColdStartRecord,
    KnownModel,
    Ledger,
    machine_name,
    read_state,
)
from flexinfer_operator.testing.world import LocalWorld

Logs = list[MutableMapping[str, Any]]


def said(logs: Logs, event: str) -> int:
    return sum(one["event"] == event for one in logs)


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not holds():
            await asyncio.sleep(0.005)


@contextmanager
def held(path: Path) -> Iterator[None]:
    """Another program holds the database."""
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        yield
        other.execute("ROLLBACK")


@contextmanager
def away(path: Path) -> Iterator[None]:
    """Something else lies where the database was."""
    aside = path.rename(path.with_name("away.db"))
    path.mkdir()
    yield
    path.rmdir()
    aside.rename(path)


@contextmanager
def unreadable_starts(path: Path) -> Iterator[None]:
    """A row of earlier starts has bytes that are no text: they can be added to, and not be read."""

    def name(replica: bytes) -> None:
        with closing(sqlite3.connect(path)) as other, other:
            other.execute("UPDATE cold_starts SET replica = CAST(? AS TEXT)", (replica,))

    name(b"\xff")
    yield
    name(b"r0")


@contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    """No file grows beyond *size*: what a full disk is to who writes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def known(message: str = "") -> KnownModel:
    return KnownModel(
        spec_hash="h", generation=1, created_unix_s=1, status=ModelStatus(message=message)
    )


def start(number: int) -> ColdStartRecord:
    return ColdStartRecord(
        digest="d", replica=f"r{number}", at_unix_s=number, phases={"load": float(number)}
    )


def play(home: Home, scene: Callable[[LocalWorld], Awaitable[None]]) -> None:
    async def whole() -> None:
        async with LocalWorld(home, loop=True) as world:
            await scene(world)

    asyncio.run(whole())


async def serve(world: LocalWorld) -> None:
    await world.put("tiny")
    await world.say(DemandLease(router="r", model="tiny", waiting=1, ttl_s=100))
    await world.ready("tiny")
    await world.phase("tiny", "Ready")


def test_models_are_served_while_another_program_holds_the_database(home: Home) -> None:
    async def scene(world: LocalWorld) -> None:
        with capture_logs() as logs:
            with held(home.state_db):
                await serve(world)
                await until(lambda: said(logs, "state_db_unavailable") == 1)
            await until(lambda: said(logs, "state_db_available") == 1)
        assert said(logs, "state_db_unavailable") == 1
        shown = [str(one["human"]) for one in logs if one["event"] == "state_db_unavailable"]
        assert "locked" in shown[0] and str(home.state_db) in shown[0]

    play(home, scene)
    kept = read_state(home.state_db, machine=machine_name())
    assert kept.models["tiny"].starts == 1
    (starts,) = kept.starts.values()
    assert len(starts) == 1


def test_an_operator_starts_while_another_program_holds_the_database(home: Home) -> None:
    with closing(Ledger(home.state_db, machine=machine_name())) as ledger:
        ledger.save_all({"old": known()})

    async def scene(world: LocalWorld) -> None:
        await serve(world)

    with held(home.state_db):
        play(home, scene)

    async def again(world: LocalWorld) -> None:
        await world.phase("tiny", "Idle")

    play(home, again)
    assert "tiny" in read_state(home.state_db, machine=machine_name()).models


def test_what_a_full_disk_refused_is_written_once_there_is_room(home: Home) -> None:
    async def scene() -> None:
        desk = Desk(home.state_db, SystemClock())
        await desk.open()
        told: list[str] = []
        with capture_logs() as logs:
            with files_no_larger_than(64 * 1024):
                desk.save("tiny", known("x" * 200_000))
                desk.add(start(1), then=told.append)
                await until(lambda: said(logs, "state_db_unavailable") == 1)
                assert desk.known("tiny") is not None and told == []
            await until(lambda: said(logs, "state_db_available") == 1)
            await until(lambda: told == ["d"])
        await desk.close()

    asyncio.run(scene())
    kept = read_state(home.state_db, machine=machine_name(), digests=["d"])
    assert len(kept.starts["d"]) == 1
    status = kept.models["tiny"].status
    assert status is not None and len(status.message) == 200_000


def test_what_waits_is_bounded_and_the_newest_of_it_is_kept(home: Home) -> None:
    async def scene() -> None:
        desk = Desk(home.state_db, SystemClock())
        await desk.open()
        told: list[str] = []
        with capture_logs() as logs:
            with held(home.state_db):
                desk.add(start(0), then=told.append)
                await until(lambda: said(logs, "state_db_unavailable") == 1)
                for number in range(1, MAX_STARTS + 5):
                    desk.add(start(number), then=told.append)
            await until(lambda: len(told) == MAX_STARTS)
        await desk.close()

    asyncio.run(scene())
    kept = read_state(home.state_db, machine=machine_name(), digests=["d"]).starts["d"]
    assert kept[0].replica == f"r{MAX_STARTS + 4}"


def test_one_that_no_database_takes_holds_no_other(home: Home) -> None:
    """A name with bytes that are no UTF-8 is none, wherever it came from."""

    async def scene() -> None:
        desk = Desk(home.state_db, SystemClock())
        await desk.open()
        with capture_logs() as logs:
            desk.save("bad", replace(known(), file="caf\udce9.yaml"))
            desk.save("good", known())
            await until(lambda: said(logs, "model_not_remembered") == 1)
            desk.add(replace(start(1), replica="r\udce9"), then=lambda _: None)
            await until(lambda: said(logs, "start_not_remembered") == 1)
            desk.save("later", known())
        await desk.close()

    asyncio.run(scene())
    assert set(read_state(home.state_db, machine=machine_name()).models) == {"good", "later"}


def test_closing_gives_up_what_cannot_be_written(home: Home) -> None:
    async def scene() -> None:
        desk = Desk(home.state_db, SystemClock())
        await desk.open()
        with held(home.state_db):
            desk.save("tiny", known())
            async with asyncio.timeout(15):
                await desk.close()

    asyncio.run(scene())
    assert read_state(home.state_db, machine=machine_name()).models == {}


def test_history_that_could_be_read_only_later_does_not_undo_what_was_seen(home: Home) -> None:
    with closing(Ledger(home.state_db, machine=machine_name())) as ledger:
        ledger.save_all({"old": known("before"), "tiny": known("before")})
        ledger.add(start(3))

    async def scene() -> None:
        desk = Desk(home.state_db, SystemClock())
        with capture_logs() as logs:
            with held(home.state_db):
                await desk.open()
                # A database that is only held can still be read: it opens, or it does not.
                desk.save("tiny", known("now"))
                await until(lambda: said(logs, "state_db_unavailable") == 1)
            await until(lambda: said(logs, "state_db_available") == 1)
        assert desk.names() == {"old", "tiny"}
        estimate = desk.estimate("d")
        assert estimate is not None and estimate.p50_s == 3
        await desk.close()

    asyncio.run(scene())
    kept = read_state(home.state_db, machine=machine_name()).models
    assert kept["tiny"] == known("now") and kept["old"] == known("before")


def test_what_was_forgotten_before_the_history_could_be_read_does_not_come_back(
    home: Home,
) -> None:
    with closing(Ledger(home.state_db, machine=machine_name())) as ledger:
        ledger.save_all({"old": known("before"), "tiny": known("before"), "back": known("before")})

    async def scene() -> None:
        desk = Desk(home.state_db, SystemClock())
        with capture_logs() as logs:
            with away(home.state_db):
                await desk.open()
                desk.forget("old")
                desk.forget("back")
                desk.save("back", known("now"))
            await until(lambda: said(logs, "state_db_available") == 1)
        assert desk.names() == {"tiny", "back"}
        await desk.close()

    asyncio.run(scene())
    kept = read_state(home.state_db, machine=machine_name()).models
    assert kept == {"tiny": known("before"), "back": known("now")}


def test_a_start_whose_estimate_could_not_be_read_is_counted_once(home: Home) -> None:
    with closing(Ledger(home.state_db, machine=machine_name())) as ledger:
        ledger.add(start(0))

    async def scene() -> None:
        desk = Desk(home.state_db, SystemClock())
        await desk.open()
        told: list[str] = []
        with capture_logs() as logs:
            with unreadable_starts(home.state_db):
                desk.add(start(1), then=told.append)
                await until(lambda: said(logs, "state_db_unavailable") == 1)
            await until(lambda: told == ["d"])
        estimate = desk.estimate("d")
        assert estimate is not None and estimate.samples == 2
        await desk.close()

    asyncio.run(scene())
    kept = read_state(home.state_db, machine=machine_name(), digests=["d"]).starts["d"]
    assert [one.replica for one in kept] == ["r1", "r0"]


def test_a_start_is_written_whole_or_not_at_all(home: Home) -> None:
    with closing(Ledger(home.state_db, machine=machine_name(), busy_s=0.01)) as ledger:
        with held(home.state_db), pytest.raises(Exception, match="locked") as refused:
            ledger.add(start(1))
        assert getattr(refused.value, "code", "") == "state_db"
        assert ledger.add(start(1)).samples == 1
