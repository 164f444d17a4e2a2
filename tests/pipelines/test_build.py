"""Whole builds of a tiny model, with the real quantizer, the real engine and the real store; Prefect apart."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flexinfer.artifact import PREDICATE_TEST_RESULT
from flexinfer.commands.removal import noted
from flexinfer.errors import Conflict, FlexInferError, InvalidInput, ProcessFailed, QualityError
from flexinfer.oci import Digest, digest_of
from flexinfer.places import Home
from flexinfer_pipelines.built import Built, already_built, name_again
from flexinfer_pipelines.journal import Journal
from flexinfer_pipelines.sequence import build, remove_stale
from flexinfer_pipelines.steps import Context
from flexinfer_pipelines.steps.quantize import recalled as quantized_before

Make = Callable[..., Context]
FAST = {"smoke": False, "footprint": False}
Q8 = {"name": "q8-0", "quantize": {"format": "gguf", "type": "Q8_0"}, "validate": FAST}


def run(context: Context, entry: Any, watch: Any, variant: str = "", **more: Any) -> Built:
    chosen = entry.variant(variant) if variant else entry.default_variant
    return asyncio.run(build(context, entry, chosen, watch.stage, **more))


def test_a_build_measures_publishes_and_says_what_it_did(
    tooled_home: Home, make_context: Make, make_entry: Any, tiny_file: Path, watch: Any
) -> None:
    checks = {"minSameTop": 0.5, "maxKlLowerBound": 1.0}
    entry = make_entry(f"file://{tiny_file}", {**Q8, "validate": checks})
    context = make_context(tooled_home)
    built = run(context, entry, watch)
    assert watch.stages == [
        "resolve", "fetch", "inspect", "quantize", "validate", "publish", "warm",
    ]  # fmt: skip
    store = context.store
    assert store.resolve("tiny:q8-0").digest == built.digest
    artifact = store.artifact(Digest(built.digest))
    assert [file.path for file in artifact.files] == ["Tiny.Q8_0.gguf"]
    assert (artifact.config.quantization, artifact.config.licenses) == ("Q8_0", ("Apache-2.0",))
    assert artifact.annotations["ai.flexinfer.context-length"] == "512"
    assert artifact.annotations["ai.flexinfer.chat-template"] == "true"
    ((_, said),) = store.evidence(Digest(built.digest)).statements
    assert said.predicate_type == PREDICATE_TEST_RESULT
    assert said.predicate["result"] == "PASSED"
    assert said.predicate["base"]["quantization"] == "F32"
    assert said.predicate["thresholds"]["divergence.sameTop"] == 0.5
    measured = said.predicate["measurements"]
    assert measured["smoke.answered"] == measured["smoke.prompts"] == 3
    assert measured["divergence.contexts"] >= 24
    # Both contexts are as long as the model's own: what differs is a few pages of the allocator.
    peaks = [measured[f"footprint.peakBytes{size}"] for size in ("Small", "Large")]
    assert 1024**2 < max(peaks) < 1.5 * min(peaks)
    assert not list(tooled_home.work.glob("build-*"))
    # Again: the same artifact, without a step that moves anything.
    assert already_built(context, entry, entry.default_variant) == Built(
        reference="tiny:q8-0", digest=built.digest, size_bytes=built.size_bytes,
        quantization="Q8_0", format="gguf", is_new=False, measurements=built.measurements,
        thresholds=built.thresholds,
    )  # fmt: skip
    assert built.thresholds["divergence.sameTop"] == 0.5


def test_a_bad_result_is_not_published_and_both_numbers_are_said(
    tooled_home: Home, make_context: Make, make_entry: Any, tiny_file: Path, watch: Any
) -> None:
    strict = {"name": "q4-0", "quantize": {"format": "gguf", "type": "Q4_0"}}
    checks = {**FAST, "maxKlLowerBound": 0.0}
    entry = make_entry(f"file://{tiny_file}", {**strict, "validate": checks})
    context = make_context(tooled_home)
    with pytest.raises(
        QualityError, match=r"klLowerBound is 0\.\d+, wanted at most 0\.0"
    ) as caught:
        run(context, entry, watch)
    assert caught.value.code == "quality"
    assert "publish" not in watch.stages
    names = [name for name, _ in context.store.tags()]
    assert all(name.startswith("sources/") for name in names)


def test_a_validation_has_an_end_and_leaves_nothing_behind(
    tooled_home: Home, make_context: Make, make_entry: Any, tiny_file: Path, watch: Any
) -> None:
    entry = make_entry(f"file://{tiny_file}", {**Q8, "validate": {"smoke": True}})
    context = make_context(tooled_home, validate_timeout_s=0.05)
    with pytest.raises(ProcessFailed, match="VALIDATE_TIMEOUT_S") as caught:
        run(context, entry, watch)
    assert caught.value.code == "validation_timeout"
    assert "publish" not in watch.stages
    assert not list(tooled_home.work.glob("build-*/engine/secrets/*"))
    # The build's place is free again, and its work is kept.
    watch.stages.clear()
    assert run(make_context(tooled_home), entry, watch).is_new


def test_stricter_thresholds_are_a_reason_to_measure_again(
    tooled_home: Home, make_context: Make, make_entry: Any, tiny_file: Path, watch: Any
) -> None:
    context = make_context(tooled_home)
    uri = f"file://{tiny_file}"
    lenient = make_entry(uri, Q8)
    first = run(context, lenient, watch)
    assert already_built(context, lenient, lenient.default_variant) is not None
    checks = {**FAST, "minSameTop": 0.1}
    stricter = make_entry(uri, {**Q8, "validate": checks})
    assert already_built(context, stricter, stricter.default_variant) is None
    second = run(context, stricter, watch)
    assert second.digest == first.digest  # the bytes are the same; the evidence is more
    assert "divergence.sameTop" in second.measurements


def test_a_copy_is_published_as_it_is(
    tooled_home: Home, make_context: Make, make_entry: Any, tiny_file: Path, tiny: bytes, watch: Any
) -> None:
    copy = {"name": "as-is", "quantize": {"format": "none"}, "validate": FAST}
    context = make_context(tooled_home)
    built = run(context, make_entry(f"file://{tiny_file}", copy), watch)
    (file,) = context.store.artifact(Digest(built.digest)).files
    assert context.store.path(file.digest).read_bytes() == tiny
    assert "quantize" not in watch.stages
    assert [name for name, _ in context.store.tags() if name.startswith("sources/")] == []


def test_an_interrupted_build_goes_on_where_it_stood(
    tooled_home: Home, make_context: Make, make_entry: Any, tiny_file: Path, watch: Any
) -> None:
    entry = make_entry(f"file://{tiny_file}", Q8)
    context = make_context(tooled_home)
    quantized: list[int] = []

    class Interrupted(Exception):
        pass

    async def stage(name: str, work: Any) -> Any:
        if name == "validate" and not quantized:
            (output,) = tooled_home.work.glob("build-*/output/*.gguf")
            quantized.append(output.stat().st_ino)
            raise Interrupted
        return await work()

    with pytest.raises(Interrupted):
        asyncio.run(build(context, entry, entry.default_variant, stage))
    (output,) = tooled_home.work.glob("build-*/output/*.gguf")
    before = output.stat().st_mtime_ns

    async def second(name: str, work: Any) -> Any:
        if name == "publish":
            assert output.stat().st_mtime_ns == before
        return await work()

    assert asyncio.run(build(context, entry, entry.default_variant, second)).is_new


def test_an_output_that_was_touched_is_made_again(
    tooled_home: Home, make_context: Make, make_entry: Any, tiny_file: Path, watch: Any
) -> None:
    entry = make_entry(f"file://{tiny_file}", Q8)
    context = make_context(tooled_home)

    async def stage(name: str, work: Any) -> Any:
        if name == "validate":
            raise InterruptedError
        return await work()

    with pytest.raises(InterruptedError):
        asyncio.run(build(context, entry, entry.default_variant, stage))
    (output,) = tooled_home.work.glob("build-*/output/*.gguf")
    output.chmod(0o600)
    data = bytearray(output.read_bytes())
    data[-1] ^= 1
    output.write_bytes(data)
    built = run(context, entry, watch)
    (file,) = context.store.artifact(Digest(built.digest)).files
    assert context.store.path(file.digest).read_bytes() != bytes(data)


def test_two_builds_of_one_key_make_one_artifact(
    tooled_home: Home, make_context: Make, make_entry: Any, tiny_file: Path
) -> None:
    entry = make_entry(f"file://{tiny_file}", Q8)
    validated: list[str] = []

    async def stage(name: str, work: Any) -> Any:
        if name == "validate":
            validated.append(name)
        return await work()

    async def both() -> tuple[Built, Built]:
        contexts = [make_context(tooled_home) for _ in range(2)]
        runs = [build(c, entry, entry.default_variant, stage) for c in contexts]
        one, two = await asyncio.gather(*runs)
        return one, two

    one, two = asyncio.run(both())
    assert one.digest == two.digest
    assert sorted([one.is_new, two.is_new]) == [False, True]
    assert validated == ["validate"]


def test_whether_it_is_built_is_only_asked_and_a_lost_name_is_given_again(
    tooled_home: Home, make_context: Make, make_entry: Any, tiny_file: Path, watch: Any
) -> None:
    entry = make_entry(f"file://{tiny_file}", Q8)
    context = make_context(tooled_home)
    first = run(context, entry, watch)
    context.store.untag("tiny:q8-0")
    found = already_built(context, entry, entry.default_variant)
    assert found is not None and found.digest == first.digest
    assert "tiny:q8-0" not in dict(context.store.tags())
    name_again(context.store, found)
    assert context.store.resolve("tiny:q8-0").digest == first.digest


def test_nothing_is_collected_while_a_build_goes_on_and_its_bytes_stay_until_it_is_resumed(
    tooled_home: Home, make_context: Make, make_entry: Any, tiny_file: Path, watch: Any
) -> None:
    copy = {"name": "as-is", "quantize": {"format": "none"}, "validate": FAST}
    entry = make_entry(f"file://{tiny_file}", copy)
    context = make_context(tooled_home)

    async def stage(name: str, work: Any) -> Any:
        if name == "validate":
            with pytest.raises(Conflict):
                context.store.collect(grace_s=0)
            raise InterruptedError
        return await work()

    with pytest.raises(InterruptedError):
        asyncio.run(build(context, entry, entry.default_variant, stage))
    before = sorted(context.store.root.glob("blobs/sha256/*"))
    context.store.collect(roots=noted(tooled_home.work), grace_s=0)
    assert sorted(context.store.root.glob("blobs/sha256/*")) == before
    assert run(context, entry, watch).is_new


def test_another_variant_needs_the_source_no_more(
    tooled_home: Home, make_context: Make, make_entry: Any, tiny_file: Path, watch: Any
) -> None:
    q5 = {"name": "q5-1", "quantize": {"format": "gguf", "type": "Q5_1"}, "validate": FAST}
    uri = f"file://{tiny_file}"
    context = make_context(tooled_home)
    entry = make_entry(uri, Q8, q5)
    run(context, entry, watch)
    stamp = tiny_file.stat()
    watch.moves.clear()
    run(context, entry, watch, "q5-1")
    assert tiny_file.stat().st_atime_ns >= stamp.st_atime_ns
    assert not [move for move in watch.moves if move[0] == "fetch"]


def test_a_lost_weight_file_is_made_again(
    tooled_home: Home, make_context: Make, make_entry: Any, tiny_file: Path, watch: Any
) -> None:
    entry = make_entry(f"file://{tiny_file}", Q8)
    context = make_context(tooled_home)
    first = run(context, entry, watch)
    (file,) = context.store.artifact(Digest(first.digest)).files
    context.store.path(file.digest).unlink()
    assert already_built(context, entry, entry.default_variant) is None
    assert run(context, entry, watch).digest == first.digest
    assert context.store.has(file.digest)


def test_a_flipped_byte_is_found_and_made_again(
    tooled_home: Home, make_context: Make, make_entry: Any, tiny_file: Path, watch: Any
) -> None:
    entry = make_entry(f"file://{tiny_file}", Q8)
    context = make_context(tooled_home)
    first = run(context, entry, watch)
    (file,) = context.store.artifact(Digest(first.digest)).files
    path = context.store.path(file.digest)
    good = path.read_bytes()
    path.chmod(0o600)
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    assert already_built(context, entry, entry.default_variant) is None
    assert run(context, entry, watch).digest == first.digest
    assert path.read_bytes() == good
    assert len(context.store.quarantined()) == 1


def test_a_file_that_states_another_licence_is_not_published(
    tooled_home: Home, make_context: Make, make_entry: Any, tiny_file: Path, watch: Any
) -> None:
    entry = make_entry(f"file://{tiny_file}", Q8, license="MIT")
    with pytest.raises(InvalidInput, match=r"itself states 'apache-2\.0'") as caught:
        run(make_context(tooled_home), entry, watch)
    assert caught.value.code == "license"


@pytest.mark.parametrize(
    ("name", "data", "code"),
    [
        ("m.gguf", b"\x80\x04\x95pickle" * 99, "type_mismatch"),
        ("m.gguf", b"GGUF" + b"\x03\0\0\0" + b"\xff" * 64, "gguf"),
        ("m.safetensors", b"x" * 99, "source_format_unsupported"),
    ],
    ids=["pickle", "hostile counts", "safetensors"],
)
def test_hostile_files_are_refused_by_the_gate(
    tmp_path: Path, home: Home, make_context: Make, make_entry: Any, watch: Any,
    name: str, data: bytes, code: str,
) -> None:  # fmt: skip
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(FlexInferError) as caught:
        run(make_context(home), make_entry(f"file://{path}", Q8), watch)
    assert caught.value.code == code


def test_a_file_that_is_not_there_is_named(
    home: Home, make_context: Make, make_entry: Any, watch: Any
) -> None:
    with pytest.raises(FlexInferError, match=r"/no/such\.gguf") as caught:
        run(make_context(home), make_entry("file:///no/such.gguf", Q8), watch)
    assert caught.value.code == "source_not_found"


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"digest": "sha256:short"},
        {"digest": None},
        {"size": "many"},
        {"file": "other"},
        {"report": 1},
    ],
)
def test_weights_of_an_earlier_try_are_taken_only_as_they_were_left(
    tmp_path: Path, change: dict[str, object]
) -> None:
    (tmp_path / "m.gguf").write_bytes(b"weights")
    tree = {"file": "m.gguf", "digest": digest_of(b"weights"), "size": 7, "report": {}}
    assert (quantized_before(tmp_path, {**tree, **change}) is not None) == (not change)
    assert quantized_before(tmp_path, None) is None


def test_a_journal_of_another_key_or_broken_is_as_good_as_none(tmp_path: Path) -> None:
    Journal(tmp_path, "sha256:a").write("quantize", {"n": 1})
    assert Journal(tmp_path, "sha256:a").read("quantize") == {"n": 1}
    assert Journal(tmp_path, "sha256:b").read("quantize") is None
    (tmp_path / "journal.json").write_text('{"version": 1, "key": "sha256:a", "steps": [')
    assert Journal(tmp_path, "sha256:a").read("quantize") is None
    (tmp_path / "journal.json").write_text(json.dumps([1, 2]))
    assert Journal(tmp_path, "sha256:a").read("quantize") is None


def test_what_nobody_resumes_is_removed_after_a_week(home: Home) -> None:
    old, new = home.work / "build-old", home.work / "build-new"
    for folder in (old, new):
        folder.mkdir()
    os.utime(old, (0, 0))
    remove_stale(home.work, now_s=new.stat().st_mtime + 60)
    assert [path.name for path in home.work.glob("build-*")] == ["build-new"]
