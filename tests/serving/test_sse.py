"""Event streams: whole events out, no byte changed, and what we add stands on its own."""

from __future__ import annotations

import itertools
import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexinfer.errors import IntegrityError
from flexinfer_serving.openai import sse
from flexinfer_serving.openai.errors import Answer

ANSWER = Answer(status=502, code="upstream_incomplete", message="line\nbreak", type="server_error")


def test_an_event_leaves_when_it_is_complete() -> None:
    framer = sse.Framer()
    assert framer.feed(b"data: a\n\ndata: b") == b"data: a\n\n"
    assert framer.feed(b"\n\n") == b"data: b\n\n"


@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n", b"\r\r", b"\n\r\n"])
def test_every_line_end_is_known(end: bytes) -> None:
    assert sse.Framer().feed(b"data: a" + end + b"data: b") == b"data: a" + end


def test_one_crlf_is_no_boundary() -> None:
    assert sse.Framer().feed(b"event: x\r\ndata: a\r\n") == b""


@pytest.mark.parametrize(
    "line", [b"data: [DONE]\n\n", b"data:[DONE]\r\n\r\n", b": x\ndata: [DONE]\n\n"]
)
def test_done_is_seen(line: bytes) -> None:
    framer = sse.Framer()
    framer.feed(line)
    assert framer.is_done


def test_done_inside_a_text_is_not_the_end() -> None:
    framer = sse.Framer()
    framer.feed(b'data: {"content":"data: [DONE]"}\n\n')
    assert not framer.is_done


@pytest.mark.parametrize(
    "line", [b'data: {"error":{"code":500}}\n\n', b"event: error\ndata: x\n\n"]
)
def test_the_engines_own_error_is_seen(line: bytes) -> None:
    framer = sse.Framer()
    framer.feed(line)
    assert framer.has_failed


def test_an_error_inside_a_text_is_none() -> None:
    framer = sse.Framer()
    framer.feed(b'data: {"content":"data: {\\"error\\":1}"}\n\n')
    assert not framer.has_failed


def test_an_endless_event_is_refused() -> None:
    framer = sse.Framer(max_event_bytes=100)
    with pytest.raises(IntegrityError) as caught:
        for _ in range(30):
            framer.feed(b"x" * 10)
    assert caught.value.code == "upstream_invalid"


def test_half_an_event_is_never_passed_on() -> None:
    framer = sse.Framer()
    assert framer.feed(b'data: {"choi') == b""
    assert framer.rest() == b""


def test_a_last_line_end_is_passed_on() -> None:
    framer = sse.Framer()
    framer.feed(b"data: [DONE]\r\n\r")
    assert framer.feed(b"") + framer.rest() in (b"", b"\n")


def test_an_error_event_is_one_line_in_openais_shape() -> None:
    event = sse.error_event(ANSWER)
    assert event.endswith(b"\n\n") and event.count(b"\n") == 2
    error = json.loads(event.removeprefix(b"data: "))["error"]
    assert error == {
        "message": "line\nbreak",
        "type": "server_error",
        "param": None,
        "code": "upstream_incomplete",
    }


def test_a_comment_cannot_become_an_event() -> None:
    assert sse.comment("a\ndata: x\r\n\r\nb") == b": a data: x b\n\n"


_EVENT = st.binary(max_size=30).map(
    lambda data: b"data: " + data.translate(None, b"\r\n") + b"\n\n"
)


@given(events=st.lists(_EVENT, max_size=8), cuts=st.lists(st.integers(0, 300), max_size=10))
def test_however_it_is_cut_the_bytes_are_the_same(events: list[bytes], cuts: list[int]) -> None:
    whole = b"".join(events)
    places = sorted({0, len(whole), *(cut for cut in cuts if cut < len(whole))})
    framer = sse.Framer()
    out = [framer.feed(whole[a:b]) for a, b in itertools.pairwise(places)]
    assert b"".join(out) == whole
    assert all(not piece or piece.endswith(b"\n\n") for piece in out)


# Mostly line ends, so that many events end, and between the two pieces too.
_PIECES = st.sampled_from([b"data: a", b":", b"[DONE]", b"\n", b"\r", b"\r\n", b"\n\n"])
_BLANK = re.compile(rb"(?>\r\n|\n|\r){2}")


@given(
    data=st.one_of(st.binary(max_size=200), st.lists(_PIECES, max_size=20).map(b"".join)),
    cut=st.integers(0, 200),
)
def test_any_bytes_pass_unchanged_up_to_the_last_blank_line(data: bytes, cut: int) -> None:
    framer = sse.Framer()
    passed = framer.feed(data[:cut]) + framer.feed(data[cut:])
    assert data.startswith(passed)
    held = data[len(passed) :]
    assert not _BLANK.search(held)
    assert framer.rest() in (held, b"")
