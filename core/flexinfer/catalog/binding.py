"""From any source to the entry, variant and store reference that stand for it. Pure.

The one place that decides under which name a source's artifact is kept (`store_names` spells it): pipelines publish
there, the operator binds from there. Equal sources have equal references; different ones never share one, because a
source without an entry is named by its own hash, and no entry may use such names.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from typing import Protocol

from flexinfer.catalog.rules import AS_IS
from flexinfer.resources import patterns
from flexinfer.resources.entry import (
    CatalogEntry,
    EntrySource,
    EntrySpec,
    License,
    Publish,
    Quantize,
    Variant,
)
from flexinfer.resources.model import Metadata
from flexinfer.resources.source import SourceUri
from flexinfer.store_names import source_variant, variant_reference

_WEIGHT_SUFFIXES = (".gguf", ".safetensors")
_NAMELESS = "model"


class Entries(Protocol):
    """Entries that were loaded: `Catalog`."""

    def find(self, name: str, variant: str = "") -> tuple[CatalogEntry, Variant]:
        """Return the entry and its variant, or its default one."""
        ...


def wanted(source: SourceUri, catalog: Entries) -> tuple[CatalogEntry, Variant, str]:
    """Return entry, variant and store reference (`<repository>:<tag>`) of *source*.

    Raises:
        NotFound: code `entry_not_found` or `variant_not_found`; only for `catalog://`.
    """
    if source.scheme == "catalog":
        entry, variant = catalog.find(source.name, source.path)
    else:
        entry = adhoc_entry(source)
        variant = entry.default_variant
    return entry, variant, variant_reference(entry.spec.publish.repository, variant.name)


def adhoc_entry(source: SourceUri, name: str = "") -> CatalogEntry:
    """Return the entry of a source that no catalog knows: its bytes as they are, under its own name.

    *name* changes how the entry is called, never its reference.
    """
    repository = slug(_own_name(source))
    digest = hashlib.sha256(str(source).encode()).hexdigest()
    return CatalogEntry(
        metadata=Metadata(name=slug(name) if name else repository),
        spec=EntrySpec(
            source=EntrySource(uri=str(source)),
            license=License(expression="NOASSERTION"),
            publish=Publish(repository=repository),
            variants=(Variant(name=source_variant(digest), quantize=Quantize(format=AS_IS)),),
        ),
    )


def slug(text: str) -> str:
    """Return *text* as a name that resources and repositories both allow."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    separated = re.sub(r"[^a-z0-9]+", lambda run: "." if run[0] == "." else "-", plain)
    return separated[: patterns.NAME_LENGTH].strip(".-") or _NAMELESS


def _own_name(source: SourceUri) -> str:
    if source.path:
        last = source.path.rsplit("/", 1)[-1]
        for suffix in _WEIGHT_SUFFIXES:
            if last.lower().endswith(suffix):
                return last[: -len(suffix)]
        return last
    # `registry/repository:tag@digest` and `name:tag`: what stands before the tag.
    return re.split("[:@]", source.name.rsplit("/", 1)[-1])[0]
