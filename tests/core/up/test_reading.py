"""`flexinfer logs`: in the order of time, readable, bounded."""

from __future__ import annotations

import io
import json
import logging

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from flexinfer.errors import NotFound
from flexinfer.log import configure, get_logger
from flexinfer.places import Home
from flexinfer.settings import LogSection
from flexinfer.up.reading import Said, engine_logs, merged, read_line, timed
from flexinfer.up.shown import ShownLogs
from flexinfer.up.terminal import render


def line(second: int, event: str = "happened", **fields: object) -> str:
    at = f"2026-11-24T16:22:{second:02}.463024Z"
    return json.dumps({"event": event, "level": "info", "logger": "x", "timestamp": at} | fields)


def events(found: list[Said]) -> list[str]:
    return [one.shown[0].split(": ", 1)[1] for one in found]


def test_an_event_is_one_line_with_its_fields() -> None:
    said = read_line("operator", line(1, "replica_ready", model="smol", human="smol is ready"))
    assert said.shown == ("11-24 16:22:01.463 operator info: replica_ready model=smol",)


def test_an_exception_is_readable_lines_with_its_cause() -> None:
    raised = [
        {"exc_type": "ProcessFailed", "exc_value": "gone", "is_cause": False,
         "frames": [{"filename": "/a.py", "lineno": 3, "name": "run"}]},
        {"exc_type": "OSError", "exc_value": "no\nroom", "is_cause": True, "frames": []},
    ]  # fmt: skip
    said = read_line("operator", line(1, level="error", exception=raised))
    assert said.shown == (
        "11-24 16:22:01.463 operator error: happened",
        "    ProcessFailed: gone",
        "      /a.py:3 in run",
        "    caused by OSError: no room",
    )


def test_text_keeps_its_time_and_place() -> None:
    """As structlog's console renderer writes it: `log.format = console`."""
    stream = io.StringIO()
    before = logging.getLogger().handlers[:]
    try:
        configure(LogSection(format="console"), stream=stream)
        get_logger("x.y").warning("replica_ready", model="smol")
    finally:
        logging.getLogger().handlers[:] = before
        structlog.reset_defaults()
    said = read_line("operator", stream.getvalue().rstrip("\n"))
    assert said.at.endswith("Z")
    assert said.shown[0].startswith(
        f"{said.at[5:10]} {said.at[11:23]} operator warning: replica_ready"
    )
    assert "model=smol" in said.shown[0]


def test_what_prefect_says_again_of_a_failure_is_only_for_all() -> None:
    for logger, event, is_routine in (
        ("prefect.flow_runs", "Finished in state Failed('x')", True),
        ("prefect.task_runs", "Encountered exception during execution: E()", True),
        ("prefect.flow_runs", "Finished in state Completed()", False),
        ("flexinfer_pipelines.flows.build", "Finished in state Failed('x')", False),
    ):
        raw = line(1, event, level="error", logger=logger)
        assert read_line("pipelines", raw).is_routine is is_routine
        assert (render("pipelines", raw) is None) is is_routine


def test_a_field_that_repeats_the_event_is_not_shown() -> None:
    said = read_line("operator", line(1, "it happened", message="it happened", a=1))
    assert said.shown == ("11-24 16:22:01.463 operator info: it happened a=1",)


def test_a_recursion_of_a_thousand_frames_is_cut() -> None:
    frames = [{"filename": "/a.py", "lineno": n, "name": "f"} for n in range(1000)]
    raised = [{"exc_type": "RecursionError", "exc_value": "deep", "frames": frames}]
    shown = read_line("serve", line(1, exception=raised)).shown
    assert len(shown) == 23
    assert "980 frames left out" in shown[2]


def test_a_log_cannot_drive_the_terminal() -> None:
    for raw in (line(1, "x\x1b[31m\r"), "\x1b]0;forged\x07"):
        assert all(text.isprintable() for text in read_line("serve", raw).shown)


def test_a_databases_migrations_are_routine_and_its_warnings_are_not() -> None:
    logger = {"logger": "alembic.runtime.migration"}
    assert read_line("prefect", line(1, **logger)).is_routine
    assert not read_line("prefect", line(1, level="warning", **logger)).is_routine
    assert not read_line("prefect", line(1)).is_routine


def test_the_engines_of_a_model_are_its_own_only() -> None:
    logs = ("engine-smol-70a862-1", "engine-smol-b-70a862-1", "smol", "engine-smol-70a862-12")
    assert engine_logs("smol", logs) == ("engine-smol-70a862-1", "engine-smol-70a862-12")


_TIMES = st.lists(st.one_of(st.just(""), st.sampled_from("abcdef")), max_size=8)


@given(st.lists(_TIMES, max_size=4))
def test_merging_loses_nothing_and_keeps_each_logs_order(times: list[list[str]]) -> None:
    logs = [
        [Said(at=at, log=str(n), raw=str(i), shown=()) for i, at in enumerate(one)]
        for n, one in enumerate(times)
    ]
    found = merged([timed(log, before="c") for log in logs], last=1000)
    for n, log in enumerate(logs):
        assert [one for one in found if one.log == str(n)] == log
    if all(one == sorted(one) for one in times) and not any("" in one for one in times):
        assert [one.at for one in found] == sorted(one.at for one in found)


def test_all_logs_are_shown_in_the_order_of_time(home: Home) -> None:
    home.log("serve").write_text(f"{line(2, 'b')}\n{line(4, 'd')}\n")
    home.log("operator").write_text(f"{line(1, 'a')}\n  its own words\n{line(3, 'c')}\n")
    shown = ShownLogs(home, "", is_routine_shown=False)
    assert events(shown.last(10)) == ["a", "  its own words", "b", "c", "d"]
    shown = ShownLogs(home, "", is_routine_shown=False)
    assert events(shown.last(2)) == ["c", "d"]


def test_a_banner_comes_with_the_first_line_that_says_when(home: Home) -> None:
    home.log("serve").write_text(f"{line(1, 'a')}\n{line(2, 'b')}\n")
    home.log("prefect").write_text(f"banner\n{line(3, 'c')}\nits own words\n")
    shown = ShownLogs(home, "", is_routine_shown=False)
    assert events(shown.last(10)) == ["a", "b", "banner", "c", "its own words"]


def test_following_goes_on_where_the_last_lines_ended(home: Home) -> None:
    home.log("serve").write_text(f"{line(1, 'a')}\n")
    shown = ShownLogs(home, "", is_routine_shown=False)
    with home.log("serve").open("a") as log:
        log.write(f"{line(2, 'b')}\n")
    assert events(shown.last(10)) == ["a", "b"]
    assert list(shown.new()) == []
    with home.log("serve").open("a") as log:
        log.write(f"{line(3, 'c')}\n{line(4, 'migrated', logger='alembic.x')}\n")
    assert events(list(shown.new())) == ["c"]


def test_a_huge_log_is_read_from_near_its_end(home: Home) -> None:
    with home.log("serve").open("w") as log:
        log.truncate(20 * 1024**3)
        log.seek(0, 2)
        log.write(f"\n{line(1, 'a')}\n")
    shown = ShownLogs(home, "serve", is_routine_shown=False)
    assert events(shown.last(1)) == ["a"]


def test_a_model_that_never_ran_says_so(home: Home) -> None:
    home.model_file("fresh").write_text("x")
    for number in range(9):
        home.log(f"engine-smol-70a862-{number}").write_text("x\n")
    with pytest.raises(NotFound) as caught:
        ShownLogs(home, "fresh", is_routine_shown=False)
    assert caught.value.message.startswith("Model 'fresh' has not run yet: no log")
    with pytest.raises(NotFound, match=r"\(there: smol\)"):
        ShownLogs(home, "other", is_routine_shown=False)


def test_a_model_without_a_log_is_refused_with_the_nearest(home: Home) -> None:
    home.log("engine-smollm-70a862-1").write_text("flexinfer: initializing\n")
    assert len(ShownLogs(home, "smollm", is_routine_shown=False).last(9)) == 1
    with pytest.raises(NotFound, match="did you mean 'smollm'") as caught:
        ShownLogs(home, "smolm", is_routine_shown=False)
    assert caught.value.code == "log_not_found"
