"""Lines come out the same however the bytes came in."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from flexinfer.process.lines import LineSplitter

TEXTS = st.lists(
    st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=40),
    max_size=8,
)


def split(pieces: list[bytes], limit: int = 1000) -> list[str]:
    splitter = LineSplitter(max_line_bytes=limit)
    lines = [line for piece in pieces for line in splitter.feed(piece)]
    return [*lines, *splitter.finish()]


@given(TEXTS, st.lists(st.integers(1, 30), max_size=50), st.sampled_from([b"\n", b"\r\n"]))
def test_pieces_of_any_size_give_the_same_lines(
    texts: list[str], sizes: list[int], end: bytes
) -> None:
    data = b"".join(text.encode() + end for text in texts)
    pieces = []
    for size in sizes:
        pieces.append(data[:size])
        data = data[size:]
    assert split([*pieces, data]) == texts


@given(st.binary(max_size=400), st.integers(1, 20))
def test_no_line_is_longer_than_the_limit_and_no_line_is_lost(data: bytes, limit: int) -> None:
    lines = split([data[start : start + 7] for start in range(0, len(data), 7)], limit)
    assert all(len(line) <= limit for line in lines)
    assert len(lines) == len(data.split(b"\n")) - (data.endswith(b"\n") or not data)


def test_of_a_progress_bar_the_last_state_counts() -> None:
    assert split([b"10 %\r50", b" %\r100 %\r\n"]) == ["100 %"]


def test_an_unfinished_line_waits() -> None:
    splitter = LineSplitter()
    assert splitter.feed(b"half") == ()
    assert splitter.feed(b" whole\nnext") == ("half whole",)


def test_bytes_that_are_not_text_are_marked() -> None:
    assert split([b"a\xffb\n"]) == ["a\ufffdb"]
