"""The home: found from the environment, made private, and spelled in one module."""

from __future__ import annotations

import ast
import os
import stat
from pathlib import Path

import pytest

from flexinfer.errors import InvalidInput
from flexinfer.places import Home

ROOT = Path(__file__).resolve().parents[2]


def test_a_relative_home_is_absolute_from_then_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert Home.find({"FLEXINFER_HOME": "state"}).root == tmp_path / "state"


def test_the_folders_are_readable_by_their_owner_only(tmp_path: Path) -> None:
    home = Home(tmp_path / "home").prepare()
    assert {stat.S_IMODE(f.stat().st_mode) for f in (home.root, *home.root.iterdir())} == {0o700}


def test_a_home_that_cannot_be_made_is_refused_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InvalidInput, match=r"home.*Not a directory") as caught:
        Home(tmp_path / "file" / "home").prepare()
    assert caught.value.code == "home_not_writable"


def test_what_lies_in_run_is_spelled_in_places_only() -> None:
    """`home.run / "…"` elsewhere would be a second spelling of a name that two processes agree on."""
    found = []
    for top in ("core", "operator", "pipelines", "serving"):
        for file in sorted((ROOT / top).rglob("*.py")):
            if file.name == "places.py" or "testing" in file.parts:
                continue
            for node in ast.walk(ast.parse(file.read_text("utf-8"))):
                if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
                    left = node.left
                    if isinstance(left, ast.Attribute) and left.attr in ("run", "logs"):
                        found.append(f"{os.path.relpath(file, ROOT)}:{node.lineno}")
    assert found == []


@pytest.mark.parametrize("wrong", [":", "?", "\n", "\udce9"])
def test_a_home_that_others_could_not_use_is_refused_in_words(tmp_path: Path, wrong: str) -> None:
    with pytest.raises(InvalidInput, match="may not hold") as caught:
        Home(tmp_path / f"a{wrong}b").prepare()
    assert caught.value.code == "home_invalid"
    assert caught.value.message.isprintable()
    assert list(tmp_path.iterdir()) == []


def test_a_home_may_have_blanks_and_letters_of_any_script(tmp_path: Path) -> None:
    assert Home(tmp_path / "my home, ümläuts 模型").prepare().run.is_dir()
