"""How far a build is can be read from another process, and only while it runs."""

from __future__ import annotations

from flexinfer.places import Home
from flexinfer.process import Record, is_alive
from flexinfer_pipelines.recorded import recorded
from flexinfer_pipelines.steps import Unwatched


def read(home: Home) -> Record:
    (file,) = home.build_records.glob("*.json")
    found = Record.read(file)
    assert found is not None
    return found


def test_stage_and_share_are_in_the_record_of_a_living_process(home: Home) -> None:
    now = [0.0]
    with recorded("smol/q8-0", home, Unwatched(), now_s=lambda: now[0]) as told:
        assert read(home).extra == {"target": "smol/q8-0", "stage": ""}
        told.started("fetch")
        assert read(home).extra["stage"] == "fetch"
        now[0] = 5.0
        told.moved("fetch", 30, 120)
        assert read(home).extra["share"] == "0.250"
        told.moved("fetch", 60, 120)
        assert read(home).extra["share"] == "0.250"  # at most once a second
        assert is_alive(read(home))
    assert list(home.build_records.iterdir()) == []


def test_a_build_goes_on_where_its_record_cannot_be_written(home: Home) -> None:
    with recorded("smol/q8-0", home, Unwatched()) as told:
        for file in home.build_records.iterdir():
            file.unlink()
        home.build_records.rmdir()
        home.build_records.write_bytes(b"")
        told.started("fetch")
        home.build_records.unlink()


def test_a_build_goes_on_where_its_record_cannot_be_replaced(home: Home) -> None:
    with recorded("smol/q8-0", home, Unwatched()) as told:
        (file,) = home.build_records.iterdir()
        file.unlink()
        file.mkdir()
        told.started("fetch")
        assert list(home.build_records.iterdir()) == [file]
