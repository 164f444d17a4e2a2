"""A log is read on from where one stopped, also after it was emptied, and stays small."""

from __future__ import annotations

import asyncio
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexinfer.process import LogReader, logfile
from flexinfer.process.output import FileOutput, next_look_s


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "engine.log"


def append(log: Path, text: str) -> None:
    with log.open("a") as file:
        file.write(text)


def test_each_line_is_given_once(log: Path) -> None:
    reader = LogReader(log)
    assert reader.read() == ()
    append(log, "one\ntw")
    assert reader.read() == ("one",)
    append(log, "o\nthree\n")
    assert reader.read() == ("two", "three")
    assert reader.read() == ()


def test_what_was_there_before_can_be_skipped(log: Path) -> None:
    append(log, "old\n")
    reader = LogReader(log, at_end=True)
    append(log, "new\n")
    assert reader.read() == ("new",)


def test_an_emptied_log_is_read_from_its_new_start(log: Path) -> None:
    reader = LogReader(log)
    append(log, "a first and long line\nhalf")
    assert len(reader.read()) == 1
    log.write_text("b\n")
    assert reader.read() == ("b",)


def test_an_emptied_log_that_grew_again_is_noticed(log: Path) -> None:
    reader = LogReader(log)
    append(log, "one\n")
    assert reader.read() == ("one",)
    log.write_text("other 1\nother 2\n")
    assert reader.read() == ("other 1", "other 2")


def test_one_read_is_bounded_and_nothing_is_lost(log: Path) -> None:
    lines = tuple(f"line {number} {'x' * 990}" for number in range(3000))
    append(log, "\n".join(lines) + "\n")
    reader = LogReader(log)
    first = reader.read()
    assert reader.is_behind and len(first) < len(lines)
    got = list(first)
    while reader.is_behind:
        got += reader.read()
    assert tuple(got) == lines


def test_the_tail_is_the_end_of_the_log(log: Path) -> None:
    append(log, "".join(f"{number}\n" for number in range(100_000)) + "half")
    assert logfile.tail(log, 3) == ("99998", "99999", "half")
    assert logfile.tail(log, 0) == ()


def test_the_tail_of_a_log_just_emptied_goes_back_into_the_part_aside(log: Path) -> None:
    append(log, "".join(f"line {number}\n" for number in range(1000)))
    assert logfile.keep_small(log, max_bytes=4000) is None
    append(log, "after\n")
    assert logfile.tail(log, 3) == ("line 998", "line 999", "after")
    assert logfile.aside(log).stat().st_size <= 1000
    assert logfile.aside(log).read_text().startswith("line ")


def test_a_small_log_is_left_alone(log: Path) -> None:
    append(log, "one\n")
    assert logfile.keep_small(log, max_bytes=4) == 4
    assert log.read_text() == "one\n"
    assert not logfile.aside(log).exists()


def test_what_is_put_aside_is_for_its_owner_only(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    log.write_bytes(b"words\n" * 1000)
    logfile.keep_small(log, max_bytes=1000)
    assert stat.S_IMODE(logfile.aside(log).stat().st_mode) == 0o600


def test_a_log_is_emptied_even_when_its_end_cannot_be_kept(log: Path) -> None:
    append(log, "x\n" * 1000)
    logfile.aside(log).symlink_to("/dev/full")
    assert logfile.keep_small(log, max_bytes=100) is None
    assert log.read_text() == ""


def test_no_log_is_no_error(log: Path) -> None:
    assert logfile.tail(log, 5) == ()
    assert logfile.keep_small(log, max_bytes=100) == 0


@given(st.integers(-(2**40), 2**40), st.integers(0, 2**40), st.floats(0.05, 2.0))
def test_a_log_is_looked_at_in_time(room: int, grown: int, elapsed_s: float) -> None:
    delay_s = next_look_s(room, grown=grown, elapsed_s=elapsed_s)
    assert 0.05 <= delay_s <= min(2.0, 2 * elapsed_s)
    if delay_s > 0.05:  # at this rate it is not full by then
        assert grown * delay_s / elapsed_s <= max(room, 0)


@given(
    lines=st.lists(st.text("ab é", max_size=9), min_size=1, max_size=9),
    last_bytes=st.integers(min_value=1, max_value=80),
)
def test_reading_from_near_the_end_gives_whole_lines_and_goes_on(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str], last_bytes: int
) -> None:
    path = tmp_path_factory.mktemp("log") / "x.log"
    path.write_text("".join(f"{one}\n" for one in lines))
    reader = LogReader(path, last_bytes=last_bytes)
    found = list(reader.read())
    assert found == lines[len(lines) - len(found) :]
    size = sum(len(one.encode()) + 1 for one in found)
    assert size <= last_bytes
    assert reader.is_cut == (len("".join(lines).encode()) + len(lines) > last_bytes)
    with path.open("a") as log:
        log.write("more\n")
    assert reader.read() == ("more",)


def test_a_log_that_could_not_be_looked_at_is_bounded_again_later(log: Path) -> None:
    async def scene() -> None:
        log.mkdir()  # as good as a disk that refuses: root may write through modes
        output = FileOutput(log, max_bytes=1000)
        output.keep_small(asyncio.get_running_loop())
        log.rmdir()
        log.write_bytes(b"x" * 5000)
        async with asyncio.timeout(20):
            while log.stat().st_size > 1000:
                await asyncio.sleep(0.02)
        output.close()

    asyncio.run(scene())
