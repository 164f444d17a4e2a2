"""The builds that run, as their records tell, whatever is in them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexinfer.builds import RunningBuild, running_builds
from flexinfer.places import Home
from flexinfer.process import own_record


def written(home: Home, name: str = "1.json", **extra: str) -> Path:
    home.build_records.mkdir(parents=True, exist_ok=True)
    file = home.build_records / name
    own_record("build", extra=extra).write(file)
    return file


@pytest.mark.parametrize(
    "share", ["", "half", "nan", "inf", "-inf", "1e999", "-0.1", "1.5", "0,4", "0x1", "١٢"]
)
def test_a_share_that_is_none_is_not_shown(home: Home, share: str) -> None:
    written(home, target="a/b", stage="fetch", share=share)
    (found,) = running_builds(home)
    assert found.share is None and found.words == "building a/b: fetch"


@given(share=st.text(max_size=8))
def test_whatever_the_share_it_is_a_part_or_nothing(
    tmp_path_factory: pytest.TempPathFactory, share: str
) -> None:
    home = Home(tmp_path_factory.mktemp("home"))
    written(home, target="a", share=share)
    (found,) = running_builds(home)
    assert found.share is None or 0.0 <= found.share <= 1.0


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"null",
        b"[[[[" * 5000,
        b'{"pid": 1}',
        b"\xff\xfe",
        b'{"name":"b","pid":9' + b"9" * 3000 + b',"start_ticks":1,"boot_id":"","log_path":null,'
        b'"extra":{}}',
    ],
)
def test_a_record_that_makes_no_sense_hides_no_other(home: Home, text: bytes) -> None:
    written(home, "2.json", target="a/b")
    (home.build_records / "1.json").write_bytes(text)
    (home.build_records / "3.json").mkdir()
    assert [one.target for one in running_builds(home)] == ["a/b"]


def test_a_record_without_words_is_a_build_that_starts(home: Home) -> None:
    written(home)
    (found,) = running_builds(home)
    assert found == RunningBuild(pid=found.pid, target="", stage="", share=None)
    assert found.words == "building : starting"


def test_no_folder_is_no_build(tmp_path: Path) -> None:
    home = Home(tmp_path / "none")
    assert running_builds(home) == ()
    home.root.mkdir()
    home.build_records.parent.mkdir(parents=True, exist_ok=True)
    home.build_records.write_bytes(b"")
    assert running_builds(home) == ()
