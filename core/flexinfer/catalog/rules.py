"""What an entry must hold beyond its schema. Pure; each rule answers with the place of what breaks it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from flexinfer.catalog import cron, spdx
from flexinfer.resources.document import Document
from flexinfer.resources.entry import CatalogEntry
from flexinfer.resources.located import Problem
from flexinfer.spelling import nearest
from flexinfer.store_names import RESERVED_TAG_PREFIXES, reserved_repository

_COMMIT = re.compile(r"[0-9a-f]{40}")
AS_IS = "none"
"""The quantize format that publishes the source's bytes as they are."""


def problems(document: Document[CatalogEntry]) -> Iterator[Problem]:
    """Yield what makes the entry unusable, whatever is installed."""
    spec = document.value.spec
    if reserved := reserved_repository(spec.publish.repository):
        yield document.problem(
            ("spec", "publish", "repository"),
            f"repository {spec.publish.repository!r}: {reserved}/ is reserved",
        )
    if wrong := spdx.problem(spec.license.expression):
        yield document.problem(("spec", "license", "expression"), wrong)
    if spec.refresh.schedule and (wrong := cron.problem(spec.refresh.schedule)):
        yield document.problem(("spec", "refresh", "schedule"), wrong)
    for index, variant in enumerate(spec.variants):
        here = ("spec", "variants", index)
        if variant.name.startswith(RESERVED_TAG_PREFIXES):
            prefixes = " and ".join(f"{prefix}…" for prefix in RESERVED_TAG_PREFIXES)
            yield document.problem(
                (*here, "name"), f"variant {variant.name!r}: names in {prefixes} are reserved"
            )
        for key in ("type", "scheme"):
            if variant.quantize.format == AS_IS and getattr(variant.quantize, key):
                yield document.problem(
                    (*here, "quantize", key),
                    f"format {AS_IS} takes no {key}: the bytes stay as they are",
                )


def advice(document: Document[CatalogEntry]) -> Iterator[Problem]:
    """Yield what works and may surprise."""
    source = document.value.spec.source.parsed()
    if source.scheme == "hf" and not _COMMIT.fullmatch(source.revision):
        found = f"revision {source.revision!r} can move" if source.revision else "no revision"
        yield document.problem(
            ("spec", "source", "uri"),
            f"{found}: each build takes what it finds; write the commit (40 hex digits) to pin it",
        )


def absent_file(
    document: Document[CatalogEntry], is_file: Callable[[str], bool]
) -> Iterator[Problem]:
    """Yield a file of this machine that is not there; it may be on the one that builds. *is_file* looks at a path."""
    source = document.value.spec.source.parsed()
    if source.scheme == "file" and not is_file(source.path):
        yield document.problem(
            ("spec", "source", "uri"),
            f"no file {source.path!r} here: a build of it ends with source_not_found",
        )


def unknown_licences(
    document: Document[CatalogEntry], is_listed: Callable[[str], bool]
) -> Iterator[Problem]:
    """Yield a licence expression that is well formed and names what SPDX does not list. *is_listed* knows its list."""
    expression = document.value.spec.license.expression
    if expression not in spdx.ALONE and not is_listed(expression):
        yield document.problem(
            ("spec", "license", "expression"),
            f"licence {expression!r}: SPDX lists no such identifier; "
            "a licence of your own begins with LicenseRef-" + spdx.near_miss(expression),
        )


def unknown_types(
    document: Document[CatalogEntry], types: Callable[[str], tuple[str, ...]]
) -> Iterator[Problem]:
    """Yield what a quantizer cannot make. *types* gives what the one of that name can; nothing: not known."""
    for index, variant in enumerate(document.value.spec.variants):
        known = types(variant.quantize.format)
        found = variant.quantize.type
        if known and found not in known:
            what = f"no type {found!r}" if found else "a type is missing"
            message = f"{what}: {variant.quantize.format} makes {', '.join(known)}"
            key = ("type",) if found else ()
            yield document.problem(
                ("spec", "variants", index, "quantize", *key), message + nearest(found, known)
            )


def unmakeable(
    document: Document[CatalogEntry],
    names: Callable[[str], tuple[str, ...]],
    types: Callable[[str], tuple[str, ...]],
) -> int:
    """Return how many variants cannot be built by what is installed. *names* and *types* as for the rules below."""
    spec = document.value.spec
    if spec.source.parsed().scheme not in names("flexinfer.sources"):
        return len(spec.variants)
    formats = (AS_IS, *names("flexinfer.quantizers"))
    recipes = [one.quantize for one in spec.variants]
    return sum(
        one.format not in formats or one.type not in (types(one.format) or (one.type,))
        for one in recipes
    )


def unknown_plugins(
    document: Document[CatalogEntry], names: Callable[[str], tuple[str, ...]]
) -> Iterator[Problem]:
    """Yield what no installed plug-in can do. *names* gives the names published under a group."""
    spec = document.value.spec
    schemes, formats = names("flexinfer.sources"), (AS_IS, *names("flexinfer.quantizers"))
    scheme = spec.source.parsed().scheme
    if scheme not in schemes:
        message = f"no source plug-in for {scheme}:// (known: {', '.join(schemes) or 'none'})"
        yield document.problem(("spec", "source", "uri"), message + nearest(scheme, schemes))
    for index, variant in enumerate(spec.variants):
        found = variant.quantize.format
        if found not in formats:
            message = f"no quantizer named {found!r} (known: {', '.join(formats)})"
            place = ("spec", "variants", index, "quantize", "format")
            yield document.problem(place, message + nearest(found, formats))
