"""Finding entry files: in a fixed order, within bounds, never outside the folder that was named."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from flexinfer.catalog.folder import MAX_DEPTH, entry_files, read_entry_file
from flexinfer.errors import InvalidInput

Write = Callable[..., Path]


def _names(folder: Path, **limits: int) -> tuple[list[str], list[str]]:
    files, problems = entry_files([folder], **limits)
    return [str(file.relative_to(folder)) for file in files], [e.code for e in problems]


def test_yaml_files_are_found_in_order_and_others_passed_over(tmp_path: Path, write: Write) -> None:
    for place in ("b.yaml", "a/z.yml", "a/A.YAML", ".hidden.yaml", ".git/x.yaml", "README.md"):
        write(place)
    assert _names(tmp_path) == (["a/A.YAML", "a/z.yml", "b.yaml"], [])


def test_a_file_may_be_named_itself(write: Write) -> None:
    file = write("entry.txt")
    assert entry_files([file]) == ((file,), ())


def test_what_was_named_and_is_absent_is_told(tmp_path: Path) -> None:
    files, (problem,) = entry_files([tmp_path / "absent"])
    assert files == ()
    assert problem.code == "catalog_unreadable"
    assert "No such file" in problem.message and "absent" in problem.message


def test_one_file_by_two_paths_is_one_file(tmp_path: Path, write: Write) -> None:
    file = write("a/m.yaml")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    assert entry_files([tmp_path, tmp_path / "a", file, tmp_path / "link"])[0] == (file,)


def test_links_as_a_config_map_mounts_them_are_followed(tmp_path: Path, write: Write) -> None:
    write("..2026/m.yaml")
    (tmp_path / "..data").symlink_to("..2026")
    (tmp_path / "m.yaml").symlink_to("..data/m.yaml")
    assert _names(tmp_path) == (["m.yaml"], [])


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path, write: Write) -> None:
    outside = write("outside/secret.yaml")
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "m.yaml").symlink_to(outside)
    assert _names(inside) == ([], ["catalog_unreadable"])


def test_linked_folders_and_loops_are_not_followed(tmp_path: Path, write: Write) -> None:
    write("a/m.yaml")
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    (tmp_path / "self.yaml").symlink_to("self.yaml")
    assert _names(tmp_path) == (["a/m.yaml", "self.yaml"], [])
    with pytest.raises(InvalidInput, match="symbolic links"):
        read_entry_file(tmp_path / "self.yaml")


def test_files_beyond_the_limit_are_told_once(tmp_path: Path, write: Write) -> None:
    for number in range(5):
        write(f"{number}/m.yaml")
    assert _names(tmp_path, max_files=3) == (
        ["0/m.yaml", "1/m.yaml", "2/m.yaml"],
        ["catalog_too_large"],
    )


def test_a_folder_that_is_no_catalog_is_left_soon(tmp_path: Path) -> None:
    for number in range(20):
        (tmp_path / f"{number}.txt").touch()
    assert _names(tmp_path, max_names=10) == ([], ["catalog_too_large"])


def test_folders_too_deep_are_told(tmp_path: Path, write: Write) -> None:
    write("x/" * MAX_DEPTH + "m.yaml")
    write("x/" * (MAX_DEPTH + 1) + "deeper.yaml")
    names, problems = _names(tmp_path)
    assert names == ["x/" * MAX_DEPTH + "m.yaml"]
    assert problems == ["catalog_unreadable"]


@pytest.mark.parametrize(
    ("data", "said"),
    [(b"\xff", "byte 0 is not UTF-8"), (b"a" * (1024 * 1024 + 1), "more than 1048576 bytes")],
)
def test_a_file_that_is_no_text_or_too_large_is_refused(
    tmp_path: Path, data: bytes, said: str
) -> None:
    file = tmp_path / "m.yaml"
    file.write_bytes(data)
    with pytest.raises(InvalidInput, match=said):
        read_entry_file(file)


def test_a_pipe_nobody_writes_to_is_refused_and_does_not_hold_us(tmp_path: Path) -> None:
    pipe = tmp_path / "m.yaml"
    os.mkfifo(pipe)
    with pytest.raises(InvalidInput, match="not a regular file"):
        read_entry_file(pipe)


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path: Path) -> None:
    file = tmp_path / "m.yaml"
    file.write_bytes(b"\xef\xbb\xbfa: 1\n")
    assert read_entry_file(file) == "a: 1\n"
