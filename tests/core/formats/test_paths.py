from __future__ import annotations

import unicodedata
from pathlib import PurePosixPath

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flexinfer.errors import InvalidInput
from flexinfer.formats.paths import check_collisions, check_path


@pytest.mark.parametrize(
    "path",
    [
        "config.json",
        "model-00001-of-00002.safetensors",
        "additional_chat_templates/tool_use.jinja",
        ".gitattributes",
        "tokenizer/..hidden",
        "名前/é.json",
        "a b/c.txt",
        "/".join("abcdefghijklmnop"),
        "consul.txt",
        "x" * 255,
    ],
)
def test_ordinary_paths_pass_unchanged(path: str) -> None:
    assert check_path(path) == path


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("", "empty"),
        ("../x", "leaves the model directory"),
        ("..", "leaves the model directory"),
        ("a/../../b", "leaves the model directory"),
        ("a/..", "leaves the model directory"),
        (".", "segment '.'"),
        ("./a", "segment '.'"),
        ("a/./b", "segment '.'"),
        ("/etc/passwd", "absolute"),
        ("//server/share", "absolute"),
        ("a//b", "empty segment"),
        ("a/", "empty segment"),
        ("a\\b", "backslash"),
        ("..\\x", "backslash"),
        ("C:/x", "drive"),
        ("c:x", "drive"),
        ("a\x00b", "U+0000"),
        ("a\nb", "U+000A"),
        ("a\x1b[2J", "U+001B"),
        ("a\x7f", "U+007F"),
        ("a\u202egpj.exe", "U+202E"),
        ("a\u200bb", "U+200B"),
        ("a\u2028b", "U+2028"),
        ("a\ud800b", "U+D800"),
        (unicodedata.normalize("NFD", "é.json"), "normal form"),
        ("CON", "device"),
        ("a/nul.txt", "device"),
        ("Lpt1.json", "device"),
        ("-rf", "option"),
        ("a/--flag", "option"),
        ("a.", "dot or a space"),
        ("a /b", "dot or a space"),
        ("x" * 256, "255 bytes"),
        ("é" * 128, "255 bytes"),
        ("a/" * 16 + "b", "at most 16 segments"),
        ("/".join(["x" * 200] * 6), "at most 1024 bytes"),
    ],
)
def test_a_path_that_could_name_something_else_is_refused(path: str, reason: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        check_path(path)
    assert refused.value.code == "path_unsafe"
    assert reason in refused.value.message
    assert refused.value.message.isprintable() and refused.value.message.isascii()


@pytest.mark.parametrize(
    "paths",
    [
        ["config.json", "config.json"],
        ["Config.json", "config.json"],
        ["straße.txt", "STRASSE.txt"],
        ["é.txt", unicodedata.normalize("NFD", "é.txt")],
        ["a", "a/b"],
        ["a/b", "a"],
        ["A", "a/b/c"],
        ["a/b/c", "a/B"],
        ["Dir/a", "dir/b"],
    ],
)
def test_paths_that_some_file_system_takes_for_one_are_refused(paths: list[str]) -> None:
    with pytest.raises(InvalidInput) as refused:
        check_collisions(paths)
    assert refused.value.code == "path_collision"


def test_distinct_files_in_one_folder_pass() -> None:
    check_collisions(["dir/a", "dir/b", "dir/sub/a", "a", "dira/x", "dir.a"])


@settings(max_examples=500, deadline=None)
@given(st.text(alphabet=st.sampled_from("ab./\\:-C é\x00\n\u202eA"), max_size=12) | st.text())
def test_what_passes_stays_inside_whatever_folder_it_is_joined_to(path: str) -> None:
    try:
        check_path(path)
    except InvalidInput as refused:
        assert refused.code == "path_unsafe"
        return
    joined = PurePosixPath("/base/model") / path
    assert joined.parts[:3] == ("/", "base", "model") and len(joined.parts) > 3
    assert ".." not in joined.parts and str(joined) == f"/base/model/{path}"


@settings(max_examples=300, deadline=None)
@given(st.lists(st.text(alphabet="aAb/é", min_size=1, max_size=5), max_size=6))
def test_files_that_do_not_collide_can_all_be_made(paths: list[str]) -> None:
    try:
        for path in paths:
            check_path(path)
        check_collisions(paths)
    except InvalidInput:
        return
    folded = [path.casefold() for path in paths]
    folders = {"/".join(f.split("/")[:n]) for f in folded for n in range(1, len(f.split("/")))}
    assert len(set(folded)) == len(paths) and not folders & set(folded)
