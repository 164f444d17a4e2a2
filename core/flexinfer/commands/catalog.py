"""`flexinfer catalog`: which artifacts can be built, and whether the files that say so are right."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from flexinfer import plugins
from flexinfer.catalog import Catalog, LoadedEntry, rules, search_paths
from flexinfer.console import group, print_json, print_table
from flexinfer.errors import InvalidInput, PluginNotInstalled, UnknownPlugin
from flexinfer.places import Home
from flexinfer.printable import escaped
from flexinfer.settings import Settings, load, setting_files
from flexinfer.store_names import variant_reference

app = group(help="List and check catalog entries.", epilog="Example: flexinfer catalog list")


@app.command("lint", epilog="Example: flexinfer catalog lint my-catalog/llm/mine.yaml")
def lint(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="PATH", help="Files or folders; without one, everything that is searched."
        ),
    ] = None,
) -> None:
    """Check entries: one line for each problem, `file:line:column: message`; exit code 2 if there is any."""
    searched = tuple(paths) if paths else _search_paths()
    catalog = Catalog.load(searched)
    problems = list(_problems(catalog))
    for line in (*problems, *_warnings(catalog)):
        typer.echo(escaped(line))
    usable = [
        left
        for one in catalog.entries.values()
        if (left := len(one.entry.spec.variants) - _unmakeable(one))
    ]
    entries, variants = len(usable), sum(usable)
    counted = f"{_count(entries, 'entry', 'entries')}, {_count(variants, 'variant', 'variants')}"
    if problems:
        typer.echo(f"{_count(len(problems), 'problem', 'problems')}; usable: {counted}")
        raise typer.Exit(InvalidInput.exit_code)
    typer.echo(f"ok: {counted}")


@app.command("list", epilog="Example: flexinfer catalog list --json")
def list_entries(
    as_json: bool = typer.Option(False, "--json", help="Write JSON instead of a table."),
    wide: bool = typer.Option(False, "--wide", "-w", help="Also the source and the file."),
) -> None:
    """List the entries that can be built, the default variant first."""
    catalog = Catalog.load(_search_paths())
    rows = [_row(loaded) for loaded in catalog.entries.values()]
    if as_json:
        print_json(rows)
        return
    if rows:
        more = ("source", "file") if wide else ()
        print_table(
            ("entry", "variants", "licence", *more),
            [
                (
                    row["entry"],
                    " ".join(variant["name"] for variant in row["variants"]),
                    row["license"],
                    *(row[key] for key in more),
                )
                for row in rows
            ],
        )
    else:
        typer.echo("no entries; see catalogs/README.md on how to add one")
    if catalog.problems:
        unusable = _count(len(catalog.problems), "file is", "files are")
        typer.echo(f"{unusable} not usable: see flexinfer catalog lint", err=True)


def _search_paths() -> tuple[Path, ...]:
    home = Home.find(os.environ)
    settings = load(Settings, os.environ, files=setting_files(home.root))
    return search_paths(settings.catalog, home, Path.cwd())


def _problems(catalog: Catalog) -> Iterator[str]:
    for error in catalog.problems:
        yield from error.message.splitlines()
    for loaded in _all(catalog):
        for problem in rules.unknown_plugins(loaded.document, plugins.names):
            yield problem.at(str(loaded.file))
        for problem in rules.unknown_types(loaded.document, _types):
            yield problem.at(str(loaded.file))


def _unmakeable(loaded: LoadedEntry) -> int:
    return rules.unmakeable(loaded.document, plugins.names, _types)


def _warnings(catalog: Catalog) -> Iterator[str]:
    for one in catalog.hidden:
        name = one.loaded.entry.metadata.name
        place = one.loaded.document.problem(
            ("metadata", "name"), f"warning: entry {name!r} is not used: {one.by} comes first"
        )
        yield place.at(str(one.loaded.file))
    for loaded in _all(catalog):
        unlisted = rules.unknown_licences(loaded.document, _is_listed)
        absent = rules.absent_file(loaded.document, os.path.isfile)
        for problem in (*rules.advice(loaded.document), *absent, *unlisted):
            mark = problem.mark
            yield f"{loaded.file}:{mark.line}:{mark.column}: warning: {problem.message}"


def _types(quantizer: str) -> tuple[str, ...]:
    """Return what the quantizer plug-in makes; nothing for one that is not installed or does not say."""
    try:
        found = plugins.load("flexinfer.quantizers", quantizer)
    except (PluginNotInstalled, UnknownPlugin):
        return ()
    return tuple(str(one) for one in getattr(found, "types", ()))


def _is_listed(expression: str) -> bool:
    """Say whether SPDX lists all that *expression* names; yes where the list, part of `packaging`, is absent."""
    try:
        from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression
    except ModuleNotFoundError:
        return True
    try:
        # It does not know references into another document.
        canonicalize_license_expression(re.sub(r"DocumentRef-[A-Za-z0-9.-]+:", "", expression))
    except InvalidLicenseExpression:
        return False
    return True


def _all(catalog: Catalog) -> Iterator[LoadedEntry]:
    yield from catalog.entries.values()
    yield from (one.loaded for one in catalog.hidden)


def _row(loaded: LoadedEntry) -> dict[str, Any]:
    spec = loaded.entry.spec
    return {
        "entry": loaded.entry.metadata.name,
        "source": str(spec.source.parsed()),
        "license": spec.license.expression,
        "repository": spec.publish.repository,
        "variants": [
            {
                "name": variant.name,
                "format": variant.quantize.format,
                "type": variant.quantize.type or variant.quantize.scheme,
                "reference": variant_reference(spec.publish.repository, variant.name),
            }
            for variant in spec.variants
        ],
        "file": str(loaded.file),
    }


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"
