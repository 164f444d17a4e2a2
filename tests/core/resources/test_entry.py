"""Entries: what a variant, a repository and a pinned source may be."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from flexinfer.resources.entry import CatalogEntry


def _entry(**change: Any) -> CatalogEntry:
    spec: dict[str, Any] = {
        "source": {"uri": "hf://Org/repo@main/m.gguf"},
        "license": {"expression": "MIT"},
        "publish": {"repository": "m"},
        "variants": [{"name": "q8-0", "quantize": {"format": "gguf", "type": "Q8_0"}}],
    }
    return CatalogEntry.model_validate({"metadata": {"name": "m"}, "spec": {**spec, **change}})


def test_the_first_variant_is_the_default() -> None:
    variants = [{"name": n, "quantize": {"format": "none"}} for n in ("b", "a")]
    entry = _entry(variants=variants)
    assert entry.default_variant.name == "b"
    assert entry.variant("a") == entry.spec.variants[1]
    assert entry.variant("c") is None


def test_a_revision_of_the_entry_wins_over_that_of_the_address() -> None:
    entry = _entry(source={"uri": "hf://Org/repo@main/m.gguf", "revision": "refs/pr/1"})
    assert str(entry.spec.source.parsed()) == "hf://Org/repo@refs%2Fpr%2F1/m.gguf"
    assert str(_entry().spec.source.parsed()) == "hf://Org/repo@main/m.gguf"


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ({"uri": "catalog://other"}, "not from another entry"),
        ({"uri": "file:///a", "revision": "main"}, "revision is for hf://"),
        ({"uri": "hf://a/b", "revision": "a b"}, "branch, tag or commit"),
        ({"uri": "hf://a/b", "revision": "../x"}, "branch, tag or commit"),
        ({"uri": "nowhere"}, "SCHEME://"),
    ],
)
def test_a_source_that_cannot_be_built_from_is_refused(source: dict[str, str], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        _entry(source=source)


@pytest.mark.parametrize("name", ["a", "a/b", "a.b_c-d/e", "a__b"])
def test_a_repository_is_what_a_registry_accepts(name: str) -> None:
    assert _entry(publish={"repository": name}).spec.publish.repository == name


@pytest.mark.parametrize(
    "name", ["", "A", "-a", "a/", "/a", "a//b", "a:b", "a b", "a" * 201, "a\n"]
)
def test_what_a_registry_refuses_is_refused(name: str) -> None:
    with pytest.raises(ValidationError):
        _entry(publish={"repository": name})


@pytest.mark.parametrize("name", ["", "Q8_0", "-a", "a/b", "a:b", "a" * 64, "a\n"])
def test_a_variant_is_a_tag(name: str) -> None:
    with pytest.raises(ValidationError):
        _entry(variants=[{"name": name, "quantize": {"format": "none"}}])


@pytest.mark.parametrize("variants", [[], [{"name": "a", "quantize": {"format": "none"}}] * 2])
def test_variants_are_there_and_distinct(variants: list[Any]) -> None:
    with pytest.raises(ValidationError):
        _entry(variants=variants)
