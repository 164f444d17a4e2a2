"""A log goes on over the starts of one name; of each start only its own lines are read."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from flexinfer.process import LogReader, ProcessSpec, Record, adopt, end, logfile, start

MakeSpec = Callable[..., ProcessSpec]
Until = Callable[[Callable[[], object], str], Awaitable[None]]

EARLIER = "error: the earlier start\nhalf a li"
FOREVER = "import time; print('loading'); print('up'); time.sleep(1000)"
# Goes on when its log was emptied, so that its last words are in the new one.
FLOOD = """
import os, sys, time
log, lines = sys.argv[1], int(sys.argv[2])
os.write(1, "".join(f"own {number:95}\\n" for number in range(lines)).encode())
while os.stat(log).st_size > 1000:
    time.sleep(0.01)
os.write(1, b"the end\\n")
time.sleep(1000)
"""
LIMIT = 64 * 1024


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """The log of an earlier start that was killed amid a line."""
    path = tmp_path / "engine.log"
    path.write_text(EARLIER)
    return path


def test_only_its_own_lines_are_read_and_the_earlier_ones_stay(
    make_spec: MakeSpec, log: Path
) -> None:
    async def scenario() -> tuple[tuple[str, ...], tuple[str, ...]]:
        child = await start(make_spec("print('fine'); print('still')", log_path=log))
        reader = child.reader()
        assert reader is not None
        await child.wait()
        return child.tail(), reader.read()

    assert asyncio.run(scenario()) == (("fine", "still"), ("fine", "still"))
    assert log.read_text() == EARLIER + "fine\nstill\n"


def test_a_start_that_says_nothing_has_no_last_words(make_spec: MakeSpec, log: Path) -> None:
    async def scenario() -> tuple[str, ...]:
        child = await start(make_spec("raise SystemExit(1)", log_path=log))
        await child.wait()
        return child.tail()

    assert asyncio.run(scenario()) == ()


def test_what_was_put_aside_before_is_not_its_own(make_spec: MakeSpec, log: Path) -> None:
    log.write_text("error: the earlier start\n" * 10_000)

    async def scenario() -> tuple[str, ...]:
        child = await start(make_spec("print('fine')", log_path=log, max_log_bytes=LIMIT))
        await child.wait()
        return child.tail()

    assert asyncio.run(scenario()) == ("fine",)
    assert "earlier" in logfile.aside(log).read_text()


@pytest.mark.parametrize(
    ("earlier_bytes", "own_lines"),
    [(60_000, 60), (60_000, 200), (30_000, 600), (0, 700)],
    ids=["part of what is aside is its own", "most", "all", "there was no earlier start"],
)
def test_of_a_log_emptied_meanwhile_it_has_its_own_lines_on_both_sides(
    make_spec: MakeSpec, until: Until, log: Path, earlier_bytes: int, own_lines: int
) -> None:
    log.write_text(("e" * 99 + "\n") * (earlier_bytes // 100))

    async def scenario() -> tuple[tuple[str, ...], tuple[str, ...]]:
        argv = (sys.executable, "-I", "-S", "-c", FLOOD, str(log), str(own_lines))
        child = await start(make_spec("", argv=argv, log_path=log, max_log_bytes=LIMIT))
        reader = child.reader()
        assert reader is not None
        try:
            await until(lambda: child.tail(1) == ("the end",), "the log is emptied")
            assert child.log_start == 0
            return child.tail(1000), reader.read()
        finally:
            await child.stop(grace_s=0)

    tail, read = asyncio.run(scenario())
    assert read == ("the end",)
    own = [f"own {number:95}" for number in range(own_lines)]
    assert len(tail) > 1
    assert list(tail[:-1]) == own[own_lines + 1 - len(tail) :]


def test_after_a_crash_of_the_supervisor_it_is_known_where_its_lines_begin(
    make_spec: MakeSpec, until: Until, log: Path, tmp_path: Path
) -> None:
    async def scenario() -> None:
        child = await start(make_spec(FOREVER, log_path=log, lifeline=False))
        Record.of(child).write(tmp_path / "engine.json")
        child.detach()
        record = Record.read(tmp_path / "engine.json")
        assert record is not None
        try:
            again = adopt(record)
            await until(lambda: "up" in again.tail(1), "its last line")
            reader = again.reader()
            assert reader is not None
            assert (again.tail(), reader.read()) == (("loading", "up"), ("loading", "up"))
            again.detach()
            # The log was emptied while nobody looked: what is there now is its own.
            log.write_text("new\n")
            late = adopt(record)
            reader = late.reader()
            assert reader is not None
            assert (late.tail(), reader.read()) == (("new",), ("new",))
        finally:
            await end(record, grace_s=0)

    asyncio.run(scenario())


def test_a_record_that_does_not_know_it_stands_for_the_whole_log() -> None:
    record = Record(name="a", pid=4711, start_ticks=1, boot_id="b", log_start=7)
    assert Record.from_json(record.to_json()) == record
    fields = json.loads(record.to_json())
    del fields["log_start"]
    assert Record.from_json(json.dumps(fields)) == replace(record, log_start=0)


def test_a_reader_goes_on_from_its_place(log: Path) -> None:
    log.write_text("old\nnew\n")
    reader = LogReader(log, from_bytes=4)
    assert reader.read() == ("new",)
    log.write_text("a log that was emptied\n")
    assert reader.read() == ("a log that was emptied",)


def test_a_log_that_is_not_there_is_read_from_its_start(tmp_path: Path) -> None:
    path = tmp_path / "none.log"
    reader = LogReader(path, from_bytes=4)
    assert reader.read() == ()
    path.write_text("first\n")
    assert reader.read() == ("first",)
