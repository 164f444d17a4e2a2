"""The head's check, pure: where it is cut does not matter, and what passes has one meaning."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexinfer.errors import InvalidInput
from flexinfer_serving.framing import check_head

LIMIT = 200
GOOD = b"POST /x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n\r\n"


def code(data: bytes) -> str:
    try:
        check_head(data, limit_bytes=LIMIT)
    except InvalidInput as error:
        return error.code
    return ""


@pytest.mark.parametrize("body", [b"", b"abcd", b"a\nb\n\n c", b"x" * 1000, GOOD])
def test_what_follows_the_head_is_not_judged(body: bytes) -> None:
    assert code(GOOD + body) == ""


@given(st.integers(0, len(GOOD)))
def test_a_good_head_is_good_as_far_as_it_has_come(cut: int) -> None:
    assert code(GOOD[:cut]) == ""


_LINES = st.sampled_from(
    [b"Host: x", b"Content-Length: 4", b"content-length : 5", b"Transfer-Encoding: chunked", b" folded", b""]
)  # fmt: skip
_ENDS = st.sampled_from([b"\r\n", b"\n"])


@given(st.lists(st.tuples(_LINES, _ENDS), max_size=6))
def test_what_passes_has_whole_line_ends_no_folds_and_one_framing(
    lines: list[tuple[bytes, bytes]],
) -> None:
    data = b"POST /x HTTP/1.1\r\n" + b"".join(line + end for line, end in lines) + b"\r\n"
    if code(data):
        return
    head = data.partition(b"\r\n\r\n")[0]
    assert b"\n" not in head.replace(b"\r\n", b"")
    names = [line.partition(b":")[0].strip().lower() for line in head.split(b"\r\n")[1:]]
    assert names.count(b"content-length") <= 1
    assert not {b"content-length", b"transfer-encoding"} <= set(names)
    assert b" folded" not in head


@given(st.binary(max_size=3 * LIMIT), st.integers(0, 3 * LIMIT))
def test_more_bytes_never_make_a_refused_head_good(data: bytes, cut: int) -> None:
    if code(data[:cut]):
        assert code(data)


@pytest.mark.parametrize("first", [True, False])
def test_two_framings_are_refused_in_either_order(first: bool) -> None:
    two = [b"Content-Length: 4\r\n", b"Transfer-Encoding: chunked\r\n"]
    lines = b"".join(two if first else two[::-1])
    assert code(b"POST / HTTP/1.1\r\nHost: x\r\n" + lines + b"\r\n") == "bad_framing"


@pytest.mark.parametrize(("count", "expected"), [(100, ""), (101, "header_fields_too_large")])
def test_a_head_has_at_most_a_hundred_headers(count: int, expected: str) -> None:
    head = b"GET / HTTP/1.1\r\n" + b"a:b\r\n" * count + b"\r\n"
    try:
        check_head(head, limit_bytes=len(head))
        found = ""
    except InvalidInput as error:
        found = error.code
    assert found == expected


def test_a_transfer_encoding_in_the_old_version_is_refused() -> None:
    assert code(b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n") == "bad_framing"
