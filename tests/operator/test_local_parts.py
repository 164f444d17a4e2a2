"""The parts of LocalCluster that decide or remember something by themselves."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from flexinfer.errors import NotFound, PluginError, ResourceExhausted, Unavailable
from flexinfer.places import Home
from flexinfer.process import own_record
from flexinfer.resources.model import (
    ArtifactStatus,
    ColdStartPhases,
    ColdStartStatus,
    Condition,
    ModelSpec,
    ModelStatus,
)
from flexinfer.store import Errand
from flexinfer.testing.local_engine import LocalEngine, lookup
from flexinfer_operator.cli import model as model_app
from flexinfer_operator.facts import engine_facts
from flexinfer_operator.local.ledger import (
    MAX_ASIDE,
    MAX_KEPT,
    ColdStartRecord,
    KnownModel,
    Ledger,
    machine_name,
    read_state,
    summarize,
)
from flexinfer_operator.local.logs import MAX_LOGS, last_words, prune_logs
from flexinfer_operator.local.machine import share
from flexinfer_operator.local.models import ModelFiles
from flexinfer_operator.local.ticking import OwnReading, checked_out, with_ticks
from flexinfer_operator.testing.world import write_file

# Files


def written(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text)


GOOD = "{apiVersion: ai.flexinfer/v1alpha2, kind: Model, metadata: {name: %s}, spec: {source: 'file:///m.gguf'}}"


def test_only_what_changed_is_read_again(home: Home) -> None:
    files = ModelFiles(home.models)
    written(home.models, "a.yaml", GOOD % "a")
    assert files.scan()
    assert not files.scan()
    written(home.models, "b.yml", GOOD % "b")
    assert files.scan()
    assert sorted(files.written()) == ["a", "b"]
    (home.models / "a.yaml").unlink()
    assert not files.scan()  # an editor may be about to put a new one in its place
    assert files.scan()
    assert sorted(files.written()) == ["b"]


def test_a_file_that_is_half_written_is_not_refused_at_once(home: Home) -> None:
    files = ModelFiles(home.models)
    written(home.models, "a.yaml", GOOD % "a")
    files.scan()
    written(home.models, "a.yaml", (GOOD % "a")[:40])
    assert not files.scan()
    written(home.models, "a.yaml", GOOD % "other")
    assert files.scan()
    assert (sorted(files.written()), files.faults()) == (["other"], {})


def test_a_bad_edit_keeps_the_last_good_state_and_is_said_once(home: Home) -> None:
    files = ModelFiles(home.models)
    written(home.models, "a.yaml", GOOD % "a")
    files.scan()
    written(home.models, "a.yaml", "kind: [")
    files.scan()
    assert files.scan()
    assert not files.scan()
    assert "a.yaml:2:1" in files.written()["a"].fault


def test_hidden_files_and_others_are_no_models(home: Home) -> None:
    for name in (".a.yaml", "a.yaml~", "a.txt", "a.yaml.swp"):
        written(home.models, name, GOOD % "a")
    (home.models / "folder.yaml").mkdir()
    files = ModelFiles(home.models)
    assert not files.scan()
    assert files.written() == {}


def test_a_file_that_is_too_large_is_refused_unread(home: Home) -> None:
    written(home.models, "a.yaml", "#" * (1024 * 1024 + 1))
    files = ModelFiles(home.models)
    files.scan()
    files.scan()
    (fault,) = files.faults().values()
    assert "1048576" in fault


def test_a_file_that_the_disk_refused_once_is_read_again_unchanged(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(home.models, "a.yaml", GOOD % "a")
    files = ModelFiles(home.models)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", refuse)
        files.scan()
        assert files.scan()
        assert not files.scan()
        assert list(files.faults()) == [home.models / "a.yaml"]
    assert files.scan()
    assert (list(files.written()), files.faults()) == (["a"], {})


def refuse(*_: object, **__: object) -> Any:
    raise OSError(errno.EIO, "Input/output error")


# The ledger


def start(seconds: float, **more: Any) -> ColdStartRecord:
    return ColdStartRecord(
        **{"digest": "d", "replica": "r", "at_unix_s": 1.0, **more, "phases": {"load": seconds}}
    )


def test_what_was_saved_is_read_by_others_and_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    ledger = Ledger(path, machine=machine_name())
    known = KnownModel(
        spec_hash="h",
        generation=3,
        created_unix_s=7,
        starts=2,
        status=ModelStatus(phase="Ready"),
        file="a.yaml",
    )
    ledger.save_all({"a": known, "b": known})
    ledger.save_all({"b": None})
    assert dict(read_state(path, machine=machine_name()).models) == {"a": known}
    ledger.close()
    again = Ledger(path, machine=machine_name())
    assert again.models() == {"a": known}
    again.close()


def test_only_the_newest_starts_are_kept_and_other_machines_do_not_count(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    other = Ledger(path, machine="other")
    other.add(start(100))
    ledger = Ledger(path, machine="here")
    for number in range(MAX_KEPT + 10):
        estimate = ledger.add(start(1 + number / 1000))
    assert estimate.samples == 20 and 1.18 < estimate.p50_s < estimate.p95_s < 1.22
    assert other.estimates()["d"].p50_s == 100
    assert ledger.first_token("r", "d", 0.5).phases["first_token"] == 0.5
    assert ledger.estimates()["d"].p50_s < 1.22  # a first token is no part of becoming ready
    ledger.close()
    other.close()


def test_a_database_that_knows_no_files_is_read_and_then_given_them(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    with closing(sqlite3.connect(path)) as db, db:
        db.execute(
            "CREATE TABLE models (name TEXT PRIMARY KEY, spec_hash TEXT NOT NULL,"
            " generation INTEGER NOT NULL, created_unix_s INTEGER NOT NULL,"
            " starts INTEGER NOT NULL DEFAULT 0, status TEXT NOT NULL DEFAULT '') STRICT"
        )
        db.execute("INSERT INTO models VALUES ('a', 'h', 3, 7, 2, '')")
        db.execute(
            "CREATE TABLE cold_starts (id INTEGER PRIMARY KEY, digest TEXT NOT NULL, machine TEXT,"
            " at_unix_s REAL, replica TEXT, fetch REAL, verify REAL, start REAL, load REAL,"
            " first_token REAL) STRICT"
        )
        db.execute("PRAGMA user_version=1")
    known = KnownModel(spec_hash="h", generation=3, created_unix_s=7, starts=2)
    assert dict(read_state(path, machine="m").models) == {"a": known}
    with closing(Ledger(path, machine="m")) as ledger:
        assert ledger.models() == {"a": known}
        ledger.save_all({"a": replace(known, file="a.yaml")})
    with closing(Ledger(path, machine="m")) as ledger:
        assert ledger.models() == {"a": replace(known, file="a.yaml")}
    assert not list(tmp_path.glob("*.broken*"))


def test_a_database_of_a_later_version_is_put_aside(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    ledger = Ledger(path, machine="m")
    ledger._db.execute("PRAGMA user_version=99")
    ledger.close()
    Ledger(path, machine="m").close()
    assert path.with_name("state.db.broken").exists()


def test_a_database_that_another_program_holds_is_not_put_aside(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    known = KnownModel(spec_hash="h", generation=3, created_unix_s=7)
    ledger = Ledger(path, machine="m")
    ledger.save_all({"a": known})
    ledger.close()
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("PRAGMA locking_mode=EXCLUSIVE")
    holder.execute("BEGIN EXCLUSIVE")
    with pytest.raises(ResourceExhausted, match="locked") as refused:
        Ledger(path, machine="m", busy_s=0.05)
    assert refused.value.code == "state_db"
    holder.close()
    assert not list(tmp_path.glob("*.broken*"))
    again = Ledger(path, machine="m")
    assert again.models() == {"a": known}
    again.close()


def test_a_database_that_cannot_be_opened_is_not_put_aside(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    path.mkdir()
    with pytest.raises(ResourceExhausted) as refused:
        Ledger(path, machine="m")
    assert refused.value.code == "state_db" and path.is_dir()


def test_databases_put_aside_never_replace_one_another(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    for number in range(MAX_ASIDE):
        path.write_bytes(b"no database %d" % number * 100)
        Ledger(path, machine="m").close()
    kept = {file.read_bytes() for file in tmp_path.glob("state.db.broken*")}
    assert kept == {b"no database %d" % number * 100 for number in range(MAX_ASIDE)}
    path.write_bytes(b"one more" * 100)
    with pytest.raises(ResourceExhausted, match="remove some"):
        Ledger(path, machine="m")
    assert path.read_bytes() == b"one more" * 100


def test_a_database_that_is_damaged_inside_is_put_aside(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    ledger = Ledger(path, machine="m")
    ledger.save_all({"a": KnownModel(spec_hash="h", generation=3, created_unix_s=7)})
    ledger.close()
    data = bytearray(path.read_bytes())
    data[4096:8192] = b"\xff" * 4096
    path.write_bytes(data)
    again = Ledger(path, machine="m")
    assert again.models() == {}
    again.close()
    assert path.with_name("state.db.broken").read_bytes() == bytes(data)


def test_no_database_is_no_state(tmp_path: Path) -> None:
    assert read_state(tmp_path / "none.db", machine="m").models == {}


@given(st.lists(st.floats(0, 1e4), min_size=1, max_size=40))
def test_the_estimate_lies_within_what_was_measured(seconds: list[float]) -> None:
    found = summarize([start(one) for one in seconds])
    assert min(seconds) <= found.p50_s <= found.p95_s <= max(seconds)
    assert sum(one <= found.p95_s for one in seconds) >= 0.95 * len(seconds)


# Machine, logs, facts


@pytest.mark.parametrize(
    ("cpus", "models", "threads"),
    [(2, 1, 2), (2, 9, 2), (16, 2, 16), (1, 3, 1), (0, 1, 1)],
)
def test_engines_share_the_memory_and_each_may_use_every_processor(
    cpus: int, models: int, threads: int
) -> None:
    found = share(cpus, 1024, models=models, max_loaded=4)
    assert found.threads == threads
    assert found.memory_bytes * min(models, 4) <= 1024


def test_only_the_newest_logs_of_a_model_are_kept(tmp_path: Path) -> None:
    for number in range(MAX_LOGS + 3):
        for model in ("a", "a-b"):
            log = tmp_path / f"engine-{model}-abcdef-{number}.log"
            log.touch()
            os.utime(log, (number, number))
    prune_logs(tmp_path, "a", running={"a-abcdef-0"})
    left = {int(file.stem.rsplit("-", 1)[1]) for file in tmp_path.glob("engine-a-abcdef-*")}
    assert left == {0, 3, 4, 5, 6, 7}
    assert len([*tmp_path.glob("engine-a-b-*")]) == MAX_LOGS + 3


def test_a_plug_in_that_breaks_its_contract_fails_one_model_only() -> None:
    class Broken(LocalEngine):
        def problems(self, config: Any) -> Any:
            raise ZeroDivisionError("oops")

    facts = engine_facts(lambda name: Broken, ModelSpec(source="file:///m.gguf"), None)
    assert facts.fault is not None and facts.fault.code == "plugin_error"
    assert "ZeroDivisionError" in facts.fault.message


def test_a_backend_that_is_not_there_is_a_fault() -> None:
    def none(name: str) -> Any:
        raise PluginError(f"no {name}", code="unknown_plugin")

    facts = engine_facts(none, ModelSpec(source="file:///m.gguf"), None)
    assert facts.fault is not None and facts.fault.code == "unknown_plugin"


def test_without_an_artifact_all_endpoints_are_assumed() -> None:
    facts = engine_facts(lookup, ModelSpec(source="file:///m.gguf"), None)
    assert set(facts.endpoints) == {"chat/completions", "completions", "embeddings"}


class SlowStore:
    """A store whose checkout takes until it is let go."""

    def __init__(self) -> None:
        self.begun, self.go, self.closed = threading.Event(), threading.Event(), threading.Event()

    def checkout(self, digest: str, *, errand: Errand) -> SlowStore:
        self.begun.set()
        assert self.go.wait(20)
        return self

    def close(self) -> None:
        self.closed.set()


def test_a_start_given_up_during_the_checkout_waits_for_nobody_and_gives_a_late_lease_back() -> (
    None
):
    store, errand = SlowStore(), Errand()

    async def scene() -> None:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
        work = asyncio.ensure_future(checked_out(store, "sha256:" + "0" * 64, errand))  # type: ignore[arg-type]
        # The one thread of everybody else is free all the while.
        assert await asyncio.to_thread(store.begun.wait, 20)
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
        with pytest.raises(Unavailable):
            errand.check()
        assert not store.closed.is_set()
        store.go.set()
        assert await asyncio.to_thread(store.closed.wait, 20)

    asyncio.run(scene())


def test_what_reads_is_moving_and_what_waits_is_not(tmp_path: Path) -> None:
    io = tmp_path / "io"
    io.write_text("rchar: 100\nwchar: 5\n")
    reading = OwnReading(io)
    io.write_text("rchar: 70100\nwchar: 99999999\n")
    assert not reading.moved()
    io.write_text("rchar: 5070100\n")
    assert reading.moved()
    assert not reading.moved()
    io.unlink()
    assert reading.moved()


def test_ticks_come_until_the_work_is_done_and_then_no_more() -> None:
    ticks: list[int] = []

    async def scene() -> str:
        enough = asyncio.Event()

        async def work() -> str:
            await enough.wait()
            return "done"

        def tick() -> None:
            ticks.append(1)
            if len(ticks) == 3:
                enough.set()

        found = await with_ticks(work(), tick, every_s=0.001)
        for _ in range(3):
            await asyncio.sleep(0)
        assert len(asyncio.all_tasks()) == 1
        return found

    assert asyncio.run(scene()) == "done"
    assert len(ticks) >= 3


@pytest.mark.parametrize("steps", range(8))
def test_a_cancellation_is_never_lost_whenever_it_comes(steps: int) -> None:
    async def scene() -> str:
        done = asyncio.Event()

        async def life() -> str:
            await with_ticks(done.wait(), lambda: None)
            await asyncio.Event().wait()
            return "went on"

        task = asyncio.ensure_future(life())
        await asyncio.sleep(0)
        done.set()
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        (ended,) = await asyncio.gather(task, return_exceptions=True)
        return type(ended).__name__

    async def limited() -> str:
        async with asyncio.timeout(10):
            return await scene()

    assert asyncio.run(limited()) == "CancelledError"


def test_the_last_words_of_a_log_are_one_short_clean_line() -> None:
    assert last_words(()) == last_words(("", "  ")) == ""
    assert last_words(("one", "two\x1b[0m\tend ", "")) == "two [0m end"
    assert len(last_words(("x" * 9999,))) == 300


# The command line


@pytest.fixture
def run(home: Home, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("FLEXINFER_HOME", str(home.root))
    return lambda *words: CliRunner().invoke(model_app, [*words], catch_exceptions=False)


def test_models_are_listed_without_an_operator(home: Home, run: Any) -> None:
    write_file(home, "tiny", source="file:///m.gguf", aliases=["t"])
    (home.models / "bad.yaml").write_text("kind: Model\n")
    bad, row = json.loads(run("ls", "--json").output)
    assert (row["name"], row["phase"], row["aliases"]) == ("tiny", "Unknown", ["t"])
    assert (bad["name"], bad["phase"], bad["source"]) == ("bad", "Failed", None)
    shown = run("ls")
    assert "tiny" in shown.output and "no Models" not in shown.output
    assert "bad.yaml" in shown.stderr and "operator is not running" in shown.stderr


def test_a_model_is_described_by_name_and_alias(home: Home, run: Any) -> None:
    write_file(home, "tiny", source="file:///m.gguf", aliases=["t"])
    ledger = Ledger(home.state_db, machine=machine_name())
    ledger.save_all(
        {"tiny": KnownModel(spec_hash="h", generation=4, created_unix_s=1, status=ModelStatus())}
    )
    ledger.close()
    tree = json.loads(run("describe", "t", "--json").output)
    assert tree["metadata"]["name"] == "tiny" and tree["generation"] == 4
    assert tree["status"]["phase"] == "Idle" and tree["replicas"] == []
    assert "phase         Idle" in run("describe", "tiny").output


def test_a_phase_that_nobody_measured_is_not_shown(home: Home, run: Any) -> None:
    write_file(home, "tiny", source="file:///m.gguf")
    shown = ColdStartStatus(
        p50_seconds=1.5, p95_seconds=1.5, phases=ColdStartPhases(verify=0.25, load=1.25)
    )
    artifact = ArtifactStatus(
        digest="sha256:" + "0" * 64,
        reference="a:b",
        format="gguf",
        quantization="Q8_0",
        size_bytes=1,
    )
    status = ModelStatus(cold_start=shown, artifact=artifact)
    ledger = Ledger(home.state_db, machine=machine_name())
    known = KnownModel(spec_hash="h", generation=1, created_unix_s=1, status=status)
    ledger.save_all({"tiny": known})
    tree = json.loads(run("describe", "tiny", "--json").output)
    assert tree["coldStarts"] == {"samples": 0, "p50Seconds": None, "p95Seconds": None, "last": []}
    (row,) = json.loads(run("ls", "--json").output)
    assert row["coldStartSeconds"] is None

    record = start(1.25, digest=artifact.digest)
    ledger.add(replace(record, phases={"verify": 0.25, "load": 1.25}))
    ledger.close()
    tree = json.loads(run("describe", "tiny", "--json").output)
    assert tree["status"]["coldStart"]["phases"] == {"verify": 0.25, "load": 1.25}
    (last,) = tree["coldStarts"]["last"]
    assert set(last) == {"replica", "atUnixSeconds", "verify", "load"}
    text = run("describe", "tiny").output
    assert "verify" in text and "load " in text
    assert "fetch" not in text and "first_token" not in text


BAD = "apiVersion: ai.flexinfer/v1alpha2\nkind: Model\nmetadata: {name: tiny}\nspec:\n  sauce: x\n"


def test_the_only_file_refused_from_the_start_is_a_failed_model_with_its_place(
    home: Home, run: Any
) -> None:
    file = home.models / "tiny.yaml"
    file.write_text(BAD)
    (row,) = json.loads(run("ls", "--json").output)
    assert (row["name"], row["phase"], row["file"]) == ("tiny", "Failed", str(file))
    assert row["message"] == row["refused"] and f"{file}:5:3" in row["message"]
    shown = run("ls")
    assert "no Models" not in shown.output and "Failed" in shown.output
    assert f"{file}:5:3" in shown.stderr
    (condition,) = json.loads(run("describe", "tiny", "--json").output)["status"]["conditions"]
    assert (condition["type"], condition["status"]) == ("ConfigValid", "False")
    assert f"{file}:5:3" in run("describe", "tiny").output


@pytest.mark.parametrize("file", ["tiny.yaml", "another-name.yaml"])
def test_a_model_whose_edit_is_refused_is_shown_as_it_runs(home: Home, run: Any, file: str) -> None:
    (home.models / file).write_text(BAD)
    edit = Condition(
        type="ConfigValid",
        status="False",
        reason="EditRefused",
        message="in words that nobody reads",
    )
    status = ModelStatus(phase="Ready", replicas=1, conditions=(edit,))
    known = KnownModel(spec_hash="h", generation=2, created_unix_s=1, status=status, file=file)
    with closing(Ledger(home.state_db, machine=machine_name())) as ledger:
        ledger.save_all({"another": replace(known, file="gone.yaml"), "tiny": known})
    (row,) = json.loads(run("ls", "--json").output)
    assert (row["name"], row["phase"]) == ("tiny", "Ready")
    assert row["message"].startswith("refused, the old state stays: ")
    assert json.loads(run("describe", "tiny", "--json").output)["generation"] == 2


def building(home: Home, target: str) -> None:
    home.build_records.mkdir(parents=True)
    record = own_record("build", extra={"target": target, "stage": "quantize", "share": "0.4"})
    record.write(home.build_records / "1.json")


def test_a_first_build_is_shown_before_there_is_any_model(home: Home, run: Any) -> None:
    building(home, "tiny/q8-0")
    assert run("ls").output == "no Models yet; building tiny/q8-0: quantize 40%\n"


@pytest.mark.parametrize("source", ["catalog://tiny/q8-0", "catalog://tiny"])
def test_a_model_says_how_far_its_build_is(home: Home, run: Any, source: str) -> None:
    building(home, "tiny/q8-0")
    write_file(home, "mine", source=source)
    write_file(home, "other", source="catalog://tin")
    mine, other = json.loads(run("ls", "--json").output)
    assert mine["message"] == "building tiny/q8-0: quantize 40%"
    assert mine["building"] == {"target": "tiny/q8-0", "stage": "quantize", "share": 0.4}
    assert other["building"] is None and other["message"] == ""


def test_an_unknown_model_is_named_with_the_nearest(home: Home, run: Any) -> None:
    write_file(home, "tiny", source="file:///m.gguf")
    with pytest.raises(NotFound, match="tiny"):
        run("describe", "tinny")
