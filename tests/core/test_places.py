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


def test_a_home_that_was_open_to_others_is_closed(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    for folder in (home.root, home.store, home.run):
        folder.mkdir()
        folder.chmod(0o755)
    home.prepare()
    assert {stat.S_IMODE(f.stat().st_mode) for f in (home.root, home.store, home.run)} == {0o700}


@pytest.mark.parametrize("case", ["shared by all", "above the homes of users", "of another"])
def test_a_folder_that_is_not_ours_alone_is_refused_and_left_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    root = tmp_path / "home"
    root.mkdir()
    root.chmod(0o1777 if case == "shared by all" else 0o755)
    if case == "above the homes of users":
        monkeypatch.setenv("HOME", str(root / "me"))
    if case == "of another":
        monkeypatch.setattr(os, "geteuid", lambda: root.stat().st_uid + 1)
    before = root.stat().st_mode
    with pytest.raises(InvalidInput, match=f"{root} is open to others") as caught:
        Home(root).prepare()
    assert caught.value.code == "home_not_private"
    assert root.stat().st_mode == before


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
