"""A child that cannot be kept running is told with its own words, of this run only, and its own exit code."""

from __future__ import annotations

import asyncio
import shutil
import signal
import sys

import pytest

from flexinfer.errors import Conflict, InvalidInput, ProcessFailed, ResourceExhausted
from flexinfer.places import Home
from flexinfer.process import LogReader, ProcessSpec, inherited_environment, start
from flexinfer.programs import ROUTER
from flexinfer.settings import Settings
from flexinfer.up.ending import failure
from flexinfer.up.services import Service
from flexinfer.up.session import Session
from flexinfer.up.terminal import Terminal, last_lines


def test_an_error_of_ours_is_repeated_as_it_is() -> None:
    why = failure("serve", code=2, times=1, said=["banner", "error[port_taken]: port 1 is taken"])
    assert (why.code, why.message) == ("port_taken", "serve ended: port 1 is taken")
    assert isinstance(why, InvalidInput)


def test_the_exit_code_is_the_childs() -> None:
    assert isinstance(failure("serve", code=5, times=1, said=[]), Conflict)
    for code in (1, -9, 99):
        why = failure("serve", code=code, times=6, said=["a", "b"])
        assert (type(why), why.code) == (ProcessFailed, "service_failed")
    assert why.message == "serve ended 6 times, last with 99:\n  serve: a\n  serve: b"


def test_the_last_lines_are_those_since_the_reader_began(home: Home) -> None:
    log = home.log("serve")
    log.write_text("of a run before\n")
    reader = LogReader(log, at_end=True)
    with log.open("a") as more:
        more.writelines(f"{number}\n" for number in range(200_000))
    assert last_lines(reader, lines=2) == ("199998", "199999")
    assert last_lines(None) == ()


def test_a_child_that_ends_at_once_is_told_without_the_lines_of_older_runs(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.log("serve").write_text("error[of_old]: this was another day\n")
    home.up_records.mkdir()
    session = Session(home, Settings(), {}, Terminal())
    argv = ("serve", "--fleet", "/nonexistent/fleet.yaml")
    service = Service(name="serve", argv=argv, is_essential=True, reads=ROUTER)

    async def watch() -> None:
        await session._start(service)
        await session._watch(session._running["serve"])

    asyncio.run(watch())
    why = session._failure
    assert why is not None
    assert (why.code, why.exit_code) == ("fleet_file_unreadable", 2)
    assert "another day" not in why.message


ONE = Service(name="serve", argv=("--version",), is_essential=True, reads=ROUTER)
"""Ends at once, with 0."""


def soon(exits_s: list[float], *, now_s: float, code: int) -> float | None:
    """Return the delay before another start: none at all, three times."""
    return 0.0 if len(exits_s) <= 3 else None


def test_a_child_whose_record_cannot_be_written_is_watched_and_given_up_in_the_end(
    home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    home.up_records.mkdir()
    session = Session(home, Settings(), {}, Terminal(), delay_s=soon)

    async def watch() -> None:
        await session._start(ONE)
        shutil.rmtree(home.up_records)
        home.up_records.touch()
        await session._watch(session._running["serve"])

    asyncio.run(watch())
    assert session._stop.is_set()
    assert session._failure is not None
    assert session._failure.code == "disk_error"
    assert capsys.readouterr().out.count("serve cannot be started again: ") >= 2


def test_one_that_can_be_started_again_after_all_is_as_good_as_new(home: Home) -> None:
    home.up_records.touch()
    session = Session(home, Settings(), {}, Terminal(), delay_s=soon)

    async def watch() -> None:
        with pytest.raises(ResourceExhausted):
            await session._start(ONE)
        watching = asyncio.create_task(session._watch(session._running["serve"]))
        while session._running["serve"].not_started is None:
            await asyncio.sleep(0.01)
        home.up_records.unlink()
        home.up_records.mkdir()
        await watching

    async def bounded() -> None:
        async with asyncio.timeout(120):
            await watch()

    asyncio.run(bounded())
    assert session._failure is not None
    assert session._failure.code == "service_failed"  # what it ends with itself, not the record


def test_what_no_longer_watches_ends_all_with_its_error(home: Home) -> None:
    session = Session(home, Settings(), {}, Terminal())

    async def breaks() -> None:
        raise RecursionError("a bug")

    async def run() -> None:
        watcher = asyncio.create_task(breaks())
        watcher.add_done_callback(session._watcher_ended)
        await session._stop.wait()

    asyncio.run(asyncio.wait_for(run(), 30))
    assert isinstance(session._bug, RecursionError)


def test_the_second_signal_ends_the_first_build_too(home: Home) -> None:
    session = Session(home, Settings(), {}, Terminal())

    async def run() -> int:
        session._build = await start(
            ProcessSpec(
                name="build",
                argv=(sys.executable, "-c", "import time; time.sleep(1000)"),
                environment=inherited_environment(),
                cwd=home.root,
            )
        )
        session._kill_all()
        return await session._build.wait()

    assert asyncio.run(asyncio.wait_for(run(), 30)) == -signal.SIGKILL
