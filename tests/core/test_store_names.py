"""Names in the store: spelled in one module, and never two things under one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexinfer import store_names as names
from flexinfer.oci import Reference

ROOT = Path(__file__).resolve().parents[2]
KEY = "0123456789abcdef" * 4
SPELLED = re.compile(
    r"""["'](?:build-|src-|sources/|recovered:)[^"']*["']|publish\.repository\}:"""
)


def test_a_build_is_found_by_the_first_digits_of_its_key() -> None:
    assert names.build_reference("a/b", f"sha256:{KEY}") == "a/b:build-0123456789abcdef"
    assert names.build_name(KEY) == "build-0123456789abcdef"


def test_builds_and_sources_are_told_from_what_is_published() -> None:
    assert names.is_build(names.build_reference("a/b", KEY))
    assert names.is_source(names.source_reference("a/b", KEY))
    for name in (names.variant_reference("a/b", "q8-0"), names.recovered_reference(KEY)):
        assert not names.is_build(name) and not names.is_source(name)


@pytest.mark.parametrize("repository", ["sources", "sources/x", "recovered", "recovered/x"])
def test_no_entry_publishes_where_our_names_are(repository: str) -> None:
    assert names.reserved_repository(repository) == repository.partition("/")[0]
    assert not names.reserved_repository("sources-of-mine")


@given(
    repository=st.from_regex(r"[a-z0-9]{1,8}(/[a-z0-9]{1,8})?", fullmatch=True),
    key=st.from_regex(r"[0-9a-f]{64}", fullmatch=True),
    variant=st.from_regex(r"[a-z0-9]{1,8}", fullmatch=True),
)
def test_what_may_be_published_never_has_a_name_of_ours(
    repository: str, key: str, variant: str
) -> None:
    ours = {
        names.build_reference(repository, key),
        names.source_reference(repository, key),
        names.recovered_reference(key),
    }
    assert len(ours) == 3
    for name in ours:
        assert Reference.parse(name).name == name
    if not names.reserved_repository(repository):
        assert names.variant_reference(repository, variant) not in ours


def test_these_names_are_spelled_in_one_module_only() -> None:
    found = []
    for top in ("core", "operator", "pipelines", "serving"):
        for file in sorted((ROOT / top).rglob("*.py")):
            if file.name == "store_names.py" or "testing" in file.parts:
                continue
            for number, line in enumerate(file.read_text("utf-8").splitlines(), 1):
                if SPELLED.search(line):
                    found.append(f"{file.relative_to(ROOT)}:{number}: {line.strip()}")
    assert found == []
