"""Files, store, builds and state.db of one machine: what changes them, and what the operator makes of it."""

from __future__ import annotations

import asyncio
import errno
import os
import sqlite3
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from flexinfer.artifact import evidence as measured
from flexinfer.catalog import Catalog
from flexinfer.errors import IntegrityError
from flexinfer.fleet import DemandLease
from flexinfer.oci import parse_digest
from flexinfer.places import Home
from flexinfer.plugins import names
from flexinfer.resources.model import Condition, Model, ModelStatus
from flexinfer.settings import CatalogSection
from flexinfer.store import Store
from flexinfer.testing.local_engine import lookup
from flexinfer_operator.facts import ROUTING_ANNOTATION, STRATEGY_GROUP, strategy_problems
from flexinfer_operator.local.binding import Binder, Binding
from flexinfer_operator.local.ledger import machine_name, read_state
from flexinfer_operator.local.models import ModelFiles
from flexinfer_operator.local.sight import Seen, Sight
from flexinfer_operator.plan.action import Build
from flexinfer_operator.plan.view import ModelView, Snapshot
from flexinfer_operator.testing.world import (
    LocalWorld,
    publish,
    replicas_of,
    write_file,
    write_model,
)

Play = Callable[..., None]


def view_of(picture: Snapshot, name: str = "tiny") -> ModelView | None:
    return next((view for view in picture.models if view.name == name), None)


async def condition(world: LocalWorld, kind: str, reason: str) -> Condition:
    """The condition *kind* of `tiny`, once it has *reason*."""

    def found(picture: Snapshot) -> Condition | None:
        view = view_of(picture)
        status = ModelStatus() if view is None or view.status is None else view.status
        return next((c for c in status.conditions if (c.type, c.reason) == (kind, reason)), None)

    picture = await world.until(f"{kind}: {reason}", lambda p: found(p) is not None)
    one = found(picture)
    assert one is not None
    return one


def files_of(home: Home) -> set[tuple[str, str]]:
    """Each Model that is remembered, with the file that defines it."""
    models = read_state(home.state_db, machine=machine_name()).models
    return {(name, known.file) for name, known in models.items()}


async def wake(world: LocalWorld) -> None:
    await world.say(DemandLease(router="r", model="tiny", waiting=1, ttl_s=100))


# Files


def test_a_refused_edit_names_its_place_and_changes_nothing(play: Play) -> None:
    async def scene(world: LocalWorld) -> None:
        await world.put("tiny", config={"slots": 3})
        file = world.home.models / "tiny.yaml"
        file.write_text(
            "apiVersion: ai.flexinfer/v1alpha2\nkind: Model\nmetadata: {name: tiny}\n"
            f"spec:\n  source: file://{world.home.work}/tiny.gguf\n  bakend: scripted\n"
        )
        refused = await condition(world, "ConfigValid", "EditRefused")
        assert f"{file}:6:3" in refused.message and "backend" in refused.message
        view = view_of(world.cluster.observe())
        assert view is not None and view.model.spec.config == {"slots": 3}
        await wake(world)
        kept = ("tiny", "tiny.yaml")
        await world.until("the file's name kept", lambda _: kept in files_of(world.home))
        await world.ready("tiny")
        await world.put("tiny", config={"slots": 4})
        assert (await condition(world, "ConfigValid", "Accepted")).status == "True"

    play(scene)


def test_a_clash_of_aliases_is_told_on_the_terminal_once(play: Play) -> None:
    async def scene(world: LocalWorld) -> None:
        with capture_logs() as logs:
            await world.put("a", aliases=["chat"])
            await world.put("tiny", aliases=["chat"])
            await condition(world, "ConfigValid", "AliasConflict")
            await wake(world)
            await world.ready("tiny")
            await world.phase("tiny", "Ready")
        said = [one["human"] for one in logs if one["event"] == "model_alias_taken"]
        assert said == ["tiny: alias 'chat' is taken by Model 'a': it is not called that"]

    play(scene)


def test_what_was_seen_of_a_model_goes_with_its_file_and_not_with_a_mistake(
    play: Play, home: Home
) -> None:
    async def first(world: LocalWorld) -> None:
        for name in ("tiny", "other"):
            await world.put(name)
            await world.phase(name, "Idle")

    def kept() -> dict[str, bool]:
        models = read_state(home.state_db, machine=machine_name()).models
        return {name: one.status is not None for name, one in models.items()}

    async def nothing(world: LocalWorld) -> None:
        pass

    play(first)
    assert kept() == {"tiny": True, "other": True}
    (home.models / "tiny.yaml").write_text("kind: Model\n")
    (home.models / "other.yaml").unlink()
    play(nothing)
    assert kept() == {"tiny": True}
    with closing(sqlite3.connect(home.state_db)) as db, db:
        db.execute("UPDATE models SET model = ''")  # as an operator wrote it that did not keep this
    play(nothing)
    assert kept() == {"tiny": False}
    (home.models / "tiny.yaml").unlink()
    play(nothing)
    assert kept() == {}


def test_a_config_key_that_the_engine_does_not_know_is_named_with_the_nearest(play: Play) -> None:
    async def scene(world: LocalWorld) -> None:
        await world.put("tiny", config={"slotz": 3})
        refused = await condition(world, "ConfigValid", "ConfigInvalid")
        assert "spec.config.slotz" in refused.message and "'slots'" in refused.message

    play(scene)


def test_a_routing_strategy_that_is_not_here_is_named_with_the_nearest(play: Play) -> None:
    async def scene(world: LocalWorld) -> None:
        await world.put("tiny", routing={"strategy": "least-loadet"})
        await wake(world)
        refused = await condition(world, "ConfigValid", "ConfigInvalid")
        assert refused.status == "False"
        assert "spec.routing.strategy" in refused.message
        assert "did you mean 'least-loaded'?" in refused.message
        await world.phase("tiny", "Failed")
        assert replicas_of(world.cluster.observe(), "tiny") == ()
        await world.put("tiny", routing={"strategy": "least-loaded"})
        await world.ready("tiny")

    play(scene)


def test_every_strategy_that_is_published_is_accepted_and_an_annotation_is_named() -> None:
    def model(strategy: str) -> Model:
        annotations = {ROUTING_ANNOTATION: strategy}
        return Model.model_validate(
            {
                "metadata": {"name": "tiny", "annotations": annotations},
                "spec": {"source": "file:///m.gguf"},
            }
        )

    known = names(STRATEGY_GROUP)
    assert known and all(strategy_problems(model(one)) == () for one in known)
    (problem,) = strategy_problems(model("nonsense"))
    assert problem.startswith(f"metadata.annotations.{ROUTING_ANNOTATION}: ")


def test_a_catalog_entry_that_is_not_there_is_named(play: Play) -> None:
    async def scene(world: LocalWorld) -> None:
        write_file(world.home, "tiny", source="catalog://no-such-entry")
        refused = await condition(world, "ConfigValid", "SourceInvalid")
        assert "no-such-entry" in refused.message

    play(scene)


def test_a_model_defined_twice_is_said(play: Play) -> None:
    async def scene(world: LocalWorld) -> None:
        await world.put("tiny")
        (world.home.models / "z.yaml").write_bytes((world.home.models / "tiny.yaml").read_bytes())
        refused = await condition(world, "ConfigValid", "EditRefused")
        assert "z.yaml" in refused.message and "tiny.yaml" in refused.message

    play(scene)


# The store


@contextmanager
def refused(home: Home, name: str) -> Iterator[None]:
    """The disk refuses the manifest of the artifact of *name*: what lies there cannot be opened."""
    store = Store(home.store)
    manifest = store.path(publish(home, f"file://{home.work}/{name}.gguf", name.encode()).digest)
    aside = manifest.rename(home.work / "manifest")
    manifest.symlink_to(manifest)
    yield
    manifest.unlink()
    aside.rename(manifest)


def test_a_new_build_under_the_same_name_is_rolled_out(play: Play) -> None:
    async def scene(world: LocalWorld) -> None:
        await world.put("tiny")
        await wake(world)
        (old,) = await world.ready("tiny")
        source = f"file://{world.home.work}/tiny.gguf"
        new = publish(world.home, source, b"other weights")
        await world.until(
            "the new digest ready",
            lambda p: any(
                one.digest == new.digest and one.state == "ready" for one in replicas_of(p, "tiny")
            ),
        )
        assert old.digest != new.digest

    play(scene)


def test_a_name_that_is_gone_leaves_the_pinned_digest_serving(play: Play) -> None:
    async def scene(world: LocalWorld) -> None:
        await world.put("tiny")
        status = await world.phase("tiny", "Idle")
        assert status.artifact is not None
        Store(world.home.store).untag(status.artifact.reference)
        source = f"file://{world.home.work}/tiny.gguf"
        write_file(world.home, "tiny", source=source, aliases=["seen"])
        await world.until(
            "another look",
            lambda p: (v := view_of(p)) is not None and v.model.spec.aliases == ("seen",),
        )
        await wake(world)
        (replica,) = await world.ready("tiny")
        assert replica.digest == status.artifact.digest

    play(scene, build=succeeds)


def test_evidence_that_arrives_opens_the_gate(play: Play) -> None:
    async def scene(world: LocalWorld) -> None:
        await world.put("tiny", quality={"require": "attestation", "minSameTop": 0.9})
        await wake(world)
        assert (await condition(world, "Verified", "EvidenceMissing")).status == "False"
        assert replicas_of(world.cluster.observe(), "tiny") == ()
        result = measured.TestResult(
            result="PASSED", passed=("smoke",), failed=(), measurements={measured.SAME_TOP: 0.95}
        )
        publish(world.home, f"file://{world.home.work}/tiny.gguf", b"tiny" * 10, evidence=result)
        await world.ready("tiny")

    play(scene)


def test_a_change_that_one_failed_look_saw_is_bound_by_the_next(home: Home) -> None:
    write_model(home, "good")
    write_file(home, "tiny", source=f"file://{home.work}/tiny.gguf")
    binder = Binder(home, CatalogSection(), store=Store(home.store), engines=lookup)
    sight = Sight(files=ModelFiles(home.models), binder=binder)

    def look() -> Seen | None:
        return asyncio.run(sight.look(lambda _: None, with_catalog=True, is_asked=False))

    with refused(home, "tiny"):
        first = look()
    assert first is not None and first.bindings["good"].bound.is_cached
    failure = first.bindings["tiny"].bound.unreadable
    assert failure is not None and failure.code == "disk_error"
    second = look()
    assert second is not None and list(second.bindings) == ["tiny"]
    assert second.bindings["tiny"].bound.is_cached
    assert look() is None

    # One that was bound well is given a moment; nothing of the edit is lost.
    write_file(home, "tiny", source=f"file://{home.work}/tiny.gguf", aliases=["t"])
    with refused(home, "tiny"):
        looks = [look() for _ in range(3)]
    said = [one is not None and "tiny" in one.bindings for one in looks]
    assert said == [False, False, True]
    healed = look()
    assert healed is not None and healed.bindings["tiny"].bound.is_cached
    assert healed.written["tiny"].model.spec.aliases == ("t",)
    assert look() is None


def test_news_of_a_look_that_failed_whole_are_not_lost(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_model(home, "tiny")
    binder = Binder(home, CatalogSection(), store=Store(home.store), engines=lookup)
    sight = Sight(files=ModelFiles(home.models), binder=binder)

    def look() -> Seen | None:
        return asyncio.run(sight.look(lambda _: None, with_catalog=True, is_asked=False))

    assert look() is not None and look() is None
    new = publish(home, f"file://{home.work}/tiny.gguf", b"other")
    binder._catalog_marks = ()  # an entry changed
    with monkeypatch.context() as patch:

        def load(*_: object) -> Catalog:
            raise OSError(errno.EIO, "Input/output error")

        patch.setattr(Catalog, "load", load)
        with pytest.raises(OSError, match="Input/output"):
            look()
    seen = look()
    assert seen is not None and seen.bindings["tiny"].bound.digest == new.digest
    assert look() is None


def test_a_store_entry_that_cannot_be_read_fails_one_model_with_its_reason(play: Play) -> None:
    async def scene(world: LocalWorld) -> None:
        with refused(world.home, "tiny"):
            write_file(world.home, "tiny", source=f"file://{world.home.work}/tiny.gguf")
            await world.put("good")
            failed = await world.phase("tiny", "Failed")
            assert "Too many levels of symbolic links" in failed.message
            await condition(world, "Cached", "StoreUnreadable")
            await world.phase("good", "Idle")
        await world.phase("tiny", "Idle")

    play(scene)


# Builds


def succeeds(source: str) -> tuple[str, ...]:
    return (sys.executable, "-c", "")


def restores(home: Home, data: bytes) -> Callable[[str], tuple[str, ...]]:
    """A build that publishes *data*, and counts how often it ran."""

    def command(source: str) -> tuple[str, ...]:
        program = (
            "import sys; from pathlib import Path; from flexinfer.places import Home;"
            "from flexinfer_operator.testing.world import publish;"
            "home = Home(Path(sys.argv[1]));"
            "(home.work / 'builds').open('a').write(sys.argv[2] + '\\n');"
            "publish(home, sys.argv[2], bytes.fromhex(sys.argv[3]))"
        )
        return (sys.executable, "-c", program, str(home.root), source, data.hex())

    return command


def builds_of(home: Home) -> list[str]:
    return (home.work / "builds").read_text().splitlines()


def test_what_is_not_built_is_built_and_then_serves(play: Play, home: Home) -> None:
    source = f"file://{home.work}/tiny.gguf"

    async def scene(world: LocalWorld) -> None:
        write_file(world.home, "tiny", source=source)
        await condition(world, "Cached", "CacheNotReady")
        await wake(world)
        await world.ready("tiny")

    play(scene, build=restores(home, b"weights"))
    assert builds_of(home) == [source]


def flip_a_bit(home: Home, digest: str) -> Path:
    """Damage the first layer of an artifact, as a bad disk does."""
    store = Store(home.store)
    (file,) = store.artifact(parse_digest(digest)).files
    path = store.path(file.digest)
    os.chmod(path, 0o644)
    with path.open("r+b") as stream:
        first = stream.read(1)
        stream.seek(0)
        stream.write(bytes([first[0] ^ 1]))
    return path


def test_a_flipped_bit_is_never_started_and_is_built_again_once(play: Play, home: Home) -> None:
    async def scene(world: LocalWorld) -> None:
        await world.put("tiny")
        status = await world.phase("tiny", "Idle")
        assert status.artifact is not None
        flip_a_bit(world.home, status.artifact.digest)
        await wake(world)
        (replica,) = await world.ready("tiny")
        assert replica.digest == status.artifact.digest
        assert len(Store(world.home.store).quarantined()) == 1
        view = view_of(world.cluster.observe())
        assert view is not None and view.crashes == ()  # who waited was held, not refused

    play(scene, build=restores(home, b"tiny" * 10))
    assert len(builds_of(home)) == 1


def test_a_touched_blob_is_not_called_verified_until_it_was_hashed(play: Play) -> None:
    async def scene(world: LocalWorld) -> None:
        await world.put("tiny")
        await condition(world, "Verified", "EvidenceAccepted")
        status = await world.phase("tiny", "Idle")
        assert status.artifact is not None
        path = flip_a_bit(world.home, status.artifact.digest)
        doubted = await condition(world, "Verified", "StampChanged")
        assert doubted.status == "Unknown"
        assert path.name in doubted.message and "model.gguf" in doubted.message
        flip_a_bit(world.home, status.artifact.digest)  # as it was; only a hash can tell
        assert (await condition(world, "Verified", "StampChanged")).status == "Unknown"
        await wake(world)
        await world.ready("tiny")
        assert (await condition(world, "Verified", "EvidenceAccepted")).status == "True"

    play(scene)


def test_a_checkout_and_its_end_leave_the_artifact_verified(play: Play) -> None:
    async def scene(world: LocalWorld) -> None:
        await world.put("tiny")
        status = await world.phase("tiny", "Idle")
        assert status.artifact is not None
        store = Store(world.home.store)
        for _ in range(20):
            with store.checkout(parse_digest(status.artifact.digest)):
                pass
            store.collect_partials(0)
            view = view_of(world.cluster.observe())
            assert view is not None and view.bound.doubt == ""

    play(scene)


def test_damage_that_a_build_does_not_heal_fails_the_model(play: Play) -> None:
    async def scene(world: LocalWorld) -> None:
        await world.put("tiny")
        status = await world.phase("tiny", "Idle")
        assert status.artifact is not None
        flip_a_bit(world.home, status.artifact.digest)
        with pytest.raises(IntegrityError):
            Store(world.home.store).checkout(parse_digest(status.artifact.digest))
        await wake(world)
        failed = await world.phase("tiny", "Failed")
        assert "quarantine" in failed.message and "ended well, and yet" in failed.message
        assert replicas_of(world.cluster.observe(), "tiny") == ()

    play(scene, build=succeeds)


def test_a_build_that_fails_is_shown_with_its_last_words(play: Play) -> None:
    def fails(source: str) -> tuple[str, ...]:
        return (sys.executable, "-c", "import sys; sys.exit('error[fetch_failed]: no network')")

    async def scene(world: LocalWorld) -> None:
        write_file(world.home, "tiny", source=f"file://{world.home.work}/none.gguf")
        await world.until(
            "the failure",
            lambda p: (v := view_of(p)) is not None and len(v.builds.failures) == 1,
        )
        shown = await world.until(
            "its words",
            lambda p: (
                (v := view_of(p)) is not None
                and v.status is not None
                and "no network" in v.status.message
            ),
        )
        view = view_of(shown)
        assert view is not None and view.status is not None and view.status.phase == "Failed"
        await world.until(
            "the router to be told",
            lambda _: (t := world.told()) is not None and t.models[0].failure is not None,
        )
        told = world.told()
        assert told is not None and told.models[0].failure is not None
        assert "fetch_failed: no network" in told.models[0].failure.message
        cached = next(one for one in view.status.conditions if one.type == "Cached")
        assert str(world.home.log("operator-build")) in cached.message
        assert str(world.home.root) not in told.models[0].failure.message

    play(scene, build=fails)


@pytest.mark.parametrize(
    ("exit_code", "code", "is_passing"),
    [(6, "connect_failed", True), (1, "disk_full", True), (1, "crash", False), (4, "gone", False)],
)
def test_what_is_away_for_now_is_told_from_what_fails_again(
    play: Play, exit_code: int, code: str, is_passing: bool
) -> None:
    def fails(source: str) -> tuple[str, ...]:
        words = f"import sys; print('error[{code}]: words'); sys.exit({exit_code})"
        return (sys.executable, "-c", words)

    async def scene(world: LocalWorld) -> None:
        write_file(world.home, "tiny", source=f"file://{world.home.work}/none.gguf")
        picture = await world.until(
            "the failure",
            lambda p: (v := view_of(p)) is not None and len(v.builds.failures) == 1,
        )
        view = view_of(picture)
        assert view is not None
        (failure,) = view.builds.failures
        assert (failure.message, failure.is_passing) == (f"{code}: words", is_passing)

    play(scene, build=fails)


def test_a_build_that_ends_during_a_look_is_judged_by_the_next_one(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = f"file://{home.work}/tiny.gguf"
    begun, first, second = threading.Event(), threading.Event(), threading.Event()
    bind = Binder.bind

    def slowly(binder: Binder, model: Model, status: ModelStatus | None) -> Binding:
        found = bind(binder, model, status)  # old when it is told
        gate = second if begun.is_set() else first
        begun.set()
        assert gate.wait(20)
        return found

    async def scene(world: LocalWorld) -> None:
        write_file(home, "tiny", source=source)
        picture = await world.until("tiny", lambda p: view_of(p) is not None)
        with monkeypatch.context() as patch, capture_logs() as logs:
            patch.setattr(Binder, "bind", slowly)
            write_file(home, "tiny", source=source, aliases=["seen"])
            await world.until("the look", lambda _: begun.is_set())
            build = Build(model="tiny", source=source, reference="", why="test")
            await world.cluster.apply(build, observed=picture.revision)
            ended = "build_finished"
            await world.until("its end", lambda _: any(one["event"] == ended for one in logs))
            first.set()
            picture = await world.until(
                "what the look found",
                lambda p: (v := view_of(p)) is not None and v.model.spec.aliases == ("seen",),
            )
            view = view_of(picture)
            assert view is not None and not view.bound.is_cached
            assert view.builds.is_running and view.builds.failures == ()
            second.set()
            await world.until(
                "what the build left",
                lambda p: (
                    (v := view_of(p)) is not None and v.bound.is_cached and not v.builds.is_running
                ),
            )

    async def whole() -> None:
        async with LocalWorld(home, build=restores(home, b"weights")) as world:
            await scene(world)

    asyncio.run(whole())


def test_two_models_of_one_source_count_one_failure_of_its_build(home: Home) -> None:
    source = f"file://{home.work}/none.gguf"

    async def scene() -> None:
        async with LocalWorld(home, build=succeeds) as world:
            for name in ("tiny", "other"):
                write_file(home, name, source=source)
            picture = await world.until("both", lambda p: len(p.models) == 2)
            build = Build(model="tiny", source=source, reference="", why="test")
            await world.cluster.apply(build, observed=picture.revision)
            picture = await world.until(
                "its failure", lambda p: any(view.builds.failures for view in p.models)
            )
            assert [len(view.builds.failures) for view in picture.models] == [1, 1]
            assert not any(view.builds.is_running for view in picture.models)

    asyncio.run(scene())


def test_a_build_whose_source_is_not_there_fails_the_model_at_once(play: Play) -> None:
    def fails(source: str) -> tuple[str, ...]:
        words = "import sys; print('error[source_not_found]: no such file'); sys.exit(4)"
        return (sys.executable, "-c", words)

    async def scene(world: LocalWorld) -> None:
        write_file(world.home, "tiny", source=f"file://{world.home.work}/none.gguf")
        status = await world.phase("tiny", "Failed")
        assert "source_not_found" in status.message

    play(scene, build=fails)


@pytest.mark.parametrize("is_deleted_first", [False, True])
def test_who_edits_a_model_whose_build_failed_waits_for_no_back_off(
    play: Play, home: Home, is_deleted_first: bool
) -> None:
    """The second failure would be the second in a row, and come after 15 s."""
    builds = home.work / "builds"

    def fails(source: str) -> tuple[str, ...]:
        program = f"open({str(builds)!r}, 'a').write('x'); raise SystemExit('no')"
        return (sys.executable, "-c", program)

    def failed(picture: Snapshot, times: int) -> bool:
        view = view_of(picture)
        is_over = view is not None and bool(view.builds.failures) and not view.builds.is_running
        return is_over and len(builds.read_text()) == times

    async def scene(world: LocalWorld) -> None:
        write_file(home, "tiny", source=f"file://{home.work}/none.gguf")
        await world.until("a failure", lambda picture: failed(picture, 1))
        if is_deleted_first:
            await world.remove("tiny")
        write_file(home, "tiny", source=f"file://{home.work}/none.gguf", aliases=["edited"])
        picture = await world.until("another one", lambda picture: failed(picture, 2))
        view = view_of(picture)
        assert view is not None and len(view.builds.failures) == 1

    play(scene, build=fails)


def test_a_build_ends_with_the_operator(play: Play, home: Home) -> None:
    mark = home.work / "pid"

    def lasts(source: str) -> tuple[str, ...]:
        program = (
            f"import os, time; open({str(mark)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
        )
        return (sys.executable, "-c", program)

    async def scene(world: LocalWorld) -> None:
        write_file(world.home, "tiny", source=f"file://{world.home.work}/none.gguf")
        await world.until("the build", lambda _: mark.exists() and bool(mark.read_text()))

    play(scene, build=lasts)
    with pytest.raises(ProcessLookupError):
        os.kill(int(mark.read_text()), 0)


# state.db


def test_what_was_seen_outlives_the_operator(play: Play) -> None:
    async def first(world: LocalWorld) -> None:
        await world.put("tiny", aliases=["a"])
        await world.put("tiny", aliases=["b"])
        await wake(world)
        await world.ready("tiny")

    async def second(world: LocalWorld) -> None:
        view = view_of(world.cluster.observe())
        assert view is not None and view.generation == 2 and view.starts == 1
        assert view.status is not None and view.status.phase == "Idle"
        created = view.created_unix_s
        await world.put("tiny", aliases=["c"])
        view = view_of(world.cluster.observe())
        assert view is not None and (view.generation, view.created_unix_s) == (3, created)

    play(first)
    play(second)


def test_a_refused_edit_leaves_the_old_state_over_a_restart_too(play: Play, home: Home) -> None:
    async def first(world: LocalWorld) -> None:
        await world.put("tiny", aliases=["a"])
        await world.phase("tiny", "Idle")

    async def second(world: LocalWorld) -> None:
        shown = await world.until(
            "the fault", lambda p: (v := view_of(p)) is not None and bool(v.edit_fault)
        )
        view = view_of(shown)
        assert view is not None and view.model.spec.aliases == ("a",) and view.generation == 1
        await wake(world)
        await world.ready("tiny")

    play(first)
    (file,) = home.models.glob("*.yaml")
    file.write_text(file.read_text() + "\n  - {", "utf-8")
    play(second)


def test_a_broken_state_db_is_put_aside(play: Play, home: Home) -> None:
    home.state_db.write_bytes(b"this is no database, and was never one" * 100)

    async def scene(world: LocalWorld) -> None:
        await world.put("tiny")
        await world.phase("tiny", "Idle")

    play(scene)
    assert home.state_db.with_name("state.db.broken").exists()
    with sqlite3.connect(home.state_db) as db:
        assert db.execute("SELECT name FROM models").fetchall() == [("tiny",)]
    db.close()
