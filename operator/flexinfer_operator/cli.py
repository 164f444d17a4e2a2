"""`flexinfer operator`, and `flexinfer model`: what Models there are and how they are."""

from __future__ import annotations

import asyncio
import os

import typer

from flexinfer.console import group, print_json, print_table
from flexinfer.errors import InvalidInput
from flexinfer.places import Home
from flexinfer.printable import escaped
from flexinfer.settings import Settings, load, setting_files
from flexinfer.units import format_bytes, format_duration


def operator(
    local: bool = typer.Option(
        False, "--local", help="This machine: Models are files, replicas are processes."
    ),
) -> None:
    """Run the control loop until Ctrl-C or SIGTERM.

    It reads models/*.yaml in the home, starts and stops engines as routers ask, and writes what it saw to state.db.

    Example: flexinfer operator --local
    """
    from flexinfer import log
    from flexinfer_operator.local.run import run_local

    if not local:
        raise InvalidInput(
            "the operator needs --local: a cluster of Kubernetes is not built yet",
            code="operator_kind",
        )
    home = Home.find(os.environ)
    settings = load(Settings, os.environ, files=setting_files(home.root))
    log.configure(settings.log)
    asyncio.run(run_local(home.prepare(), settings))


model = group(help="List and describe Models.", epilog="Example: flexinfer model ls")


@model.command("ls", epilog="Example: flexinfer model ls --json")
def ls(
    as_json: bool = typer.Option(False, "--json", help="Write JSON instead of a table."),
) -> None:
    """List the Models of this machine with their phase."""
    from flexinfer_operator.local.overview import overview

    seen = overview(Home.find(os.environ))
    if as_json:
        print_json([one.as_row() for one in seen.models])
        return
    if not seen.models:
        for build in seen.builds:
            typer.echo(f"no Models yet; {build.words}")
        if not seen.builds:
            typer.echo("no Models yet; add one with: flexinfer run SOURCE")
    rows = [
        (
            one.name,
            one.phase,
            str(one.replica_count),
            one.quantization or "-",
            format_bytes(one.size_bytes) if one.size_bytes else "-",
            format_duration(one.cold_start_s) if one.cold_start_s else "-",
            one.message.splitlines()[0] if one.message else "",
        )
        for one in seen.models
    ]
    heads = ("name", "phase", "replicas", "quantization", "size", "cold start", "message")
    if rows:
        print_table(heads, rows)
    for fault in (one.fault for one in seen.models if one.fault):
        typer.echo(f"refused: {escaped(str(fault))}", err=True)
    if seen.models and not seen.is_operator_running:
        typer.echo("the operator is not running: phases are as it left them", err=True)


@model.command("describe", epilog="Example: flexinfer model describe smollm2-135m-instruct")
def describe(
    name: str = typer.Argument(
        ..., metavar="NAME", help="The Model's name, or one of its aliases."
    ),
    as_json: bool = typer.Option(False, "--json", help="Write JSON instead of text."),
) -> None:
    """Show one Model: its conditions, artifact, cold starts and replicas."""
    from flexinfer_operator.local.overview import overview

    seen = overview(Home.find(os.environ))
    one = seen.find(name)
    if as_json:
        print_json(one.as_tree())
        return
    for key, value in one.as_lines():
        typer.echo(f"{key:<13} {escaped(str(value))}")
    if not seen.is_operator_running:
        typer.echo("the operator is not running: this is as it left it", err=True)
