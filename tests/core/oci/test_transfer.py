from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from flexinfer.errors import IntegrityError, InvalidInput, NotFound, TransferError
from flexinfer.oci import Descriptor, LayoutTarget, Manifest, MemoryTarget, Target, copy
from flexinfer.testing.flaky_target import FlakyTarget

WEIGHTS = bytes(range(256)) * 12_000  # 3 MB
CONFIG = Descriptor.of(b"{}", media_type="application/vnd.cncf.model.config.v1+json")
LAYER = Descriptor.of(WEIGHTS, media_type="application/vnd.cncf.model.weight.v1.raw")
MANIFEST = Manifest(config=CONFIG, layers=(LAYER,), artifact_type="application/x-model")
NOTE = Manifest(
    config=CONFIG, layers=(), artifact_type="application/x", subject=MANIFEST.describe()
)
SIGNATURE = Manifest(config=CONFIG, layers=(), artifact_type="a/sig", subject=NOTE.describe())


async def one(data: bytes) -> AsyncIterator[bytes]:
    yield data


async def filled() -> MemoryTarget:
    target = MemoryTarget()
    await target.write(LAYER, one(WEIGHTS))
    await target.write(CONFIG, one(b"{}"))
    for manifest in (MANIFEST, NOTE, SIGNATURE):
        await target.write(manifest.describe(), one(manifest.to_bytes()))
    await target.tag(MANIFEST.describe(), "smol:x")
    return target


def test_an_artifact_arrives_with_all_that_refers_to_it(tmp_path: Path) -> None:
    async def story() -> None:
        target = LayoutTarget(tmp_path)
        seen: dict[str, int] = {}
        found = await copy(
            await filled(), target, "smol:x", on_progress=lambda d, n: seen.update({d.digest: n})
        )
        assert await target.resolve("smol:x") == found == MANIFEST.describe()
        assert await target.referrers(found.digest) == (NOTE.describe(),)
        assert await target.referrers(NOTE.describe().digest) == (SIGNATURE.describe(),)
        assert seen == {LAYER.digest: LAYER.size, CONFIG.digest: CONFIG.size}

    asyncio.run(story())


def test_the_name_at_the_target_may_be_another_or_none() -> None:
    async def story() -> None:
        source, target = await filled(), MemoryTarget()
        await copy(source, target, MANIFEST.describe().digest)
        assert await target.tags() == ()
        await copy(source, target, "smol:x", to="other:y")
        assert [name for name, _ in await target.tags()] == ["other:y"]

    asyncio.run(story())


def test_a_second_copy_moves_no_blob(tmp_path: Path) -> None:
    async def story() -> None:
        source, target = FlakyTarget(await filled()), LayoutTarget(tmp_path)
        await copy(source, target, "smol:x")
        moved = source.given_bytes
        await copy(source, target, "smol:x")
        assert source.given_bytes == moved == LAYER.size + CONFIG.size

    asyncio.run(story())


@pytest.mark.parametrize("kind", ["memory", "layout"])
def test_a_broken_transfer_goes_on_where_it_stopped(kind: str, tmp_path: Path) -> None:
    async def story() -> None:
        await_source = await filled()
        target: Target = MemoryTarget() if kind == "memory" else LayoutTarget(tmp_path)
        await target.write(CONFIG, one(b"{}"))
        source = FlakyTarget(await_source, broken_reads=2, whole_bytes=1_000_000)
        await copy(source, target, "smol:x", pause_s=0.001)
        assert source.offsets == [0, 1_000_000, 2_000_000]
        assert source.given_bytes <= 1.2 * LAYER.size
        assert await target.exists(LAYER)

    asyncio.run(story())


def test_a_source_that_stays_broken_is_named_and_nothing_is_visible(tmp_path: Path) -> None:
    async def story() -> None:
        target = LayoutTarget(tmp_path)
        source = FlakyTarget(await filled(), broken_reads=99, whole_bytes=0)
        with pytest.raises(TransferError) as caught:
            await copy(source, target, "smol:x", pause_s=0.001)
        assert caught.value.side == "source"
        assert len(source.offsets) <= 6
        assert await target.tags() == ()
        assert not await target.exists(MANIFEST.describe())

    asyncio.run(story())


def test_a_flipped_bit_is_refused_and_fetched_again(tmp_path: Path) -> None:
    async def story() -> None:
        target = LayoutTarget(tmp_path)
        await target.write(CONFIG, one(b"{}"))
        source = FlakyTarget(await filled(), wrong_reads=2)
        await copy(source, target, "smol:x", pause_s=0.001)
        assert len(source.offsets) == 3
        assert target.core.blobs.quarantined()[0].expected == LAYER.digest

    asyncio.run(story())


def test_bits_that_stay_flipped_are_a_mismatch_in_the_end(tmp_path: Path) -> None:
    async def story() -> None:
        target = LayoutTarget(tmp_path)
        await target.write(CONFIG, one(b"{}"))
        source = FlakyTarget(await filled(), wrong_reads=99)
        with pytest.raises(IntegrityError) as caught:
            await copy(source, target, "smol:x", pause_s=0.001)
        assert caught.value.code == "digest_mismatch"
        assert len(source.offsets) == 3
        assert not await target.exists(LAYER)

    asyncio.run(story())


def test_an_unknown_name_is_not_found_and_not_tried_again() -> None:
    async def story() -> None:
        with pytest.raises(NotFound):
            await copy(await filled(), MemoryTarget(), "smol:other")

    asyncio.run(story())


def test_a_chain_of_referrers_without_end_is_refused() -> None:
    async def story() -> None:
        source = await filled()
        subject = SIGNATURE.describe()
        for number in range(5):
            manifest = Manifest(
                config=CONFIG, layers=(), annotations={"n": str(number)}, subject=subject
            )
            subject = manifest.describe()
            await source.write(subject, one(manifest.to_bytes()))
        with pytest.raises(InvalidInput) as caught:
            await copy(source, MemoryTarget(), "smol:x")
        assert caught.value.code == "too_many_referrers"

    asyncio.run(story())


def test_a_cancelled_copy_leaves_a_target_that_can_go_on(tmp_path: Path) -> None:
    async def story() -> None:
        source, target = await filled(), LayoutTarget(tmp_path)
        began = asyncio.Event()

        async def stuck() -> AsyncIterator[bytes]:
            yield WEIGHTS[:500_000]
            began.set()
            await asyncio.Event().wait()

        task = asyncio.create_task(target.write(LAYER, stuck()))
        await began.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await target.written(LAYER) == 500_000
        await copy(source, target, "smol:x")
        assert await target.exists(LAYER)

    asyncio.run(story())
