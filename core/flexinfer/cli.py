"""`flexinfer`: one command line, mounted from entry points, each command imported when it is asked for.

flexinfer --help            lists all commands and imports none of them
error[CODE]: message        how every failure reads, on standard error; the exit code is the error class's
"""

from __future__ import annotations

import importlib.util
import os
import sys
from dataclasses import dataclass
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from flexinfer import plugins
from flexinfer.console import group, one_command
from flexinfer.errors import FlexInferError
from flexinfer.printable import escaped

_GROUP = "flexinfer.commands"


@dataclass(frozen=True, slots=True)
class _About:
    summary: str
    needs: str = ""
    """A module of the extra that the command belongs to."""
    extra: str = ""


# What `--help` says, so that it need not import Prefect to say it. A plug-in's own command is imported.
_ABOUT = {
    "up": _About("Start everything on this machine and stay in the foreground."),
    "status": _About("Show what runs, where it answers and what it costs."),
    "logs": _About("Show the logs of what `up` started."),
    "down": _About("Stop what `up` started."),
    "doctor": _About("Check this machine: space, memory, ports, tools."),
    "build": _About("Build a catalog entry or any source into a verified artifact.", "prefect", "pipelines"),
    "run": _About("Serve your own model: ingest a file or source, bind it, answer.", "prefect", "pipelines"),
    "artifact": _About("List, inspect, verify and remove artifacts in the store."),
    "catalog": _About("List and check catalog entries."),
    "model": _About("List and describe Models."),
    "chat": _About("Talk to a model in the terminal.", "fastapi", "serving"),
    "serve": _About("Run the router.", "fastapi", "serving"),
    "operator": _About("Run the control loop."),
    "pipelines": _About("Serve the build flow's deployments.", "prefect", "pipelines"),
}  # fmt: skip


class _LazyGroup(TyperGroup):
    """Commands by name, from entry points."""

    def list_commands(self, ctx: Any) -> list[str]:
        published = plugins.names(_GROUP)
        return [n for n in _ABOUT if n in published] + [n for n in published if n not in _ABOUT]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in plugins.names(_GROUP):
            return None
        about = _ABOUT.get(cmd_name)
        # While help is printed every command is asked for; answer from the table.
        if about is not None and ctx.params.get("_listing", False):
            return TyperCommand(name=cmd_name, help=_summary(about), callback=lambda: None)
        return _command(cmd_name, plugins.load(_GROUP, cmd_name))

    def format_help(self, ctx: Any, formatter: Any) -> None:
        ctx.params["_listing"] = True
        super().format_help(ctx, formatter)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name = args[0] if args else ""
        known = plugins.names(_GROUP)
        if name and not name.startswith("-") and name not in known:
            close = plugins.nearest(name, known)
            ctx.fail(f"no command {name!r}{close or '; see flexinfer --help'}")
        return super().resolve_command(ctx, args)


def _summary(about: _About) -> str:
    if about.needs and importlib.util.find_spec(about.needs) is None:
        return f"(not installed: flexinfer[{about.extra}] needs {about.needs!r}) {about.summary}"
    return about.summary


def _command(name: str, found: Any) -> Any:
    if not isinstance(found, typer.Typer):
        found = one_command(name, found)
    command = typer.main.get_command(found)
    command.name = name
    return command


app = group(
    cls=_LazyGroup,
    help="Private inference: from a model's source to a private, OpenAI-compatible endpoint.",
    epilog="Start with `flexinfer up`; then `flexinfer chat smollm2-135m-instruct`.",
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"flexinfer {version('flexinfer')}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(
        False, "--version", help="Show the version and exit.", callback=_version, is_eager=True
    ),
) -> None:
    """A callback, so that Typer never collapses the group."""


def main() -> None:
    """Run the command line and exit."""
    try:
        app()
    except FlexInferError as error:
        message = escaped(error.message, keep="\n")
        print(f"error[{error.code}]: {message}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except BrokenPipeError:
        # The reader of our output left, as `| head` does. Nothing may be written at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None
