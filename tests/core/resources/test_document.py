"""A file that is wrong is refused with the place of each slip and what was meant."""

from __future__ import annotations

import re
from enum import StrEnum

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexinfer.errors import InvalidInput
from flexinfer.resources.document import (
    MAX_PROBLEMS,
    DocumentInvalid,
    parse_document,
    parse_located,
)
from flexinfer.resources.entry import CatalogEntry
from flexinfer.resources.located import Mark
from flexinfer.resources.model import Model, Part


def _refused(text: str) -> DocumentInvalid:
    with pytest.raises(DocumentInvalid) as refused:
        parse_document(Model, text, "m.yaml")
    assert refused.value.code == "document_invalid"
    assert isinstance(refused.value, InvalidInput)
    return refused.value


def test_the_model_of_the_architecture_page_is_read(model_text: str) -> None:
    model = parse_document(Model, model_text, "m.yaml")
    assert model.metadata.name == "smollm2-135m-instruct"
    assert model.spec.config == {"contextTokens": 4096, "slots": 4}
    assert model.spec.gpu.swap_cooldown == 300
    assert model.spec.serverless.cold_start_timeout == 60
    assert model.spec.cache.size == 50 * 2**30
    assert model.spec.quality.min_same_top == 0.90
    assert model.strategy == "least-loaded"
    assert model.status is not None and model.status.cold_start is not None
    assert model.status.cold_start.phases.first_token == 0.4


def test_what_is_absent_has_its_default() -> None:
    text = "apiVersion: ai.flexinfer/v1alpha2\nkind: Model\nmetadata: {name: m}\nspec: {source: 'hf://a/b'}\n"
    model = parse_document(Model, text, "m.yaml")
    assert (model.spec.backend, model.spec.serverless.idle_timeout) == ("llamacpp", 300)


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("idleTimeout", "idelTimeout", "10:63: unknown key 'idelTimeout'; did you mean 'idleTimeout'?"),
        ("  backend", "  bakcend", "6:3: unknown key 'bakcend'; did you mean 'backend'?"),
        ("minReplicas", "min_replicas", "10:31: unknown key 'min_replicas'; did you mean 'minReplicas'?"),
        ("backend: llamacpp", "idleTimeout: 5m", "6:3: unknown key 'idleTimeout'; it belongs in spec.serverless"),
        ("\nstatus:", "\nextra: 1\nstatus:",
         "15:1: unknown key 'extra' (known: apiVersion, kind, metadata, spec, status)"),
        ("  source: catalog://smollm2-135m-instruct/q8-0\n", "", "4:1: missing key 'source'"),
        ("minReplicas: 0", "minReplicas: true", "10:44: expected a whole number, found true"),
        ("minReplicas: 0", "minReplicas: '0'", "10:44: expected a whole number, found '0'"),
        ("minReplicas: 0", "minReplicas: 0.5", "10:44: expected a whole number, found 0.5"),
        ("minReplicas: 0", "minReplicas: 2", "10:15: minReplicas 2 is above maxReplicas 1"),
        ("enabled: true", "enabled: 'true'", "10:25: expected true or false, found 'true'"),
        ("vendor: cpu", "vendor: nvdia",
         "9:17: expected one of auto, nvidia, amd, cpu, found 'nvdia'; did you mean 'nvidia'?"),
        ("count: 1", "count: 2",
         "9:8: vendor cpu takes no GPU: expected count 1, no shared group and no vramEstimateMB"),
        ("aliases: [smol]", "aliases: smol", "7:12: expected a list, found 'smol'"),
        ("[smol]", "[smol, 12]", "7:19: expected text, found 12: quote it"),
        ("[smol]", "[smol, no]", "7:19: 'no' is true or false to some readers: quote it, or write it another way"),
        ("[smol]", "[]\n  aliases: [a]", "8:3: key 'aliases' is there twice, first in line 7"),
        ("llamacpp", "1e10", "6:12: expected text, found 10000000000.0: quote it"),
        ("llamacpp", "", "6:11: expected text, found nothing"),
        ("{contextTokens: 4096, slots: 4}", "[1]", "8:11: expected a mapping, found a list"),
        ("idleTimeout: 5m", "idleTimeout: soon", "10:76: duration 'soon': expected a form such as 90s, 5m or 1h30m"),
        ("50Gi", "50Gx", "12:34: size '50Gx': expected a form such as 50Gi, 64MiB or 10GB"),
        ("swapCooldown: 5m", "swapCooldown: [5]", "9:92: expected a number, found a list"),
        ("minSameTop: 0.90", "minSameTop: 1.5", "14:47: expected at most 1, found 1.5"),
        ("minSameTop: 0.90", "minSameTop: .nan", "14:47: expected a finite number, found .nan"),
        ("{name: smollm2-135m-instruct}", "{name: Smol}",
         "3:18: expected lower-case letters and digits, with single '.' and any '-' between them, found 'Smol'"),
        ("{name: smollm2-135m-instruct}", "", "3:10: expected a mapping, found nothing"),
        ("{name: smollm2-135m-instruct}", "{name: m, labels: {a: 1}}", "3:33: expected text, found 1: quote it"),
        ("kind: Model", "kind: Modle", "2:7: expected kind Model, found 'Modle'; did you mean 'Model'?"),
        ("v1alpha2", "v1",
         "1:13: expected apiVersion ai.flexinfer/v1alpha2, found 'ai.flexinfer/v1'"
         "; did you mean 'ai.flexinfer/v1alpha2'?"),
        ("apiVersion: ai.flexinfer/v1alpha2\n", "",
         "1:1: missing key 'apiVersion': expected apiVersion: ai.flexinfer/v1alpha2"),
        ("apiVersion", "apiversion",
         "1:1: missing key 'apiVersion': expected apiVersion: ai.flexinfer/v1alpha2; did you mean 'apiversion'?"),
        ("spec:", "spec: &s\n  x: *s\n#", "5:6: alias *s stands inside its own anchor"),
    ],
)  # fmt: skip
def test_one_slip_is_one_line(model_text: str, old: str, new: str, line: str) -> None:
    assert old in model_text
    assert _refused(model_text.replace(old, new, 1)).message == f"m.yaml:{line}"


def test_an_unknown_scheme_names_the_nearest(model_text: str) -> None:
    message = _refused(model_text.replace("catalog://", "catlog://")).message
    assert message.startswith("m.yaml:5:11: source 'catlog://smollm2-135m-instruct/q8-0'")
    assert message.endswith("did you mean 'catalog'?")


def test_a_document_of_another_kind_is_one_problem_not_many() -> None:
    text = (
        "apiVersion: ai.flexinfer/v1alpha2\nkind: Deployment\nmetadata: {}\nspec: {replicas: 1}\n"
    )
    assert _refused(text).message == "m.yaml:2:7: expected kind Model, found 'Deployment'"


@pytest.mark.parametrize("text", ["[1, 2]\n", "text\n", "5\n", "null\n"])
def test_what_is_no_mapping_is_refused(text: str) -> None:
    assert "m.yaml:1:1: expected a mapping, found " in _refused(text).message


def test_all_slips_of_a_file_are_told_in_order(model_text: str) -> None:
    broken = model_text.replace("backend", "bakcend").replace("50Gi", "50Gx").replace("smol]", "1]")
    error = _refused(broken)
    assert [problem.mark.line for problem in error.problems] == [6, 7, 12]
    assert error.message.splitlines() == list(error.lines)


def test_many_slips_are_cut_and_counted() -> None:
    keys = "".join(f"  key{i}: 1\n" for i in range(50))
    text = f"apiVersion: ai.flexinfer/v1alpha2\nkind: Model\nmetadata: {{name: m}}\nspec:\n  source: 'hf://a/b'\n{keys}"
    error = _refused(text)
    assert len(error.problems) == MAX_PROBLEMS
    assert error.message.splitlines()[-1] == "m.yaml: and 30 more problems"


def test_a_long_value_is_shown_short(model_text: str) -> None:
    error = _refused(model_text.replace("vendor: cpu", f"vendor: {'x' * 100_000}"))
    assert len(error.message) < 300


def test_an_enum_of_a_part_names_its_values() -> None:
    class Colour(StrEnum):
        RED = "red"
        BLUE = "blue"

    class Paint(Part):
        colours: tuple[Colour, ...]

    with pytest.raises(DocumentInvalid) as refused:
        parse_document(Paint, "colours: [red, bleu]\n", "p.yaml")
    assert refused.value.message == (
        "p.yaml:1:16: expected one of red, blue, found 'bleu'; did you mean 'blue'?"
    )


def test_a_check_beyond_the_schema_can_name_a_place(model_text: str) -> None:
    document = parse_located(Model, model_text, "m.yaml")
    assert document.problem(("spec", "config", "slots"), "x").mark == Mark(8, 40)


def test_variants_that_share_a_name_are_refused_at_the_second() -> None:
    text = (
        "apiVersion: ai.flexinfer/v1alpha2\nkind: CatalogEntry\nmetadata: {name: m}\nspec:\n"
        "  source: {uri: 'hf://a/b'}\n  license: {expression: MIT}\n  publish: {repository: m}\n"
        "  variants:\n    - {name: a, quantize: {format: gguf}}\n    - {name: a, quantize: {format: gguf}}\n"
    )
    with pytest.raises(DocumentInvalid, match=r"e\.yaml:10:14: variant 'a' is there twice"):
        parse_document(CatalogEntry, text, "e.yaml")


def test_a_list_is_not_too_short_because_its_items_are_wrong() -> None:
    text = (
        "apiVersion: ai.flexinfer/v1alpha2\nkind: CatalogEntry\nmetadata: {name: m}\nspec:\n"
        "  source: {uri: 'hf://a/b'}\n  license: {expression: MIT}\n  publish: {repository: m}\n"
        "  variants: [{name: a, quantise: {format: gguf}}]\n"
    )
    with pytest.raises(DocumentInvalid, match="unknown key 'quantise'") as caught:
        parse_document(CatalogEntry, text, "e.yaml")
    assert "at least" not in caught.value.message
    with pytest.raises(DocumentInvalid, match="expected at least 1 variant, found none"):
        parse_document(CatalogEntry, re.sub(r"variants: .*", "variants: []", text), "e.yaml")


@given(st.integers(0, 1200), st.integers(0, 40), st.text(max_size=8))
def test_any_cut_of_a_good_file_is_read_or_refused(start: int, length: int, new: str) -> None:
    from_page = MODEL_TEXT[:start] + new + MODEL_TEXT[start + length :]
    try:
        parse_document(Model, from_page, "m.yaml")
    except InvalidInput as error:
        assert error.code == "document_invalid"
        assert all(line.startswith("m.yaml:") for line in error.message.splitlines())


MODEL_TEXT = """\
apiVersion: ai.flexinfer/v1alpha2
kind: Model
metadata: {name: smollm2-135m-instruct, labels: {a: b}}
spec:
  source: hf://org/repo@main/file.gguf
  aliases: [smol, "org/smol:1"]
  config: {contextTokens: 4096, slots: 4}
  gpu:
    vendor: cpu
    swapCooldown: 5m
  cache:
    strategy: Local
    size: 50Gi
  quality: {require: attestation, minSameTop: 0.90}
"""
