"""YAML as a tree with places: what is accepted, what is refused, and that both are bounded."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from flexinfer.resources.located import MAX_ALIASES, MAX_NODES, Mark, Node, compose, find


def _problems(text: str) -> list[str]:
    return [problem.at("f") for problem in compose(text)[1]]


def _tree(text: str) -> Node:
    root, problems = compose(text)
    assert root is not None and not problems
    return root


def test_values_come_out_as_json_would_have_them() -> None:
    text = "a: 1\nb: 1.5\nc: true\nd: null\ne: ~\nf:\ng: text\nh: [1, x]\ni: {j: -2}\nk: '01'\nl: 1e-3\n"
    assert _tree(text).plain() == {
        "a": 1, "b": 1.5, "c": True, "d": None, "e": None, "f": None, "g": "text",
        "h": [1, "x"], "i": {"j": -2}, "k": "01", "l": 0.001,
    }  # fmt: skip


def test_every_value_knows_its_place() -> None:
    root = _tree("a:\n  - b: 1\n  - c:\n      d: x\n")
    assert find(root, ("a", 0, "b")) == (Mark(2, 5), Node(Mark(2, 8), 1))
    assert find(root, ("a", 1, "c", "d"))[1].mark == Mark(4, 10)


def test_a_path_that_leaves_the_tree_gives_the_nearest_ancestor() -> None:
    root = _tree("a:\n  b: 1\n")
    assert find(root, ("a", "x", "y"))[0] == Mark(1, 1)
    assert find(root, ("a", "b", 7))[0] == Mark(2, 3)


@pytest.mark.parametrize(
    "word",
    ["no", "Yes", "ON", "off", "010", "08", "0x1f", "0o17", "0b11", "1_000", "1:30", "2024-01-01",
     "2024-01-01 10:00:00", "12345678901234567890"],
)  # fmt: skip
def test_what_two_yaml_versions_read_differently_must_be_quoted(word: str) -> None:
    (problem,) = _problems(f"a: {word}\n")
    assert problem.startswith("f:1:4: ") and "quote it" in problem
    assert _tree(f"a: '{word}'").plain() == {"a": word}
    assert _tree(f"a: !!str {word}").plain() == {"a": word}


@pytest.mark.parametrize("word", [".inf", "-.INF", ".nan"])
def test_a_number_that_is_not_finite_is_refused(word: str) -> None:
    assert "finite" in _problems(f"a: {word}")[0]


def test_a_number_too_large_for_a_double_is_refused() -> None:
    assert "too large" in _problems("a: 1e999")[0]


@pytest.mark.parametrize(
    ("text", "place", "said"),
    [
        ("a: 1\nb: 2\na: 3\n", "f:3:1", "key 'a' is there twice, first in line 1"),
        ("a:\n\tb: 1\n", "f:2:1", "a tab indents this line"),
        ("a: {b: 1\n", "f:2:1", "not YAML"),
        ("a: 'b\n", "f:2:1", "not YAML"),
        ("a: b: c\n", "f:1:5", "mapping values are not allowed"),
        ("a: `b`\n", "f:1:4", "not YAML"),
        ("a: 1\n---\nb: 2\n", "f:2:1", "expected one document"),
        ("", "f:1:1", "an empty file"),
        ("# nothing\n", "f:1:1", "an empty file"),
        ("1: a\n", "f:1:1", "is not text: quote it"),
        ("on: a\n", "f:1:1", "quote it"),
        ("? [a]\n: b\n", "f:1:3", "expected a key of plain text"),
        ("<<: {a: 1}\n", "f:1:1", "merge keys"),
        ("a: !!python/object/apply:os.system [x]\n", "f:1:4", "tags are not accepted"),
        ("a: !custom {b: 1}\n", "f:1:4", "tags are not accepted"),
        ("!!set {a}\n", "f:1:1", "tags are not accepted"),
        ("a: *b\n", "f:1:4", "alias *b has no anchor"),
        ("a: &b [*b]\n", "f:1:8", "stands inside its own anchor"),
        ("a: \x00\n", "f:1:4", "YAML does not allow"),
        ("a: 1\nb: '\ud800'\n", "f:2:5", "not Unicode text"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(text: str, place: str, said: str) -> None:
    (problem,) = _problems(text)
    assert problem.startswith(f"{place}: ")
    assert said in problem


def test_columns_count_characters_not_bytes() -> None:
    assert _problems("ключ: {é: no}\n")[0].startswith("f:1:11: ")


def test_several_slips_are_found_at_once() -> None:
    assert len(_problems("a: no\na: 1\n2: x\nb: 1:30\n")) == 4


def test_an_alias_repeats_a_value() -> None:
    assert _tree("a: &x [1, 2]\nb: *x\n").plain() == {"a": [1, 2], "b": [1, 2]}


def test_aliases_that_multiply_are_refused_before_they_are_expanded() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    (problem,) = _problems("\n".join(lines))
    assert f"at most {MAX_NODES} values" in problem


def test_many_aliases_are_refused() -> None:
    text = "a: &x 1\nb: [" + ", ".join(["*x"] * (MAX_ALIASES + 1)) + "]\n"
    assert f"at most {MAX_ALIASES} aliases" in _problems(text)[0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: " + "x" * 1024 * 1024, "at most 1048576 bytes"),
        ("é" * 600_000, "at most 1048576 bytes"),
        ("- " * 40 + "a", "at most 32 levels"),
        ("[" * 5000, ""),
        ("{a: " * 5000, ""),
        ("a:\n" + "  - {b: 1}\n" * 30_000, f"at most {MAX_NODES} values"),
    ],
)
def test_a_document_has_limits(text: str, said: str) -> None:
    root, problems = compose(text)
    assert root is None
    assert said in problems[-1].message


def test_a_byte_order_mark_is_passed_over() -> None:
    assert _tree("\ufeffa: 1\n").plain() == {"a": 1}


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**17), 10**17)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8", max_codepoint=0xFFFF), max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.text(st.characters(codec="utf-8", max_codepoint=0xFFFF), max_size=8),
            inner,
            max_size=4,
        )
    ),
    max_leaves=15,
)


@given(plain)
def test_json_is_read_as_what_it_says(value: Any) -> None:
    # JSON is YAML, but for characters beyond 16 bits, which it escapes as pairs.
    root, problems = compose(json.dumps(value))
    assert not problems and root is not None
    assert root.plain() == value


@given(plain)
def test_what_a_yaml_writer_writes_is_read_or_must_be_quoted(value: Any) -> None:
    root, problems = compose(yaml.safe_dump(value))
    # But for 1e5, which the writer takes for text and everyone else for a number.
    if problems:
        assert all(
            "quote it" in problem.message or "alias" in problem.message for problem in problems
        )
    elif root is not None and "1e" not in yaml.safe_dump(value).lower():
        assert json.dumps(root.plain(), sort_keys=True) == json.dumps(value, sort_keys=True)


@given(st.text(max_size=200) | st.text("{}[]:,-&*!<>'\"\t\n ab1.#?|%@`", max_size=60))
def test_any_text_is_read_or_refused_at_a_place_inside_it(text: str) -> None:
    root, problems = compose(text)
    assert root is not None or problems
    assert all(1 <= problem.mark.line <= len(text.splitlines()) + 2 for problem in problems)
