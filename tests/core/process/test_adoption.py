"""A child outlives its supervisor, is found again by its record, and is never mistaken for another."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexinfer.errors import InvalidInput, NotFound, ResourceExhausted
from flexinfer.process import (
    UNKNOWN_EXIT,
    Child,
    ProcessSpec,
    Record,
    adopt,
    end,
    is_alive,
    procfs,
    start,
)
from flexinfer.process.leader import Leader

MakeSpec = Callable[..., ProcessSpec]
Wait = Callable[[Callable[[], object], str], None]
Until = Callable[[Callable[[], object], str], Awaitable[None]]

# An engine that counts, lets nothing but SIGKILL end it, and has a worker that is the same.
ENGINE = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
worker = "import time; print('worker', __import__('os').getpid(), flush=True); time.sleep(1000)"
subprocess.Popen([sys.executable, "-I", "-S", "-c", worker])
for count in range(100000):
    print("count", count, flush=True)
    time.sleep(0.02)
"""
SUPERVISOR = """
import asyncio, sys
from pathlib import Path
from flexinfer.process import ProcessSpec, Record, inherited_environment, start

async def main():
    folder = Path(sys.argv[1])
    child = await start(ProcessSpec(
        name="engine", argv=(sys.executable, "-I", "-S", "-c", sys.argv[2]),
        environment=inherited_environment(), cwd=folder, log_path=folder / "engine.log", lifeline=False,
    ))
    Record.of(child, {"port": "4711"}).write(folder / "engine.json")
    await child.wait()

asyncio.run(main())
"""


@pytest.fixture
def orphan(tmp_path: Path, wait_until: Wait) -> Iterator[Record]:
    """An engine whose supervisor was killed with SIGKILL."""
    supervisor = subprocess.Popen([sys.executable, "-c", SUPERVISOR, str(tmp_path), ENGINE])
    try:
        wait_until((tmp_path / "engine.json").exists, "the record")
        log = tmp_path / "engine.log"
        wait_until(lambda: "worker" in log.read_text(), "the engine and its worker")
    finally:
        supervisor.kill()
        supervisor.wait()
    record = Record.read(tmp_path / "engine.json")
    assert record is not None
    yield record
    asyncio.run(end(record, grace_s=0))


def worker_of(record: Record) -> int:
    assert record.log_path is not None
    words = record.log_path.read_text().split()
    return int(words[words.index("worker") + 1])


def is_running(pid: int) -> bool:
    found = procfs.stat(pid)
    return found is not None and found.is_running


def test_an_orphan_goes_on_and_is_adopted_with_all_that_it_started(
    orphan: Record, until: Until
) -> None:
    async def scenario() -> None:
        child = adopt(orphan)
        seen = child.tail(1)
        await until(lambda: child.tail(1) != seen, "the log goes on")
        usage = child.usage()
        assert usage is not None and usage.processes == 2
        assert await child.stop(grace_s=0.1) == UNKNOWN_EXIT

    worker = worker_of(orphan)
    assert is_alive(orphan)
    assert orphan.extra == {"port": "4711"}
    asyncio.run(scenario())
    assert not is_alive(orphan)
    assert not is_running(worker)


def test_waiting_for_an_orphan_ends_when_it_does(orphan: Record) -> None:
    async def scenario() -> int:
        child = adopt(orphan)
        waiting = asyncio.create_task(child.wait())
        await asyncio.sleep(0)
        os.kill(orphan.pid, signal.SIGKILL)
        return await waiting

    assert asyncio.run(scenario()) == UNKNOWN_EXIT
    assert not is_running(worker_of(orphan))


def test_the_workers_of_a_dead_orphan_are_ended(orphan: Record, wait_until: Wait) -> None:
    worker = worker_of(orphan)
    os.kill(orphan.pid, signal.SIGKILL)
    wait_until(lambda: not is_alive(orphan), "the end of the engine")
    with pytest.raises(NotFound, match="engine"):
        adopt(orphan)
    assert is_running(worker)
    asyncio.run(end(orphan))
    assert not is_running(worker)


@pytest.mark.parametrize(
    "change", [{"start_ticks": 1}, {"boot_id": "another"}, {"boot_id": ""}, {"pid": 2**22 + 1}]
)
def test_a_number_that_is_anothers_by_now_is_left_alone(
    orphan: Record, change: dict[str, object]
) -> None:
    stale = replace(orphan, mark="0-another", **change)  # type: ignore[arg-type]  # one field
    assert not is_alive(stale)
    with pytest.raises(NotFound) as caught:
        adopt(stale)
    assert caught.value.code == "process_gone"
    asyncio.run(end(stale, grace_s=0))
    assert is_alive(orphan)


def test_a_group_whose_leader_is_another_by_now_is_not_signalled(make_spec: MakeSpec) -> None:
    async def scenario() -> None:
        other = await start(make_spec("import time; time.sleep(1000)"))
        leader = Leader(other.pid, started_at=other.started_at - 1, is_ours=False)
        leader.signal_group(signal.SIGKILL)
        leader.close()
        assert await other.stop() == -signal.SIGTERM  # which came first

    asyncio.run(scenario())


def test_a_group_whose_leader_is_gone_is_ended_by_its_mark_only(
    make_spec: MakeSpec, wait_until: Wait
) -> None:
    """Its number may have been another group's since: then nothing in it bears the mark."""
    code = """
import subprocess, sys
sleeper = [sys.executable, "-I", "-S", "-c", "import time; time.sleep(1000)"]
print(subprocess.Popen(sleeper, stdout=subprocess.DEVNULL).pid)
"""
    command = [sys.executable, "-I", "-S", "-c", code]
    with subprocess.Popen(command, start_new_session=True, stdout=subprocess.PIPE) as gone:
        assert gone.stdout is not None
        stranger = int(gone.stdout.readline())

    async def scenario() -> int:
        leader = Leader(gone.pid, started_at=1, is_ours=False)
        child = Child(make_spec(""), leader, mark="0-another", output=None, lifeline=None)
        return await child.stop(grace_s=0)

    assert asyncio.run(scenario()) == UNKNOWN_EXIT
    assert is_running(stranger)
    os.kill(stranger, signal.SIGKILL)
    wait_until(lambda: not is_running(stranger), "its end")


def test_a_zombie_is_not_alive(make_spec: MakeSpec, wait_until: Wait) -> None:
    async def scenario() -> Record:
        child = await start(make_spec("pass"))
        record = Record.of(child)
        await asyncio.to_thread(wait_until, lambda: not is_alive(record), "its end")
        found = procfs.stat(child.pid)
        assert found is not None and found.state == "Z"
        await child.wait()
        return record

    assert not is_alive(asyncio.run(scenario()))


def test_a_child_that_was_let_go_can_be_adopted_by_the_same_process(make_spec: MakeSpec) -> None:
    async def scenario() -> tuple[int, Record]:
        child = await start(make_spec("import time; time.sleep(1000)", lifeline=False))
        record = Record.of(child)
        child.detach()
        return await adopt(record).stop(), record

    status, record = asyncio.run(scenario())
    assert status == UNKNOWN_EXIT
    assert procfs.stat(record.pid) is None  # not left as a zombie


@given(
    name=st.text(), pid=st.integers(2, 2**22), start_ticks=st.integers(0), boot_id=st.text(),
    mark=st.text(), extra=st.dictionaries(st.text(), st.text(), max_size=3),
)  # fmt: skip
def test_a_record_comes_back_as_it_was_written(
    name: str, pid: int, start_ticks: int, boot_id: str, mark: str, extra: dict[str, str]
) -> None:
    record = Record(
        name=name, pid=pid, start_ticks=start_ticks, boot_id=boot_id, mark=mark, extra=extra
    )
    assert Record.from_json(record.to_json()) == record


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", "null", "[" * 100_000,
     json.dumps({"name": "a", "pid": "1", "start_ticks": 1, "boot_id": "", "log_path": None, "extra": {}}),
     json.dumps({"name": "a", "pid": -1, "start_ticks": 1, "boot_id": "", "log_path": None, "extra": {}}),
     json.dumps({"name": "a", "pid": 0, "start_ticks": 1, "boot_id": "", "log_path": None, "extra": {}})],
)  # fmt: skip
def test_a_broken_record_is_refused_by_file(text: str, tmp_path: Path) -> None:
    (tmp_path / "engine.json").write_text(text)
    with pytest.raises(InvalidInput, match=r"engine\.json") as caught:
        Record.read(tmp_path / "engine.json")
    assert caught.value.code == "process_record"


def test_a_record_that_cannot_be_written_is_refused_by_file_and_leaves_nothing(
    tmp_path: Path,
) -> None:
    path = tmp_path / "engine.json"
    path.mkdir()
    with pytest.raises(ResourceExhausted, match=r"engine\.json: cannot write") as caught:
        Record(name="engine", pid=2, start_ticks=1, boot_id="b").write(path)
    assert caught.value.code == "disk_error"
    assert list(tmp_path.iterdir()) == [path]


def test_no_record_is_none(tmp_path: Path) -> None:
    assert Record.read(tmp_path / "engine.json") is None
