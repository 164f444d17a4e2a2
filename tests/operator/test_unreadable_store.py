"""A store that cannot be read for a while, under a Model that serves: static for its traffic, told to whoever asks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from flexinfer.artifact import PREDICATE_TEST_RESULT, statement
from flexinfer.artifact.evidence import TestResult
from flexinfer.fleet import DemandLease, FleetModel
from flexinfer.oci import digest_of
from flexinfer.store import Store
from flexinfer_operator.testing.world import LocalWorld, publish, replicas_of, write_file

Play = Callable[..., None]


def published(world: LocalWorld) -> FleetModel | None:
    """What routers are told of `tiny` now."""
    snapshot = world.told()
    return (
        None if snapshot is None else next((m for m in snapshot.models if m.name == "tiny"), None)
    )


def aliases(world: LocalWorld) -> tuple[str, ...]:
    known = published(world)
    return () if known is None else known.aliases


def test_what_serves_goes_on_and_its_endpoints_stay_known(play: Play) -> None:
    async def scene(world: LocalWorld) -> None:
        await world.put("tiny")
        await world.say(DemandLease(router="r", model="tiny", waiting=1, ttl_s=300))
        (replica,) = await world.ready("tiny")
        before = published(world)
        assert before is not None and before.endpoints and before.context_tokens
        index = world.home.store / "index.json"
        whole = index.read_bytes()
        index.write_bytes(whole[:40])
        await world.until(
            "the store is seen to be unreadable",
            lambda p: any(view.bound.unreadable is not None for view in p.models),
        )
        # Something that routers are told after it.
        write_file(world.home, "tiny", source=f"file://{world.home.work}/tiny.gguf", aliases=["t"])
        await world.until("the edit is told", lambda _: aliases(world) == ("t",))
        after = published(world)
        assert after is not None
        assert (after.endpoints, after.context_tokens) == (before.endpoints, before.context_tokens)
        assert [one.phase for one in after.replicas] == ["ready"]
        assert after.failure is None
        index.write_bytes(whole)
        await world.until(
            "it is read again",
            lambda p: all(view.bound.unreadable is None for view in p.models),
        )
        assert [one.id for one in replicas_of(world.cluster.observe(), "tiny")] == [replica.id]

    play(scene)


def test_a_damaged_statement_takes_nothing_from_the_whole_one(play: Play) -> None:
    passed = TestResult(result="PASSED", passed=("smoke",), failed=(), measurements={})

    async def scene(world: LocalWorld) -> None:
        source = f"file://{world.home.work}/tiny.gguf"
        store = Store(world.home.store)
        artifact = publish(world.home, source, b"tiny", evidence=passed)
        for number in range(8):
            result = replace(passed, measurements={"smoke.answered": number})
            said = statement("x", artifact.digest, PREDICATE_TEST_RESULT, result.to_predicate())
            store.attest(artifact, said)
            store.path(digest_of(said)).unlink()
        write_file(world.home, "tiny", source=source, quality={"require": "attestation"})
        await world.say(DemandLease(router="r", model="tiny", waiting=1, ttl_s=300))
        await world.ready("tiny")

    play(scene)
