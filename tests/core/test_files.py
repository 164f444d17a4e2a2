"""Files that are replaced: whole or as they were, and refused in words with numbers."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from flexinfer.errors import ResourceExhausted
from flexinfer.files import disk_full, is_full, replace_file, replace_json


def test_a_file_is_replaced_with_its_mode_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "key"
    replace_file(path, b"old", mode=0o600)
    replace_file(path, b"new", mode=0o600, durable=False)
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["key"]


@pytest.mark.parametrize(
    ("number", "code"), [(errno.ENOSPC, "disk_full"), (errno.EDQUOT, "disk_full"), (errno.EIO, "disk_error")]
)  # fmt: skip
def test_a_refused_write_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: str
) -> None:
    path = tmp_path / "journal.json"
    replace_json(path, {"a": 1})

    def refused(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refused)
    with pytest.raises(ResourceExhausted, match=r"journal\.json: ") as caught:
        replace_json(path, {"a": 2})
    assert caught.value.code == code
    assert path.read_text() == '{"a": 1}'
    assert os.listdir(tmp_path) == ["journal.json"]


def test_a_full_disk_is_said_with_path_purpose_and_both_numbers(tmp_path: Path) -> None:
    error = disk_full(tmp_path, needed=5 << 20, why="the run's records")
    assert error.code == "disk_full"
    assert f"{tmp_path}: disk full: 5.0 MiB (5242880 bytes) needed for the run's records, " in str(
        error
    )
    assert str(error).endswith(" free")
    assert is_full(OSError(errno.ENOSPC, "")) and not is_full(OSError(errno.EIO, ""))
