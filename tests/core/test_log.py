"""Logs: one JSON object per line, no secrets, no frame locals, whoever writes."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from flexinfer.log import configure, get_logger, strike, strike_secrets
from flexinfer.settings import LogSection


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    """Leave logging as it was."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


Lines = Callable[[], list[dict[str, Any]]]


@pytest.fixture
def lines() -> Lines:
    stream = io.StringIO()
    configure(LogSection(level="info"), stream=stream)
    return lambda: [json.loads(line) for line in stream.getvalue().splitlines()]


def test_an_event_is_one_json_object_on_one_line(lines: Lines) -> None:
    get_logger("flexinfer.x").info("replica_started", replica="r1", text="two\nlines")
    (event,) = lines()
    assert event["event"] == "replica_started"
    assert (event["replica"], event["text"]) == ("r1", "two\nlines")
    assert (event["logger"], event["level"]) == ("flexinfer.x", "info")
    assert event["timestamp"].endswith("Z")


def test_a_library_comes_out_in_the_same_shape(lines: Lines) -> None:
    logging.getLogger("lib").warning("retry %d of %d", 1, 3, extra={"host": "h"})
    (event,) = lines()
    assert (event["event"], event["host"], event["level"]) == ("retry 1 of 3", "h", "warning")


def test_what_is_below_the_level_is_not_written(lines: Lines) -> None:
    get_logger("x").debug("looked")
    logging.getLogger("httpx").info("GET http://127.0.0.1/secret")
    assert lines() == []


def test_bound_context_is_part_of_every_event(lines: Lines) -> None:
    with structlog.contextvars.bound_contextvars(request_id="q1"):
        get_logger("x").info("request_ended")
    assert lines()[0]["request_id"] == "q1"


@pytest.mark.parametrize(
    "text",
    [
        "Authorization: Bearer SECRET123456",
        "authorization: basic SECRET123456",
        "hf_SECRET123456",
        "AKIASECRET123456",
        "sk-SECRET1234567890abcd",
        "https://SECRET123456:pw@host/x",
        "https://user:SECRET123456@host/x",
        "https://host/x?token=SECRET123456&y=1",
        "https://host/x?X-Amz-Signature=SECRET123456",
        "eyJSECRET123456.eyJSECRET123456.SECRET123456",
    ],
)
def test_what_looks_like_a_credential_is_struck(lines: Lines, text: str) -> None:
    log = get_logger("x")
    log.info("said", field=text, nested={"list": [text]})
    log.info(f"said {text}")
    logging.getLogger("lib").warning("said %s", text)
    try:
        raise ValueError(text)
    except ValueError as error:
        log.exception("it_failed", cause=error)
    written = json.dumps(lines())
    assert "SECRET123456" not in written
    assert written.count("***") >= 5


def test_what_is_called_a_credential_is_struck_and_counts_are_not(lines: Lines) -> None:
    get_logger("x").info(
        "sent", api_key="plain", nested={"password": "plain"}, max_tokens=7, token="", key="build-1"
    )
    (event,) = lines()
    assert "plain" not in json.dumps(event)
    assert (event["max_tokens"], event["token"], event["key"]) == (7, "", "build-1")


def test_a_credential_in_an_object_of_any_kind_is_struck(lines: Lines) -> None:
    class Odd:
        def __repr__(self) -> str:
            return "Odd(Bearer SECRET123456)"

    get_logger("x").info("seen", odd=Odd(), raw=b"Bearer SECRET123456", path=Path("/a/b"))
    (event,) = lines()
    assert "SECRET" not in json.dumps(event)
    assert event["path"] == "/a/b"


@pytest.mark.parametrize("form", ["json", "console"])
def test_a_traceback_has_no_locals_and_no_secrets(form: Any) -> None:
    stream = io.StringIO()
    configure(LogSection(format=form), stream=stream)

    def inner() -> None:
        prompt = "LOCALVALUE"
        raise ValueError(f"refused with Bearer SECRET123456 and {len(prompt)}")

    try:
        inner()
    except ValueError:
        get_logger("x").exception("it_failed")
    written = stream.getvalue()
    assert "ValueError" in written and "inner" in written
    assert "LOCALVALUE" not in written
    assert "SECRET123456" not in written


def test_nested_causes_and_groups_are_struck_at_any_depth(lines: Lines) -> None:
    error: Exception = ValueError("Bearer SECRET123456")
    for _ in range(12):
        error = ExceptionGroup("group", [error])
    get_logger("x").error("it_failed", exc_info=error)
    assert "SECRET123456" not in json.dumps(lines())


def test_a_large_event_is_cut_to_a_line_that_a_reader_accepts(lines: Lines) -> None:
    get_logger("x").info("big", text="x" * 1_000_000, items=list(range(100_000)))
    (event,) = lines()
    assert event["text"].endswith("and 991808 characters more")
    assert len(json.dumps(event)) < 64 * 1024


def test_a_cycle_and_a_number_that_json_lacks_do_not_break_the_line(lines: Lines) -> None:
    cycle: dict[str, Any] = {}
    cycle["self"] = cycle
    get_logger("x").info("odd", cycle=cycle, number=float("nan"))
    (event,) = lines()
    assert event["number"] == "nan"


def test_configuring_again_writes_once_and_to_the_new_stream(lines: Lines) -> None:
    second = io.StringIO()
    configure(LogSection(), stream=second)
    get_logger("x").info("here")
    assert lines() == []
    assert len(second.getvalue().splitlines()) == 1


@given(st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner),
))  # fmt: skip
def test_any_value_becomes_valid_json(value: Any) -> None:
    struck = strike_secrets(None, "info", {"value": value})
    assert json.loads(json.dumps(struck, allow_nan=False)) is not None


@given(
    st.text(alphabet="abcdefghijklmnop0123456789", min_size=8, max_size=40), st.text(max_size=20)
)
def test_a_bearer_key_never_survives(key: str, around: str) -> None:
    assert f"Bearer {key}" not in strike(f"{around} Bearer {key} {around}")
