"""Names and bytes are removed: by whom nobody uses them, beside who writes, and whenever it is killed."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from threading import Event, Semaphore, Thread
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from flexinfer.commands.artifact import app
from flexinfer.commands.removal import parse_age
from flexinfer.errors import Conflict, IntegrityError, InvalidInput, NotFound, ResourceExhausted
from flexinfer.oci import Digest
from flexinfer.places import Home
from flexinfer.store import Evidence, Store
from flexinfer.units import format_bytes

Run = Callable[..., Result]
MODEL = """
apiVersion: ai.flexinfer/v1alpha2
kind: Model
metadata: {name: mine}
spec: {source: "catalog://smol/q8-0", backend: llamacpp}
"""
ENTRY = """
apiVersion: ai.flexinfer/v1alpha2
kind: CatalogEntry
metadata: {name: smol}
spec:
  source: {uri: "pypi://x==1/y.gguf"}
  license: {expression: Apache-2.0}
  publish: {repository: smol}
  variants: [{name: q8-0, quantize: {format: gguf, type: Q8_0}}]
"""
KILLED = """
import os, signal, sys
from pathlib import Path
from flexinfer.store import Evidence, Store
store = Store(Path(sys.argv[1]))
real, left = os.unlink, [int(sys.argv[2])]
def unlink(*args, **more):
    left[0] -= 1
    if left[0] < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    real(*args, **more)
os.unlink = unlink
store.collect(grace_s=0)
"""


@pytest.fixture
def run(home: Home) -> Run:
    def invoke(*arguments: str) -> Result:
        return CliRunner().invoke(app, list(arguments), env={"FLEXINFER_HOME": str(home.root)})

    return invoke


@pytest.fixture
def published(home: Home, publish: Callable[..., Any]) -> Any:
    found = publish(Store(home.store))
    found.store.tag("smol:build-0123456789abcdef", found.manifest)
    return found


def count(store: Store) -> int:
    return len(list((store.root / "blobs/sha256").iterdir()))


def test_a_removed_artifact_is_freed_with_its_evidence(run: Run, published: Any) -> None:
    kept = published.store.put_bytes(b"of nobody, but fresh")
    done = run("rm", published.name)
    assert done.exit_code == 0, done.output
    assert "removed the name smol:build-0123456789abcdef" in done.stdout
    assert "flexinfer artifact gc" in done.stdout
    assert published.store.tags() == ()
    fresh = json.loads(run("gc", "--json").stdout)
    assert fresh["freedBytes"] == 0  # all of it was touched within the hour
    said = json.loads(run("gc", "--dry-run", "--older-than", "0", "--json").stdout)
    assert said["dryRun"] and published.store.has(kept)
    gone = json.loads(run("gc", "--older-than", "0", "--json").stdout)
    assert (gone["blobs"], gone["freedBytes"]) == (said["blobs"], said["blobBytes"])
    assert count(published.store) == 0
    assert not list((published.store.root / ".flexinfer/stamps").iterdir())
    assert Store(published.store.root).manifests() == ()


@pytest.mark.parametrize("command", [("gc",), ("gc", "--dry-run")])
def test_what_is_too_young_to_go_is_told(
    run: Run, published: Any, command: tuple[str, ...]
) -> None:
    assert "younger" not in run(*command).stdout
    run("rm", published.name)
    with published.store.writer(key="k", expected=Digest("sha256:" + "0" * 64)) as writer:
        writer.write(b"begun")
    all_of_it = json.loads(run("gc", "--dry-run", "--older-than", "0", "--json").stdout)
    said = json.loads(run(*command, "--json").stdout)
    assert (said["freedBytes"], said["youngerBytes"]) == (0, all_of_it["freedBytes"])
    assert all_of_it["youngerBytes"] == 0
    size = format_bytes(all_of_it["freedBytes"])
    last = run(*command).stdout.splitlines()[-1]
    assert last == f"{size} of no name are younger than 1h; --older-than 0 takes them"


def test_what_has_another_name_keeps_its_bytes(run: Run, published: Any) -> None:
    published.store.tag("smol:second", published.manifest)
    before = count(published.store)
    done = json.loads(run("rm", published.name, "--json").stdout)
    assert done == {"removed": [published.name], "freeableBytes": 0}
    run("gc", "--older-than", "0")
    assert count(published.store) == before
    assert not published.store.verify_artifact(published.manifest.digest, force=True).failures


def test_what_a_model_asks_for_is_refused_until_forced(
    run: Run, published: Any, home: Home
) -> None:
    (home.catalogs / "smol.yaml").write_text(ENTRY)
    (home.models / "mine.yaml").write_text(MODEL)
    refused = run("rm", published.name)
    assert isinstance(refused.exception, Conflict)
    assert refused.exception.code == "artifact_in_use"
    assert "models/mine.yaml" in refused.exception.message
    assert run("rm", published.name, "--force").exit_code == 0


def test_an_editors_own_file_beside_the_models_asks_for_nothing(
    run: Run, published: Any, home: Home
) -> None:
    (home.models / ".#mine.yaml").symlink_to("somebody@host.1:1")
    assert run("rm", published.name).exit_code == 0


def test_what_is_leased_is_neither_unnamed_nor_collected(run: Run, published: Any) -> None:
    with published.store.checkout(published.manifest.digest) as lease:
        refused = run("rm", published.name)
        assert isinstance(refused.exception, Conflict)
        assert run("rm", published.name, "--force").exit_code == 0
        run("gc", "--older-than", "0")
        assert (lease.path / "model.gguf").exists()
        assert published.store.has(published.weights)
    run("gc", "--older-than", "0")
    assert count(published.store) == 0


def test_what_a_journal_names_stays(run: Run, published: Any, home: Home) -> None:
    digest = published.store.put_bytes(b"fetched, not named yet")
    other = published.store.put_bytes(b"refused")
    folder = home.work / "build-0123456789abcdef"
    folder.mkdir()
    (folder / "journal.json").write_text(json.dumps({"steps": {"fetch": {"digests": [digest]}}}))
    run("gc", "--older-than", "0")
    assert published.store.has(digest)
    assert not published.store.has(other)


def test_nothing_is_collected_while_a_build_works(run: Run, published: Any) -> None:
    store = published.store
    with store.working():
        digest = store.put_bytes(b"no name yet")
        refused = run("gc", "--older-than", "0")
        assert isinstance(refused.exception, Conflict)
        assert refused.exception.code == "build_running"
        assert store.has(digest)
    run("gc", "--older-than", "0")
    assert not store.has(digest)


def test_a_writer_beside_it_loses_nothing_that_it_has_named(
    home: Home, publish: Callable[..., Any]
) -> None:
    store = Store(home.store)
    ended = Event()
    swept = Semaphore(0)

    def sweep() -> None:
        other = Store(home.store)
        while not ended.wait(0.02):
            try:
                other.collect(grace_s=0)
            except Conflict:
                continue
            swept.release()

    thread = Thread(target=sweep)
    thread.start()
    try:
        for number in range(20):
            assert swept.acquire(timeout=60)  # one for each at least, however the two take turns
            for _ in range(20):
                try:
                    if number % 2:
                        with store.working():
                            publish(store, name=f"m:{number}", weights=b"w%d" % number * 999)
                    else:  # without the lock it may be refused, but never half named
                        publish(store, name=f"m:{number}", weights=b"w%d" % number * 999)
                    break
                except (NotFound, FileNotFoundError):
                    assert number % 2 == 0
    finally:
        ended.set()
        thread.join()
    named = store.tags()
    assert {f"m:{number}" for number in range(1, 20, 2)} <= {name for name, _ in named}
    for _, descriptor in named:
        assert not store.verify_artifact(descriptor.digest, force=True).failures


@pytest.mark.parametrize("after", [0, 1, 3])
def test_killed_at_any_deletion_the_next_one_goes_on(
    published: Any, publish: Callable[..., Any], after: int
) -> None:
    store = published.store
    publish(store, name="other:q8-0", weights=b"other" * 999)
    for name, _ in store.tags():
        if name.startswith("smol:"):
            store.untag(name)
    done = subprocess.run([sys.executable, "-c", KILLED, str(store.root), str(after)])
    assert done.returncode == -signal.SIGKILL
    again = Store(store.root)
    (other,) = (d for name, d in again.tags() if name == "other:q8-0")
    assert not again.verify_artifact(other.digest, force=True).failures
    assert not again.scrub().missing
    again.collect(grace_s=0)
    assert not again.has(published.weights)
    assert not again.verify_artifact(other.digest, force=True).failures


def test_a_named_manifest_that_cannot_be_read_stops_it(run: Run, published: Any) -> None:
    path = published.store.path(published.manifest.digest)
    os.chmod(path, 0o600)
    path.write_bytes(b"{}")
    refused = run("gc", "--older-than", "0")
    assert isinstance(refused.exception, IntegrityError)
    assert published.name in refused.exception.message
    assert published.store.has(published.weights)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.EIO])
def test_evidence_that_cannot_be_read_now_stops_it_and_stays(
    published: Any, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    store = published.store
    (referrer,) = store.referrers(published.manifest.digest)
    before, real = count(store), os.open

    def refused(path: Any, *rest: Any, **more: Any) -> int:
        if str(path) == str(store.path(referrer.digest)):
            raise OSError(number, os.strerror(number))
        return real(path, *rest, **more)

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", refused)
        with pytest.raises(ResourceExhausted) as caught:
            store.collect(grace_s=0)
    assert caught.value.code == "disk_error"
    assert count(store) == before
    assert len(store.evidence(published.manifest.digest).statements) == 1


@pytest.mark.parametrize("wrong", [None, b"{}", b"x" * 5_000_000])
def test_evidence_that_is_gone_or_wrong_is_forgotten(published: Any, wrong: bytes | None) -> None:
    store = published.store
    (referrer,) = store.referrers(published.manifest.digest)
    store.path(referrer.digest).unlink()
    if wrong is not None:
        store.path(referrer.digest).write_bytes(wrong)
    assert referrer.digest in store.collect(grace_s=0).manifests
    assert store.evidence(published.manifest.digest) == Evidence(statements=(), damaged=())


def test_a_lease_that_cannot_be_read_now_is_not_taken_for_none(
    published: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = published.store
    store.untag(published.name)
    store.untag("smol:build-0123456789abcdef")
    real = Path.read_bytes

    def refused(path: Path) -> bytes:
        if path.parent.name == "checkouts":
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return real(path)

    with store.checkout(published.manifest.digest):
        with monkeypatch.context() as patched:
            patched.setattr(Path, "read_bytes", refused)
            with pytest.raises(ResourceExhausted):
                store.collect(grace_s=0)
        assert store.has(published.weights)


def test_a_journal_that_cannot_be_read_stops_it(run: Run, published: Any, home: Home) -> None:
    digest = published.store.put_bytes(b"fetched, not named yet")
    (home.work / "build-0123456789abcdef" / "journal.json").mkdir(parents=True)
    refused = run("gc", "--older-than", "0")
    assert isinstance(refused.exception, ResourceExhausted)
    assert "journal.json" in refused.exception.message
    assert published.store.has(digest)


@pytest.mark.parametrize(
    "text", ["spec: [", MODEL.replace("catalog://smol", "catalog://other"), None]
)
def test_a_model_file_that_does_not_tell_is_taken_for_a_user(
    run: Run, published: Any, home: Home, text: str | None
) -> None:
    (home.catalogs / "smol.yaml").write_text(ENTRY)
    if text is None:
        (home.models / "mine.yaml").mkdir()
    else:
        (home.models / "mine.yaml").write_text(text)
    refused = run("rm", published.name)
    assert isinstance(refused.exception, Conflict)
    assert refused.exception.code == "model_file_unreadable"
    assert "models/mine.yaml" in refused.exception.message
    assert dict(published.store.tags())[published.name] == published.manifest
    assert run("rm", published.name, "--force").exit_code == 0


def test_a_name_whose_manifest_is_wrong_can_be_taken_away(run: Run, published: Any) -> None:
    path = published.store.path(published.manifest.digest)
    path.unlink()
    path.write_bytes(b"{}")
    assert run("rm", published.name).exit_code == 0
    assert published.store.tags() == ()
    assert run("gc", "--older-than", "0").exit_code == 0


def test_a_dry_run_says_the_same_as_the_real_one(run: Run, published: Any) -> None:
    run("rm", published.name)
    with published.store.writer(key="k", expected=Digest("sha256:" + "0" * 64)) as writer:
        writer.write(b"begun")
    (published.store.root / "quarantine" / "x.y").write_bytes(b"bad")
    said = json.loads(run("gc", "--dry-run", "--older-than", "0", "--json").stdout)
    assert (said["otherFiles"], said["otherBytes"]) == (2, 8)
    assert (published.store.root / "quarantine" / "x.y").exists()
    done = json.loads(run("gc", "--older-than", "0", "--json").stdout)
    assert said | {"dryRun": False} == done


def test_a_dry_run_counts_no_partial_whose_writer_lives(run: Run, published: Any) -> None:
    with published.store.writer(key="k") as writer:
        writer.write(b"begun")
        said = json.loads(run("gc", "--dry-run", "--older-than", "0", "--json").stdout)
    assert said["otherFiles"] == 0


def test_a_dry_run_says_that_a_build_would_refuse_the_real_one(run: Run, published: Any) -> None:
    assert not json.loads(run("gc", "--dry-run", "--json").stdout)["buildRunning"]
    with published.store.working():
        assert json.loads(run("gc", "--dry-run", "--json").stdout)["buildRunning"]
        assert "a build is running" in run("gc", "--dry-run").stdout


def test_a_lost_index_stops_all_and_its_artifacts_are_found_again(
    run: Run, published: Any, home: Home
) -> None:
    (home.store / "index.json").unlink()
    before = count(published.store)
    for command in (["gc", "--older-than", "0"], ["ls"], ["scrub"]):
        refused = run(*command)
        assert isinstance(refused.exception, IntegrityError)
        assert refused.exception.code == "index_missing"
        assert f"{home.store}/index.json" in refused.exception.message
        assert "scrub --rebuild-index" in refused.exception.message
    with pytest.raises(IntegrityError, match="is missing"):
        published.store.collect(grace_s=0)  # a process that had it open
    assert count(published.store) == before
    found = json.loads(run("scrub", "--rebuild-index", "--json").stdout)
    assert found["recovered"] == [f"recovered:{published.manifest.digest[7:23]}"]
    run("gc", "--older-than", "0")
    assert count(published.store) == before
    again = Store(home.store)
    assert again.resolve(found["recovered"][0]) == published.manifest
    assert len(again.evidence(published.manifest.digest).statements) == 1
    assert "nothing was rebuilt" in run("scrub", "--rebuild-index").stdout
    assert [name for name, _ in Store(home.store).tags()] == found["recovered"]


def test_partials_and_quarantine_go_when_they_are_old(run: Run, published: Any) -> None:
    with published.store.writer(key="k", expected=Digest("sha256:" + "0" * 64)) as writer:
        writer.write(b"begun")
    (published.store.root / "quarantine" / "x.y").write_bytes(b"bad")
    assert json.loads(run("gc", "--json").stdout)["otherFiles"] == 0
    assert json.loads(run("gc", "--older-than", "0", "--json").stdout)["otherFiles"] == 2


def test_a_name_that_is_not_there_is_said_with_those_that_are(run: Run, published: Any) -> None:
    for command in ("rm", "inspect", "verify"):
        refused = run(command, "smol")
        assert isinstance(refused.exception, NotFound)
        assert "there are: smol:q8-0" in refused.exception.message
    assert "did you mean 'smol:q8-0'" in str(run("inspect", "smoll:q8-0").exception)


def test_an_empty_store_says_that_a_build_is_running(run: Run, home: Home) -> None:
    with Store(home.store).working():
        assert "flexinfer status" in run("ls").stdout
    assert "flexinfer build" in run("ls").stdout


@pytest.mark.parametrize(
    ("text", "seconds"), [("0", 0), ("90s", 90), ("30m", 1800), ("2d", 172800)]
)
def test_a_time_is_read(text: str, seconds: float) -> None:
    assert parse_age(text) == seconds


@pytest.mark.parametrize("text", ["", "5", "-1h", "1w", "1.5h"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="expected a time"):
        parse_age(text)
