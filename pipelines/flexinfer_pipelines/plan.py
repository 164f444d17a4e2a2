"""What a build will do, or why it will not: decided before any byte moves. Pure.

    entry × variant × what the source resolved to  →  the files to fetch, the recipe, the names to publish under

A build key is the hash of everything that decides the artifact's bytes: the identities of the source's files,
the recipe, the quantizer's program and its tool environment. Where it is known, the same key is never built twice.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from flexinfer import store_names
from flexinfer.errors import InvalidInput
from flexinfer.resources.entry import CatalogEntry, Variant
from flexinfer.spelling import nearest
from flexinfer_pipelines.license import covers
from flexinfer_pipelines.resolved import Resolved, SourceFile, is_document

NONE = "none"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_SPLIT = re.compile(r".*-\d{5}-of-\d{5}\.gguf", re.IGNORECASE)
_TYPE_AT_END = re.compile(r"(?i)(?<=.)[.-](i?q\d\w*|bf16|fp?16|fp?32)$")
_KEY_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How the weights are made. `format` none: published as they are."""

    format: str
    type: str = ""
    scheme: str = ""
    tool: str = ""
    """Name of the tool environment."""
    lock: str = ""
    """Hash of its lock: the versions of everything in it."""
    program: str = ""
    """Hash of the quantizer's own program."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ability:
    """What one quantizer plug-in can do."""

    types: tuple[str, ...]
    inputs: tuple[str, ...]
    """Endings of the weight files that it reads: `.gguf`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What will be done."""

    entry: str
    variant: str
    reference: str
    """`<repository>:<variant>`: the name that moves last."""
    source: Resolved
    weights: tuple[SourceFile, ...]
    documents: tuple[SourceFile, ...]
    recipe: Recipe
    license: str

    @property
    def files(self) -> tuple[SourceFile, ...]:
        return (*self.weights, *self.documents)

    @property
    def is_copy(self) -> bool:
        """The source's bytes are published as they are."""
        return self.recipe.format == NONE


def make_plan(
    entry: CatalogEntry,
    variant: Variant,
    source: Resolved,
    recipe: Recipe,
    abilities: Mapping[str, Ability],
) -> Plan:
    """Return what to do for *variant* of *entry*.

    Raises:
        InvalidInput: `license`, `quantizer_unsupported`, `quantization_unsupported`, `source_format_unsupported`,
            `pickle_refused`, `gguf_split`, `source_ambiguous`, `source_empty`. Nothing has been moved.
    """
    check_license(entry, source)
    check_recipe(entry, variant, abilities)
    files = _allowed(entry, source)
    weights = _weights(entry, variant, files, abilities)
    return Plan(
        entry=entry.metadata.name,
        variant=variant.name,
        reference=store_names.variant_reference(entry.spec.publish.repository, variant.name),
        source=source,
        weights=weights,
        documents=tuple(f for f in files if is_document(f.path) and f not in weights),
        recipe=recipe,
        license=entry.spec.license.expression,
    )


def check_license(entry: CatalogEntry, source: Resolved) -> None:
    """Refuse a source that states a licence which the entry does not name.

    Raises:
        InvalidInput: code `license`.
    """
    wanted = entry.spec.license.expression
    if not covers(wanted, source.license):
        raise InvalidInput(
            f"entry {entry.metadata.name}: license is {wanted!r}, the source {source.uri} states "
            f"{source.license!r}; read it, then write what you accept into license.expression",
            code="license",
            param="license.expression",
        )


def check_recipe(entry: CatalogEntry, variant: Variant, abilities: Mapping[str, Ability]) -> None:
    """Refuse what no quantizer here makes. Needs no source, so it comes before one is asked.

    Raises:
        InvalidInput: `quantizer_unsupported`, `quantization_unsupported`, `validation_unsupported`.
    """
    wanted = variant.quantize
    what = f"entry {entry.metadata.name}, variant {variant.name}"
    if variant.checks.max_perplexity_ratio is not None:
        raise InvalidInput(
            f"{what}: validate.maxPerplexityRatio: perplexity is not measured here; use maxKlLowerBound",
            code="validation_unsupported",
            param="validate.maxPerplexityRatio",
        )
    if wanted.format == NONE:
        if wanted.type or wanted.scheme:
            raise InvalidInput(
                f"{what}: format none copies the source; type and scheme must be absent",
                code="quantization_unsupported",
                param="quantize.type",
            )
        return
    ability = abilities.get(wanted.format)
    if ability is None:
        known = (NONE, *abilities)
        raise InvalidInput(
            f"{what}: no quantizer {wanted.format!r} (known: {', '.join(known)})"
            f"{nearest(wanted.format, known)}",
            code="quantizer_unsupported",
            param="quantize.format",
        )
    if wanted.type not in ability.types or wanted.scheme:
        asked = wanted.type or wanted.scheme
        raise InvalidInput(
            f"{what}: {wanted.format} makes no {asked!r} (it makes: {', '.join(ability.types)})"
            f"{nearest(asked.upper(), ability.types)}",
            code="quantization_unsupported",
            param="quantize.type",
        )


def build_key(plan: Plan) -> str | None:
    """Return `sha256:…` over what decides the artifact; None while a file's identity is not known."""
    files = {file.path: file.identity for file in plan.files}
    if not all(files.values()):
        return None
    recipe = plan.recipe
    tree = {
        "version": _KEY_VERSION,
        "files": files,
        "recipe": {"format": recipe.format, "type": recipe.type, "scheme": recipe.scheme},
        "tools": {recipe.tool: recipe.lock, "program": recipe.program} if recipe.tool else {},
        "calibration": None,
        # These stand in the manifest, so another value is another artifact.
        "about": {
            "entry": plan.entry,
            "license": plan.license,
            "source": plan.source.identity,
            "revision": plan.source.revision,
            "created": plan.source.created_at,
            "url": plan.source.url,
        },
    }
    data = json.dumps(tree, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return f"sha256:{hashlib.sha256(data.encode()).hexdigest()}"


def identified(plan: Plan, digests: Mapping[str, str]) -> Plan:
    """Return *plan* with an identity for every file whose source names none: the hash of what was fetched."""

    def known(file: SourceFile) -> SourceFile:
        return file if file.identity else replace(file, identity=digests.get(file.path, ""))

    return replace(
        plan,
        weights=tuple(known(file) for file in plan.weights),
        documents=tuple(known(file) for file in plan.documents),
    )


def build_reference(plan: Plan, key: str) -> str:
    """Return the name under which the artifact of *key* is found again."""
    repository = plan.reference.rpartition(":")[0]
    return store_names.build_reference(repository, key)


def source_reference(plan: Plan) -> str:
    """Return the name that keeps the source's files, for other variants of the entry."""
    repository = plan.reference.rpartition(":")[0]
    names = "\n".join(f"{f.path} {f.identity}" for f in plan.files)
    digits = hashlib.sha256(f"{plan.source.identity}\n{names}".encode()).hexdigest()
    return store_names.source_reference(repository, digits)


def output_name(plan: Plan) -> str:
    """Return the file name of the quantized weights: the input's, with its type exchanged."""
    name = plan.weights[0].path.rpartition("/")[2]
    stem = _TYPE_AT_END.sub("", name.removesuffix(".gguf"))
    return f"{stem}.{plan.recipe.type}.gguf"


def _allowed(entry: CatalogEntry, source: Resolved) -> tuple[SourceFile, ...]:
    patterns = entry.spec.source.allow
    if not patterns:
        return source.files
    return tuple(
        file
        for file in source.files
        if any(fnmatch.fnmatchcase(file.path, pattern) for pattern in patterns)
    )


def _weights(
    entry: CatalogEntry,
    variant: Variant,
    files: Sequence[SourceFile],
    abilities: Mapping[str, Ability],
) -> tuple[SourceFile, ...]:
    what = f"entry {entry.metadata.name}, variant {variant.name}"
    found = [file for file in files if file.path.lower().endswith(".gguf")]
    if not found:
        raise _no_weights(what, variant, files)
    parts = [file for file in found if _SPLIT.fullmatch(file.path)]
    if parts:
        raise InvalidInput(
            f"{what}: {parts[0].path} is one of {len(parts)} parts; name a source with one file",
            code="gguf_split",
        )
    if len(found) > 1:
        names = [file.path for file in found]
        shown = ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
        raise InvalidInput(
            f"{what}: the source has {len(found)} models ({shown}); name one behind the repository",
            code="source_ambiguous",
            param="source.uri",
        )
    wanted = variant.quantize.format
    ending = "." + found[0].path.rpartition(".")[2].lower()
    if wanted != NONE and ending not in abilities[wanted].inputs:
        raise InvalidInput(
            f"{what}: {wanted} reads {', '.join(abilities[wanted].inputs)}, not {found[0].path}",
            code="source_format_unsupported",
        )
    return tuple(found)


def _no_weights(what: str, variant: Variant, files: Sequence[SourceFile]) -> InvalidInput:
    names = [file.path for file in files]
    tensors = [name for name in names if name.endswith(".safetensors")]
    pickles = [name for name in names if name.lower().endswith(_PICKLES)]
    if tensors:
        return InvalidInput(
            f"{what}: the source has safetensors only ({tensors[0]}), and no quantizer here reads them; "
            "use a source that publishes GGUF",
            code="source_format_unsupported",
            param="source.uri",
        )
    if pickles:
        return InvalidInput(
            f"{what}: the source has pickles only ({pickles[0]}), which are never loaded",
            code="pickle_refused",
            param="source.uri",
        )
    shown = ", ".join(names[:8]) or "nothing"
    return InvalidInput(
        f"{what}: expected a .gguf file in the source, found {shown}",
        code="source_empty",
        param="source.uri",
    )
