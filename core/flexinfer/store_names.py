"""How what is in the store is called: the one place that spells these names. Pure.

    <repository>:<variant>                   what a variant of an entry publishes
    <repository>:build-<16 hex>              the same artifact, by the key of its build
    <repository>:src-<8 hex>                 a source that no entry names
    sources/<repository>:src-<16 hex>        a source's files, kept for other variants
    recovered:<16 hex>                       an artifact whose names were lost

No entry may publish under the names that are ours, so two things never share one.
"""

from __future__ import annotations

from typing import Final

BUILD_PREFIX: Final = "build-"
SOURCE_PREFIX: Final = "src-"
RESERVED_TAG_PREFIXES: Final = (BUILD_PREFIX, SOURCE_PREFIX)
RESERVED_REPOSITORIES: Final = ("sources", "recovered")


def variant_reference(repository: str, variant: str) -> str:
    """Return the name under which *variant* is published."""
    return f"{repository}:{variant}"


def build_name(key: str) -> str:
    """Return what a build is called after its key; *key*: as `sha256:…` or bare."""
    return f"{BUILD_PREFIX}{key.removeprefix('sha256:')[:16]}"


def build_reference(repository: str, key: str) -> str:
    """Return the name under which the artifact of the build *key* is found again."""
    return f"{repository}:{build_name(key)}"


def source_variant(digits: str) -> str:
    """Return the variant of a source that no entry names; *digits*: hex digits of its hash."""
    return f"{SOURCE_PREFIX}{digits[:8]}"


def source_reference(repository: str, digits: str) -> str:
    """Return the name that keeps a source's files; *digits*: hex digits of what identifies them."""
    return f"sources/{repository}:{SOURCE_PREFIX}{digits[:16]}"


def recovered_reference(digits: str) -> str:
    """Return the name of an artifact whose names were lost; *digits*: hex digits of its digest."""
    return f"recovered:{digits[:16]}"


def is_build(reference: str) -> bool:
    """Say whether *reference* is a build's own name: by its key."""
    return reference.rpartition(":")[2].startswith(BUILD_PREFIX)


def is_source(reference: str) -> bool:
    """Say whether *reference* keeps a source's files."""
    return reference.startswith("sources/")


def reserved_repository(repository: str) -> str:
    """Return the first part of *repository* if no entry may publish there, else nothing."""
    first = repository.partition("/")[0]
    return first if first in RESERVED_REPOSITORIES else ""
