"""What every `Target` keeps. A new implementation is one line in `TARGETS`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import pytest

from flexinfer.errors import Conflict, IntegrityError, InvalidInput, NotFound
from flexinfer.oci import Descriptor, LayoutTarget, Manifest, MemoryTarget, Target, digest_of

TARGETS: dict[str, Callable[[Path], Target]] = {
    "memory": lambda folder: MemoryTarget(),
    "layout": lambda folder: LayoutTarget(folder / "layout"),
}

T = TypeVar("T")
WEIGHTS = bytes(range(256)) * 20_000  # 5 MB: more than one chunk
LAYER = Descriptor.of(WEIGHTS, media_type="application/vnd.cncf.model.weight.v1.raw")
CONFIG = Descriptor.of(b"{}", media_type="application/vnd.cncf.model.config.v1+json")
MANIFEST = Manifest(config=CONFIG, layers=(LAYER,), artifact_type="application/x-model")
REFERRER = Manifest(
    config=CONFIG, layers=(), artifact_type="application/x-note", subject=MANIFEST.describe()
)


@pytest.fixture(params=sorted(TARGETS))
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Target:
    return TARGETS[request.param](tmp_path)


def run(step: Awaitable[T]) -> T:
    async def main() -> T:
        return await step

    return asyncio.run(main())


async def chunks(data: bytes, size: int = 1_000_000) -> AsyncIterator[bytes]:
    for at in range(0, len(data), size):
        yield data[at : at + size]


async def read(target: Target, descriptor: Descriptor, offset: int = 0) -> bytes:
    return b"".join([piece async for piece in target.read(descriptor, offset=offset)])


async def fill(target: Target) -> Descriptor:
    await target.write(LAYER, chunks(WEIGHTS))
    await target.write(CONFIG, chunks(b"{}"))
    await target.write(MANIFEST.describe(), chunks(MANIFEST.to_bytes()))
    return MANIFEST.describe()


async def broken(data: bytes) -> AsyncIterator[bytes]:
    yield data
    raise ConnectionResetError("in the middle")


def test_what_was_written_is_read(target: Target) -> None:
    async def story() -> bytes:
        await target.write(LAYER, chunks(WEIGHTS))
        return await read(target, LAYER)

    assert run(story()) == WEIGHTS


@pytest.mark.parametrize("offset", [1, 1_048_576, 3_000_000, len(WEIGHTS)])
def test_reading_starts_at_the_offset(target: Target, offset: int) -> None:
    async def story() -> bytes:
        await target.write(LAYER, chunks(WEIGHTS))
        return await read(target, LAYER, offset)

    assert run(story()) == WEIGHTS[offset:]


def test_chunks_are_bounded(target: Target) -> None:
    async def story() -> int:
        await target.write(LAYER, chunks(WEIGHTS))
        return max([len(piece) async for piece in target.read(LAYER)])

    assert run(story()) <= 4 << 20


@pytest.mark.parametrize("offset", [-1, len(WEIGHTS) + 1])
def test_an_offset_outside_is_refused(target: Target, offset: int) -> None:
    async def story() -> bytes:
        await target.write(LAYER, chunks(WEIGHTS))
        return await read(target, LAYER, offset)

    with pytest.raises(InvalidInput) as caught:
        run(story())
    assert caught.value.code == "offset_out_of_range"


def test_what_is_not_there_cannot_be_read(target: Target) -> None:
    with pytest.raises(NotFound) as caught:
        run(read(target, LAYER))
    assert caught.value.code == "blob_missing"


@pytest.mark.parametrize(
    "data",
    [WEIGHTS[:-1], WEIGHTS + b"x", WEIGHTS[:-1] + b"x", b"", b"x" * (len(WEIGHTS) * 2)],
    ids=["short", "long", "flipped", "empty", "endless"],
)
def test_wrong_bytes_are_refused_and_nothing_is_visible(target: Target, data: bytes) -> None:
    async def story() -> tuple[bool, int]:
        with pytest.raises(IntegrityError) as caught:
            await target.write(LAYER, chunks(data))
        assert caught.value.code == "digest_mismatch"
        return await target.exists(LAYER), await target.written(LAYER)

    assert run(story()) == (False, 0)


def test_the_right_bytes_are_taken_after_the_wrong_ones(target: Target) -> None:
    async def story() -> bytes:
        with pytest.raises(IntegrityError):
            await target.write(LAYER, chunks(b"x" * len(WEIGHTS)))
        await target.write(LAYER, chunks(WEIGHTS))
        return await read(target, LAYER)

    assert run(story()) == WEIGHTS


def test_writing_again_reads_nothing_of_the_source(target: Target) -> None:
    async def never() -> AsyncIterator[bytes]:
        raise AssertionError("the source was read")
        yield b""

    async def story() -> bool:
        await target.write(LAYER, chunks(WEIGHTS))
        await target.write(LAYER, never())
        return await target.exists(LAYER)

    assert run(story())


def test_an_interrupted_write_goes_on_where_it_stopped(target: Target) -> None:
    async def story() -> tuple[int, bytes]:
        with pytest.raises(ConnectionResetError):
            await target.write(LAYER, broken(WEIGHTS[:2_000_000]))
        assert not await target.exists(LAYER)
        held = await target.written(LAYER)
        await target.write(LAYER, chunks(WEIGHTS[held:]), offset=held)
        return held, await read(target, LAYER)

    held, data = run(story())
    assert held == 2_000_000
    assert data == WEIGHTS


def test_an_interrupted_write_can_begin_anew(target: Target) -> None:
    async def story() -> bytes:
        with pytest.raises(ConnectionResetError):
            await target.write(LAYER, broken(b"x" * 2_000_000))
        await target.write(LAYER, chunks(WEIGHTS))
        return await read(target, LAYER)

    assert run(story()) == WEIGHTS


def test_an_overlap_of_what_is_held_is_taken_once(target: Target) -> None:
    async def story() -> bytes:
        with pytest.raises(ConnectionResetError):
            await target.write(LAYER, broken(WEIGHTS[:2_000_000]))
        await target.write(LAYER, chunks(WEIGHTS[500_000:]), offset=500_000)
        return await read(target, LAYER)

    assert run(story()) == WEIGHTS


def test_a_gap_is_refused(target: Target) -> None:
    async def story() -> bool:
        with pytest.raises(Conflict) as caught:
            await target.write(LAYER, chunks(WEIGHTS[10:]), offset=10)
        assert caught.value.code == "offset_gone"
        return await target.exists(LAYER)

    assert not run(story())


def test_a_manifest_comes_after_all_that_it_points_to(target: Target) -> None:
    async def story() -> bool:
        await target.write(CONFIG, chunks(b"{}"))
        with pytest.raises(NotFound) as caught:
            await target.write(MANIFEST.describe(), chunks(MANIFEST.to_bytes()))
        assert caught.value.code == "blob_missing"
        return await target.exists(MANIFEST.describe())

    assert not run(story())


def test_a_manifest_with_other_bytes_is_refused(target: Target) -> None:
    async def story() -> bool:
        await fill(target)
        other = REFERRER.describe()
        with pytest.raises(IntegrityError) as caught:
            await target.write(other, chunks(MANIFEST.to_bytes()))
        assert caught.value.code == "manifest_digest"
        return await target.exists(other)

    assert not run(story())


def test_only_a_tag_makes_a_name(target: Target) -> None:
    async def story() -> None:
        found = await fill(target)
        assert await target.tags() == ()
        with pytest.raises(NotFound) as caught:
            await target.resolve("smol:x")
        assert caught.value.code == "artifact_not_found"
        await target.tag(found, "smol:x")
        assert await target.resolve("smol:x") == found

    run(story())


def test_a_manifest_is_found_by_its_digest_with_or_without_a_name(target: Target) -> None:
    async def story() -> None:
        found = await fill(target)
        assert await target.resolve(found.digest) == found
        assert await target.resolve(f"any/name:x@{found.digest}") == found
        with pytest.raises(NotFound):
            await target.resolve(digest_of(b"other"))

    run(story())


def test_the_digest_of_a_plain_blob_is_no_artifact(target: Target) -> None:
    async def story() -> None:
        await fill(target)
        with pytest.raises(NotFound):
            await target.resolve(LAYER.digest)

    run(story())


def test_a_name_never_points_to_what_is_not_there(target: Target) -> None:
    async def story() -> None:
        with pytest.raises(NotFound):
            await target.tag(MANIFEST.describe(), "smol:x")
        assert await target.tags() == ()

    run(story())


@pytest.mark.parametrize("name", ["smol", "Smol:x", "", "smol:x:y", "../smol:x"])
def test_a_name_that_is_none_is_refused(target: Target, name: str) -> None:
    async def story() -> None:
        found = await fill(target)
        with pytest.raises(InvalidInput) as caught:
            await target.tag(found, name)
        assert caught.value.code == "reference_format"

    run(story())


def test_a_tag_moves(target: Target) -> None:
    async def story() -> None:
        first = await fill(target)
        await target.write(REFERRER.describe(), chunks(REFERRER.to_bytes()))
        await target.tag(first, "smol:x")
        await target.tag(REFERRER.describe(), "smol:x")
        await target.tag(first, "smol:a")
        assert await target.tags() == (("smol:a", first), ("smol:x", REFERRER.describe()))
        assert await target.resolve(first.digest) == first

    run(story())


def test_referrers_are_found_by_subject_and_type(target: Target) -> None:
    async def story() -> None:
        found = await fill(target)
        assert await target.referrers(found.digest) == ()
        note = REFERRER.describe()
        await target.write(note, chunks(REFERRER.to_bytes()))
        assert await target.referrers(found.digest) == (note,)
        assert await target.referrers(found.digest, "application/x-note") == (note,)
        assert await target.referrers(found.digest, "application/x-other") == ()
        assert await target.referrers(note.digest) == ()

    run(story())


def test_a_referrer_may_come_before_its_subject(target: Target) -> None:
    async def story() -> None:
        await target.write(CONFIG, chunks(b"{}"))
        await target.write(REFERRER.describe(), chunks(REFERRER.to_bytes()))
        assert await target.referrers(MANIFEST.describe().digest) == (REFERRER.describe(),)

    run(story())


def test_two_writers_of_one_blob_both_succeed(target: Target) -> None:
    async def story() -> bytes:
        async with asyncio.TaskGroup() as group:
            for _ in range(4):
                group.create_task(target.write(LAYER, chunks(WEIGHTS)))
        return await read(target, LAYER)

    assert run(story()) == WEIGHTS
