"""The operator's own end: killed, terminated, orphaned. Engines are adopted or ended, never lost."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from flexinfer.fleet import DemandLease
from flexinfer.places import Home
from flexinfer.process import Record, is_alive
from flexinfer.store import Store
from flexinfer_operator.plan.view import ReplicaView
from flexinfer_operator.testing.world import LocalWorld, write_file, write_model

PROGRAM = (sys.executable, "-m", "flexinfer_operator.testing.local_operator")
LIMIT_S = 20.0


@pytest.fixture
def operators(home: Home) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Operators that a test started; what is left of them and their engines is ended."""
    started: list[subprocess.Popen[bytes]] = []
    yield started
    for operator in started:
        if operator.poll() is None:
            operator.kill()
        operator.wait(LIMIT_S)
    for record in records(home):
        if is_alive(record):
            os.killpg(record.pid, signal.SIGKILL)


def start(home: Home, operators: list[subprocess.Popen[bytes]], **options: object) -> None:
    with open(home.logs / "operator.log", "ab") as log:
        command = [*PROGRAM, str(home.root)]
        operators.append(subprocess.Popen(command, stdout=log, stderr=log, **options))  # type: ignore[call-overload]


def records(home: Home) -> list[Record]:
    found = [Record.read(file) for file in sorted((home.replica_records).glob("*.json"))]
    return [record for record in found if record is not None]


async def one_record(home: Home) -> Record:
    """The record of the one engine, once it is there."""
    async with asyncio.timeout(LIMIT_S):
        while not (found := records(home)):
            await asyncio.sleep(0.01)
    return found[0]


async def dead(record: Record) -> None:
    async with asyncio.timeout(LIMIT_S):
        while is_alive(record):
            await asyncio.sleep(0.01)


def standing(home: Home, operators: list[subprocess.Popen[bytes]]) -> Record:
    """A running operator with one engine; its record."""
    write_model(home, "tiny", serverless={"minReplicas": 1})
    start(home, operators)
    return asyncio.run(one_record(home))


def killed(home: Home, operators: list[subprocess.Popen[bytes]]) -> Record:
    """What an operator leaves that was killed with one engine."""
    record = standing(home, operators)
    operators[0].kill()
    operators[0].wait(LIMIT_S)
    assert is_alive(record)
    return record


def test_a_killed_operators_engine_is_adopted_with_its_key(
    home: Home, operators: list[subprocess.Popen[bytes]]
) -> None:
    record = killed(home, operators)

    async def scene() -> tuple[ReplicaView, ...]:
        async with LocalWorld(home, loop=True) as world:
            found = await world.ready("tiny")
            await world.say(DemandLease(router="r", model="tiny", in_flight={found[0].id: 1}))
            assert is_alive(record)
            return found

    (replica,) = asyncio.run(scene())
    assert replica.id == record.name and replica.url == record.extra["url"]
    assert len(replica.key) >= 32
    assert not is_alive(record)  # closing ended it


def test_an_engine_without_an_operator_holds_its_artifact(
    home: Home, operators: list[subprocess.Popen[bytes]]
) -> None:
    record = killed(home, operators)
    store = Store(home.store)
    assert store.leased() == {record.extra["digest"]}
    assert store.collect_partials(0).checkouts == 0
    os.killpg(record.pid, signal.SIGKILL)
    asyncio.run(dead(record))
    assert store.leased() == frozenset()


def test_an_adopted_engine_of_an_old_revision_is_replaced(
    home: Home, operators: list[subprocess.Popen[bytes]]
) -> None:
    record = killed(home, operators)
    write_model(home, "tiny", serverless={"minReplicas": 1}, config={"slots": 9})

    async def scene() -> None:
        async with LocalWorld(home, loop=True) as world:
            await world.until(
                "both",
                lambda p: {one.state for one in p.replicas if one.id != record.name} == {"ready"},
            )
            await world.say(DemandLease(router="r", model="tiny", generation=2**62))
            await dead(record)
            (left,) = await world.ready("tiny")
            assert left.id != record.name

    asyncio.run(scene())


def test_an_engine_whose_model_is_gone_is_ended_at_the_next_start(
    home: Home, operators: list[subprocess.Popen[bytes]]
) -> None:
    record = killed(home, operators)
    (home.models / "tiny.yaml").unlink()

    async def scene() -> None:
        async with LocalWorld(home) as world:
            assert world.cluster.observe().replicas == ()

    asyncio.run(scene())
    assert not is_alive(record) and records(home) == []


def test_an_engine_that_was_never_written_down_is_ended_too(
    home: Home, operators: list[subprocess.Popen[bytes]]
) -> None:
    record = killed(home, operators)
    for file in (home.replica_records).glob("*.json"):
        file.unlink()
    write_file(home, "tiny", source=f"file://{home.work}/tiny.gguf")

    async def scene() -> None:
        async with LocalWorld(home):
            pass

    asyncio.run(scene())
    assert not is_alive(record)


def test_a_record_that_cannot_be_read_hinders_nobody(home: Home) -> None:
    folder = home.replica_records
    folder.mkdir()
    (folder / "broken.json").write_text('{"pid": 1')

    async def scene() -> None:
        async with LocalWorld(home) as world:
            await world.put("tiny")

    asyncio.run(scene())
    assert not (folder / "broken.json").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_engines_and_operator(
    home: Home, operators: list[subprocess.Popen[bytes]], number: int
) -> None:
    record = standing(home, operators)
    operators[0].send_signal(number)
    assert operators[0].wait(LIMIT_S) == 0
    assert not is_alive(record) and records(home) == []


def test_the_end_of_the_parent_ends_engines_and_operator(
    home: Home, operators: list[subprocess.Popen[bytes]]
) -> None:
    write_model(home, "tiny", serverless={"minReplicas": 1})
    read, write = os.pipe()
    environment = {**os.environ, "FLEXINFER_LIFELINE": str(read)}
    start(home, operators, pass_fds=(read,), env=environment)
    os.close(read)
    record = asyncio.run(one_record(home))
    os.close(write)
    assert operators[0].wait(LIMIT_S) == 0
    assert not is_alive(record)


def test_a_second_operator_of_the_same_home_is_refused(
    home: Home, operators: list[subprocess.Popen[bytes]]
) -> None:
    standing(home, operators)
    start(home, operators)
    assert operators[1].wait(LIMIT_S) != 0
    log = Path(home.logs / "operator.log").read_text()
    assert "already running" in log and str(operators[0].pid) in log
    assert operators[0].poll() is None
