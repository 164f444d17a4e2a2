"""Pin the source and decide what to do: the plan, or a refusal. What was pinned for ever is remembered."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path

from flexinfer.errors import FlexInferError, Unavailable, UnknownPlugin
from flexinfer.files import replace_json
from flexinfer.log import get_logger
from flexinfer.resources.entry import CatalogEntry, Variant
from flexinfer.resources.source import SourceUri, parse_source
from flexinfer_pipelines.plan import NONE, Ability, Plan, Recipe, check_recipe, make_plan
from flexinfer_pipelines.quantizers import QUANTIZERS
from flexinfer_pipelines.sources import SOURCES, Resolved, Source, SourceTools, resolved_from
from flexinfer_pipelines.steps import Context

log = get_logger(__name__)
_TRIES = 4
_BASE_S = 1.0
_LONGEST_S = 60.0


def source_for(context: Context, uri: SourceUri) -> Source:
    """Return the source plug-in of *uri*.

    Raises:
        UnknownPlugin: no source of that scheme can be built here.
    """
    known = SOURCES.names()
    if uri.scheme not in known:
        raise UnknownPlugin(
            f"source {uri}: {uri.scheme}:// cannot be built here; what can: "
            + ", ".join(f"{one}://" for one in ("catalog", *known))
        )
    context.scratch.mkdir(mode=0o700, parents=True, exist_ok=True)
    tools = SourceTools(
        settings=context.settings,
        environ=context.environ,
        scratch=context.scratch,
        chance=context.chance,
    )
    return SOURCES.get(uri.scheme)(tools)


async def resolve(context: Context, entry: CatalogEntry, variant: Variant, source: Source) -> Plan:
    """Ask the source, and return the plan for what it answers.

    Raises:
        InvalidInput: as `make_plan`. Also what the source raises, after a few tries of what may pass.
    """
    recipe_of(entry, variant)  # refused before anybody is asked
    uri = entry.spec.source.parsed()
    found = await _ask(context, source, uri)
    if found.is_pinned:
        replace_json(_memory(context, uri), {"resolved": found.to_tree()})
    return plan_for(entry, variant, found)


def recalled(context: Context, entry: CatalogEntry, variant: Variant) -> Plan | None:
    """Return the plan for what the source was pinned to before; None if nothing is remembered. Asks nobody.

    A local file is the same as long as nobody has written to it, which its stamp tells.
    """
    uri = entry.spec.source.parsed()
    try:
        tree = json.loads(_memory(context, uri).read_text("utf-8"))
        if uri.scheme == "file" and tree["stamp"] != _stamp(uri.path):
            return None
        found = resolved_from(tree["resolved"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return plan_for(entry, variant, found)


def remember_file(context: Context, plan: Plan) -> None:
    """Remember what a local file was found to be, until somebody writes to it."""
    uri = parse_source(plan.source.uri)
    if uri.scheme != "file":
        return
    found = replace(plan.source, files=plan.files)
    tree = {"stamp": _stamp(uri.path), "resolved": found.to_tree()}
    replace_json(_memory(context, uri), tree)


def plan_for(entry: CatalogEntry, variant: Variant, source: Resolved) -> Plan:
    return make_plan(entry, variant, source, recipe_of(entry, variant), _abilities())


def recipe_of(entry: CatalogEntry, variant: Variant) -> Recipe:
    """Return the recipe of *variant*, with the versions of the tools that would make it.

    Raises:
        InvalidInput: as `check_recipe`.
    """
    check_recipe(entry, variant, _abilities())
    wanted = variant.quantize
    if wanted.format == NONE:
        return Recipe(format=NONE)
    return QUANTIZERS.get(wanted.format)().recipe(wanted.type, wanted.scheme)


def _abilities() -> dict[str, Ability]:
    return {name: QUANTIZERS.get(name)().ability() for name in QUANTIZERS.names()}


async def _ask(context: Context, source: Source, uri: SourceUri) -> Resolved:
    for attempt in range(1, _TRIES + 1):
        try:
            return await source.resolve(uri)
        except FlexInferError as error:
            wait = error.retry_after_s or _BASE_S * 2**attempt * (0.5 + context.chance.random() / 2)
            if not error.retryable or attempt == _TRIES or wait > _LONGEST_S:
                raise
            log.info("source_retried", source=str(uri), code=error.code, delay_s=round(wait, 1))
            await asyncio.sleep(wait)
    raise Unavailable(f"{uri}: cannot be resolved")


def _stamp(path: str) -> list[int]:
    found = os.stat(path)
    return [found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns]


def _memory(context: Context, uri: SourceUri) -> Path:
    folder = context.home.work / "resolved"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder / f"{hashlib.sha256(str(uri).encode()).hexdigest()[:32]}.json"
