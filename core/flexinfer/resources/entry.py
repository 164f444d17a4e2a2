"""The CatalogEntry: which artifacts to build from which source. A file, never a resource in a cluster."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator

from flexinfer.resources import patterns
from flexinfer.resources.located import Misplaced
from flexinfer.resources.model import Metadata, Part, Share, SourceText
from flexinfer.resources.source import SourceUri, is_revision, parse_source

Repository = Annotated[str, StringConstraints(pattern=patterns.REPOSITORY, max_length=200)]
VariantName = Annotated[str, StringConstraints(pattern=patterns.VARIANT)]


class EntrySource(Part):
    uri: SourceText
    revision: str = Field(default="", max_length=256)
    """A commit that the source is pinned to; wins over the one in `uri`. Only for `hf://`."""
    allow: tuple[str, ...] = Field(default=(), max_length=64)
    """Patterns of files to take; empty: all that the format needs."""

    @model_validator(mode="after")
    def _can_be_built(self) -> EntrySource:
        scheme = parse_source(self.uri).scheme
        if scheme == "catalog":
            raise ValueError("an entry is built from a source, not from another entry")
        if self.revision and scheme != "hf":
            raise ValueError(f"revision is for hf:// sources, this one is {scheme}://")
        if self.revision and not is_revision(self.revision):
            raise ValueError(
                f"revision {self.revision!r}: expected a branch, tag or commit of the repository"
            )
        return self

    def parsed(self) -> SourceUri:
        """Return the source, pinned to `revision` where there is one."""
        source = parse_source(self.uri)
        return replace(source, revision=self.revision) if self.revision else source


class License(Part):
    expression: str
    """SPDX expression. The build stops before any byte moves when the source says another."""


class Publish(Part):
    repository: Repository
    projections: tuple[Literal["modelpack"], ...] = ("modelpack",)


class Quantize(Part):
    format: str
    """A quantizer plug-in: `gguf`; or `none`: publish the source's bytes as they are."""
    type: str = ""
    """The format's own name of the type: `Q8_0`."""
    scheme: str = ""
    """For formats that name schemes: `FP8_DYNAMIC`."""


class Validate(Part):
    """What is measured before anything is published. What is absent is not asked."""

    smoke: bool = True
    min_same_top: Share | None = None
    max_kl_lower_bound: float | None = Field(default=None, ge=0)
    max_perplexity_ratio: float | None = Field(default=None, ge=0)
    footprint: bool = True


class Variant(Part):
    name: VariantName
    quantize: Quantize
    checks: Validate = Field(default=Validate(), alias="validate")


class Refresh(Part):
    schedule: str = ""
    """Five cron fields; empty: only when asked."""
    approve: Literal["never", "safe", "always"] = "never"


class EntrySpec(Part):
    source: EntrySource
    license: License
    publish: Publish
    variants: tuple[Variant, ...] = Field(min_length=1, max_length=64)
    refresh: Refresh = Refresh()

    @model_validator(mode="after")
    def _distinct(self) -> EntrySpec:
        seen: set[str] = set()
        for index, variant in enumerate(self.variants):
            if variant.name in seen:
                raise Misplaced(
                    f"variant {variant.name!r} is there twice", ("variants", index, "name")
                )
            seen.add(variant.name)
        return self


class CatalogEntry(Part):
    api_version: Literal["ai.flexinfer/v1alpha2"] = "ai.flexinfer/v1alpha2"
    kind: Literal["CatalogEntry"] = "CatalogEntry"
    metadata: Metadata
    spec: EntrySpec

    def variant(self, name: str) -> Variant | None:
        """Return the variant of that name; None if there is none."""
        return next((v for v in self.spec.variants if v.name == name), None)

    @property
    def default_variant(self) -> Variant:
        """Return the variant that is built when none is named: the first."""
        return self.spec.variants[0]
