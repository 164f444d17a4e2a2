"""A Model's file that is away for a moment is no deletion; what the disk does not tell of is none either."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from flexinfer.places import Home
from flexinfer_operator.local.models import MAX_FILES, ModelFiles

TEXT = "apiVersion: ai.flexinfer/v1alpha2\nkind: Model\nmetadata: {name: a}\nspec: {source: 'file:///m.gguf'}\n"


def looked_at(folder: Path) -> ModelFiles:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "a.yaml").write_text(TEXT)
    files = ModelFiles(folder)
    assert files.scan()
    assert list(files.written()) == ["a"]
    return files


def test_an_editor_that_renames_the_old_file_away_first_deletes_nothing(home: Home) -> None:
    files = looked_at(home.models)
    file = home.models / "a.yaml"
    file.rename(home.models / "a.yaml~")
    assert not files.scan()
    assert list(files.written()) == ["a"]
    file.write_text(TEXT.replace("m.gguf", "n.gguf"))
    assert files.scan()
    assert files.written()["a"].model.spec.source == "file:///n.gguf"


def test_a_file_that_two_looks_did_not_find_is_gone(home: Home) -> None:
    files = looked_at(home.models)
    (home.models / "a.yaml").unlink()
    assert [files.scan(), files.scan(), files.scan()] == [False, True, False]
    assert files.written() == {}


@given(st.lists(st.booleans(), max_size=30))
def test_only_two_absences_in_a_row_are_a_deletion(looks: list[bool]) -> None:
    """Each look finds the file (True) or does not."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "models"
        files = looked_at(folder)
        is_known, was_there = True, True
        for is_there in looks:
            if is_there:
                (folder / "a.yaml").write_text(TEXT)
            else:
                (folder / "a.yaml").unlink(missing_ok=True)
            files.scan()
            is_known = is_there or (is_known and was_there)
            was_there = is_there
            assert bool(files.written()) is is_known


def test_a_folder_that_cannot_be_listed_keeps_what_was_there_and_says_so_once(home: Home) -> None:
    files = looked_at(home.models)
    aside = home.models.with_name("aside")
    home.models.rename(aside)
    home.models.symlink_to(home.models.name)  # a loop
    with capture_logs() as logs:
        for _ in range(5):
            assert not files.scan()
    assert list(files.written()) == ["a"]
    assert [one["event"] for one in logs] == ["model_file_unseen"]
    assert list(files.faults()) == [home.models]
    assert not files.is_whole
    home.models.unlink()
    aside.rename(home.models)
    files.scan()
    assert files.faults() == {}
    assert list(files.written()) == ["a"]


def test_a_file_whose_name_is_no_utf8_is_refused_by_its_name_written_out(home: Home) -> None:
    """What such a name is kept in (the database, a terminal) refuses it."""
    home.models.mkdir(exist_ok=True)
    with open(os.fsencode(home.models) + b"/caf\xe9.yaml", "w") as file:
        file.write(TEXT)
    (home.models / "café.yaml").write_text(TEXT)
    files = ModelFiles(home.models)
    files.scan()
    assert [one.file.name for one in files.written().values()] == ["café.yaml"]
    (fault,) = files.faults().values()
    assert fault == f"{home.models}/caf\\xe9.yaml: its name is not UTF-8: rename it"


def test_of_too_many_files_those_that_were_known_stay(home: Home) -> None:
    home.models.mkdir(exist_ok=True)

    def write(letter: str, numbers: range) -> None:
        for number in numbers:
            name = f"{letter}{number}"
            (home.models / f"{name}.yaml").write_text(
                TEXT.replace("{name: a}", f"{{name: {name}}}")
            )

    write("m", range(MAX_FILES))
    files = ModelFiles(home.models)
    files.scan()
    files.scan()
    before = set(files.written())
    assert len(before) == MAX_FILES and not files.faults()
    write("a", range(3))
    for _ in range(3):
        files.scan()
    assert set(files.written()) == before
    (fault,) = files.faults().values()
    assert fault.startswith(f"{home.models}/a0.yaml: not read") and not files.is_whole


def test_a_file_that_became_a_loop_of_links_keeps_its_last_state(home: Home) -> None:
    files = looked_at(home.models)
    file = home.models / "a.yaml"
    file.unlink()
    file.symlink_to(file.name)
    for _ in range(3):
        files.scan()
    assert list(files.written()) == ["a"]
    assert "Too many levels of symbolic links" in files.faults()[file]
