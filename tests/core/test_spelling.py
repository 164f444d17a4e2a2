"""The closest known word."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from flexinfer.spelling import nearest

KNOWN = ("minReplicas", "maxReplicas", "idleTimeout")


def test_a_slip_names_the_word_that_was_meant() -> None:
    assert nearest("idelTimeout", KNOWN) == "; did you mean 'idleTimeout'?"


def test_case_does_not_count() -> None:
    assert nearest("MINREPLICAS", KNOWN) == "; did you mean 'minReplicas'?"


def test_a_word_that_is_like_none_gets_no_advice() -> None:
    assert nearest("zzz", KNOWN) == ""
    assert nearest("m" * 1_000_000, KNOWN) == ""


def test_a_word_that_only_begins_alike_gets_no_advice() -> None:
    assert nearest("Q4_K_M", ("Q8_0", "Q4_0", "Q4_1", "BF16")) == ""
    assert nearest("q8", ("q8_0", "q4_0")) == "; did you mean 'q8_0'?"


def test_the_beginning_of_one_word_names_it() -> None:
    known = ("smollm2-135m-instruct", "qwen3-0.6b-instruct", "qwen3-0.6b-base-instruct")
    assert nearest("smollm2", known) == "; did you mean 'smollm2-135m-instruct'?"
    assert nearest("SMOL", known) == "; did you mean 'smollm2-135m-instruct'?"
    assert nearest("qwen", known) == ""
    assert nearest("sm", known) == ""


@given(st.text(max_size=200), st.lists(st.text(max_size=20), max_size=5))
def test_only_known_words_are_advised(name: str, known: list[str]) -> None:
    advice = nearest(name, known)
    assert advice == "" or any(advice == f"; did you mean {word!r}?" for word in known)
