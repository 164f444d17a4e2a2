"""What a build will do, and what it refuses before any byte moves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexinfer.errors import InvalidInput
from flexinfer.resources.entry import CatalogEntry
from flexinfer_pipelines.plan import (
    Ability,
    Plan,
    Recipe,
    build_key,
    build_reference,
    identified,
    make_plan,
    output_name,
    source_reference,
)
from flexinfer_pipelines.sources import Resolved, SourceFile

ABILITIES = {"gguf": Ability(types=("Q8_0", "Q4_0"), inputs=(".gguf",))}
RECIPE = Recipe(format="gguf", type="Q8_0", tool="gguf", lock="l" * 64, program="p" * 64)
Entry = Callable[..., CatalogEntry]


def source(*paths: str, license: str = "") -> Resolved:
    files = tuple(SourceFile(path=path, size=1, identity=f"sha256:{path}") for path in paths)
    return Resolved(uri="hf://o/r", identity="hf://o/r@" + "a" * 40, files=files, license=license)


def plan(make_entry: Entry, *paths: str, **more: Any) -> Plan:
    entry = make_entry("hf://o/r", **more.pop("entry", {}))
    return make_plan(entry, entry.default_variant, source(*paths, **more), RECIPE, ABILITIES)


def test_a_model_and_its_documents_are_taken(make_entry: Entry) -> None:
    found = plan(make_entry, "m.Q4_1.gguf", "LICENSE", "README.md", "config.json")
    assert [file.path for file in found.weights] == ["m.Q4_1.gguf"]
    assert [file.path for file in found.documents] == ["LICENSE", "README.md"]
    assert found.reference == "tiny:q8-0"


@pytest.mark.parametrize(
    ("paths", "code", "said"),
    [
        (("model.safetensors", "config.json"), "source_format_unsupported", "model.safetensors"),
        (("pytorch_model.bin",), "pickle_refused", "pytorch_model.bin"),
        (("config.json",), "source_empty", "config.json"),
        ((), "source_empty", "nothing"),
        (("a.gguf", "b.gguf"), "source_ambiguous", "a.gguf, b.gguf"),
        (("m-00001-of-00002.gguf", "m-00002-of-00002.gguf"), "gguf_split", "one of 2 parts"),
    ],
)
def test_sources_that_cannot_be_built_are_refused_by_name(
    make_entry: Entry, paths: tuple[str, ...], code: str, said: str
) -> None:
    with pytest.raises(InvalidInput, match=said) as caught:
        plan(make_entry, *paths)
    assert caught.value.code == code


def test_allow_chooses_among_the_files(make_entry: Entry) -> None:
    found = plan(make_entry, "a.gguf", "b.gguf", entry={"allow": ("b.*",)})
    assert [file.path for file in found.weights] == ["b.gguf"]


def test_another_licence_is_refused_with_both(make_entry: Entry) -> None:
    with pytest.raises(InvalidInput, match=r"'Apache-2\.0'.*'llama3\.2'") as caught:
        plan(make_entry, "m.gguf", license="llama3.2")
    assert caught.value.code == "license"


@pytest.mark.parametrize(
    ("quantize", "code", "said"),
    [
        ({"format": "ggguf", "type": "Q8_0"}, "quantizer_unsupported", "did you mean 'gguf'"),
        ({"format": "gguf", "type": "Q8_O"}, "quantization_unsupported", "did you mean 'Q8_0'"),
        ({"format": "gguf", "type": "q4_0"}, "quantization_unsupported", "did you mean 'Q4_0'"),
        ({"format": "gguf"}, "quantization_unsupported", "Q8_0, Q4_0"),
        ({"format": "none", "type": "Q8_0"}, "quantization_unsupported", "copies the source"),
    ],
)
def test_recipes_that_nobody_makes_are_refused_with_the_nearest(
    make_entry: Entry, quantize: dict[str, str], code: str, said: str
) -> None:
    entry = make_entry("hf://o/r", {"name": "v", "quantize": quantize})
    with pytest.raises(InvalidInput, match=said) as caught:
        make_plan(entry, entry.default_variant, source("m.gguf"), RECIPE, ABILITIES)
    assert caught.value.code == code


def test_a_threshold_that_nothing_measures_is_refused(make_entry: Entry) -> None:
    quantize = {"format": "gguf", "type": "Q8_0"}
    checks = {"maxPerplexityRatio": 1.1}
    entry = make_entry("hf://o/r", {"name": "v", "quantize": quantize, "validate": checks})
    with pytest.raises(InvalidInput, match="maxPerplexityRatio") as caught:
        make_plan(entry, entry.default_variant, source("m.gguf"), RECIPE, ABILITIES)
    assert caught.value.code == "validation_unsupported"


def test_a_file_without_identity_has_no_key_until_it_is_fetched(make_entry: Entry) -> None:
    found = plan(make_entry, "m.gguf")
    unknown = replace(found, weights=(SourceFile(path="m.gguf"),))
    assert build_key(unknown) is None
    known = identified(unknown, {"m.gguf": "sha256:m.gguf"})
    assert build_key(known) == build_key(found)


@given(st.permutations(["a.gguf", "LICENSE", "README.md"]))
def test_the_order_of_files_does_not_change_the_key(paths: list[str]) -> None:
    assert _key(_plan(*paths)) == _key(_plan("a.gguf", "LICENSE", "README.md"))


@given(
    st.sampled_from(["type", "lock", "program", "tool", "scheme"]), st.text(min_size=1, max_size=8)
)
def test_whatever_decides_the_bytes_changes_the_key(name: str, value: str) -> None:
    before = _plan("a.gguf")
    recipe = replace(before.recipe, **{name: value})
    assert (_key(replace(before, recipe=recipe)) == _key(before)) == (recipe == before.recipe)


@given(st.text(min_size=1, max_size=40))
def test_another_identity_is_another_key(identity: str) -> None:
    before = _plan("a.gguf")
    file = replace(before.weights[0], identity=identity)
    after = replace(before, weights=(file,))
    assert (_key(before) == _key(after)) == (file == before.weights[0])


def test_where_the_bytes_lie_today_does_not_change_the_key() -> None:
    before = _plan("a.gguf")
    assert _key(replace(before, source=replace(before.source, location="https://x"))) == _key(
        before
    )


def test_references_name_key_and_source() -> None:
    found = _plan("a.gguf")
    assert build_reference(found, "sha256:" + "ab" * 32) == "tiny:build-" + "ab" * 8
    assert source_reference(found).startswith("sources/tiny:src-")
    assert source_reference(found) != source_reference(_plan("b.gguf"))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("SmolLM2-135M-Instruct.Q4_1.gguf", "SmolLM2-135M-Instruct.Q8_0.gguf"),
        ("qwen2.5-0.5b-instruct-fp16.gguf", "qwen2.5-0.5b-instruct.Q8_0.gguf"),
        ("model-IQ4_NL.gguf", "model.Q8_0.gguf"),
        ("sub/model.BF16.gguf", "model.Q8_0.gguf"),
        ("plain.gguf", "plain.Q8_0.gguf"),
        ("v1.5.gguf", "v1.5.Q8_0.gguf"),
    ],
)
def test_the_output_is_named_after_its_type(name: str, expected: str) -> None:
    assert output_name(_plan(name)) == expected


def _plan(*paths: str) -> Plan:
    by_path = {file.path: file for file in source(*paths).files}
    weights = tuple(file for path, file in by_path.items() if path.endswith(".gguf"))
    return Plan(
        entry="tiny",
        variant="q8-0",
        reference="tiny:q8-0",
        source=source(*paths),
        weights=weights,
        documents=tuple(file for file in by_path.values() if file not in weights),
        recipe=RECIPE,
        license="Apache-2.0",
    )


def _key(plan: Plan) -> str:
    found = build_key(plan)
    assert found is not None
    return found
