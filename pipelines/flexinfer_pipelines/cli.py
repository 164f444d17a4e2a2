"""`flexinfer build`, `run` and `pipelines`."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

import typer

from flexinfer import log
from flexinfer.clock import SystemClock
from flexinfer.console import group
from flexinfer.places import Home
from flexinfer.process import watch_lifeline, watch_lifeline_in_thread
from flexinfer.settings import Settings, load, setting_files
from flexinfer.units import format_bytes
from flexinfer_pipelines.room import LogFile, check_room, disk_full_is_said

_LOG_BYTES = 16 * 1024 * 1024
_INTERRUPTED = 130
# Whoever started us is gone, killed perhaps: nobody waits for a graceful end.
_LAST_WORDS_S = 1.0

pipelines = group(
    help="Serve the build flow's deployment: Prefect's UI starts runs of it, and so does the example.",
    epilog="Example: PREFECT_API_URL=http://127.0.0.1:4200/api "
    "prefect deployment run build/build --param target=ENTRY/VARIANT",
    invoke_without_command=True,
    no_args_is_help=False,
)


def build(
    target: str = typer.Argument(
        help="A catalog entry (ENTRY or ENTRY/VARIANT), a source string, or a file."
    ),
    as_json: bool = typer.Option(False, "--json", help="Print the result as one JSON object."),
    quiet: bool = typer.Option(False, "--quiet", help="No progress; logs go to standard error."),
    rebuild: bool = typer.Option(
        False, "--rebuild", help="Make and measure it again although it is there."
    ),
) -> None:
    """Build a catalog entry or any source into a verified artifact, and print its digest.

    What is there already is not built again, and takes no network. An interrupted build goes on where it stood.

    Example: flexinfer build smollm2-135m-instruct/q8-0
    """
    watch_lifeline_in_thread(_end_with_parent)
    home, settings = _start()
    with _logging(home, settings, quiet=quiet):
        found = _build(target, home, settings, quiet=quiet, rebuild=rebuild)
    if as_json:
        typer.echo(json.dumps(found, indent=2))
    else:
        word = "built" if found["new"] else "already built"
        size = format_bytes(found["sizeBytes"])
        typer.echo(f"{word} {found['reference']} ({found['quantization']}, {size})", err=True)
        typer.echo(found["digest"])


def run(
    source: str = typer.Argument(help="A GGUF file, a source string, or a catalog entry."),
    name: str = typer.Option(
        "", "--name", help="What to call the Model; by default after the file."
    ),
) -> None:
    """Serve your own model: ingest a file or source, bind it, answer.

    Writes a Model file and, unless `flexinfer up` runs already, becomes it.

    Example: flexinfer run ./mine.gguf
    """
    from flexinfer_pipelines import serve_model

    home, settings = _start()
    serve_model.check_name(source, name, home, settings)
    log.configure(settings.log)
    try:
        # In a process of its own: `up`, which this one may become, must not inherit a build's low priority.
        _until_signal(serve_model.build(source, home, os.environ))
    except _Interrupted:
        raise SystemExit(_INTERRUPTED) from None  # the build has said so
    model = serve_model.write_model(source, name, home, settings)
    serve_model.show_or_become_up(model, home, settings)


@pipelines.callback()
def serve(context: typer.Context) -> None:
    """Serve the build flow's deployment. Waits for the Prefect API, which `flexinfer up` starts."""
    if context.invoked_subcommand is not None:
        return
    home, settings = _start()
    log.configure(settings.log)
    os.nice(settings.build.nice)
    from flexinfer_pipelines.flows import local

    with suppress(_Interrupted):  # how it ends
        _until_signal(local.serve(home, settings, os.environ))


@pipelines.command()
def server() -> None:
    """Run Prefect's own server, on loopback, with its database below the home.

    Example: flexinfer pipelines server
    """
    home, settings = _start()
    log.configure(settings.log)
    from flexinfer_pipelines.flows.server import serve as serve_prefect

    serve_prefect(home, settings)


def _start() -> tuple[Home, Settings]:
    home = Home.find(os.environ)
    settings = load(Settings, os.environ, files=setting_files(home.root))
    return home.prepare(), settings


@contextmanager
def _logging(home: Home, settings: Settings, *, quiet: bool) -> Iterator[None]:
    """Send logs to standard error when somebody reads them there, else to a file: the terminal shows progress."""
    if quiet:
        log.configure(settings.log)
        yield
        return
    stream = LogFile(home.log("build"), max_bytes=_LOG_BYTES)
    log.configure(settings.log, stream=cast(TextIO, stream))
    try:
        yield
    finally:
        log.configure(settings.log)
        stream.close()


def _build(
    target: str, home: Home, settings: Settings, *, quiet: bool, rebuild: bool
) -> dict[str, Any]:
    from flexinfer.store import Store
    from flexinfer_pipelines.built import already_built, name_again
    from flexinfer_pipelines.show import progress_for
    from flexinfer_pipelines.steps import Context, Unwatched
    from flexinfer_pipelines.target import find_target

    entry, variant, reference = find_target(target, home, settings)
    if not (home.store / "oci-layout").exists():
        check_room(home)
    store = Store(home.store)
    context = Context(
        home=home,
        settings=settings,
        environ=os.environ,
        store=store,
        clock=SystemClock(),
        chance=random.SystemRandom(),
        progress=Unwatched(),
    )
    found = None if rebuild else already_built(context, entry, variant)
    if found is not None:
        name_again(store, found)
        return _shown(store, reference, found.digest, is_new=False)
    _refuse_early(context, entry, variant)
    check_room(home)
    before = _digest_of(store, reference)
    os.nice(settings.build.nice)  # builds stand behind serving
    progress, display = progress_for(quiet=quiet)
    # Prefect from here on: it takes seconds to import.
    from flexinfer_pipelines.flows import local

    named = target if entry.metadata.name != target else f"{target}/{variant.name}"
    try:
        with display, disk_full_is_said(home):
            digest = _until_signal(
                local.run(
                    named,
                    rebuild=rebuild,
                    home=home,
                    settings=settings,
                    environ=os.environ,
                    progress=progress,
                )
            )
    except _Interrupted:
        typer.echo("interrupted; the same command goes on where it stood", err=True)
        raise SystemExit(_INTERRUPTED) from None
    return _shown(store, reference, digest, is_new=rebuild or digest != before)


def _refuse_early(context: Any, entry: Any, variant: Any) -> None:
    """Refuse what needs no run to be refused: a recipe that nobody makes, a local file that is none or no model."""
    from flexinfer.formats.ingest import inspect_file
    from flexinfer_pipelines.steps.resolve import recipe_of, source_for

    recipe_of(entry, variant)
    uri = entry.spec.source.parsed()
    source = source_for(context, uri)
    if uri.scheme == "file":
        resolved = asyncio.run(source.resolve(uri))
        for file in resolved.files:
            path = source.local_path(resolved, file)
            if path is not None:
                inspect_file(path, file.path)


def _digest_of(store: Any, reference: str) -> str:
    from flexinfer.errors import NotFound

    try:
        return str(store.resolve(reference).digest)
    except NotFound:
        return ""


def _shown(store: Any, reference: str, digest: str, *, is_new: bool) -> dict[str, Any]:
    from flexinfer.artifact import PREDICATE_TEST_RESULT

    artifact = store.artifact(digest)
    measured: dict[str, Any] = {}
    for _, said in store.evidence(digest).statements:
        if said.predicate_type == PREDICATE_TEST_RESULT and said.predicate["result"] == "PASSED":
            measured |= said.predicate.get("measurements", {})
    return {
        "reference": reference,
        "digest": digest,
        "new": is_new,
        "format": artifact.config.format,
        "quantization": artifact.config.quantization,
        "sizeBytes": artifact.size_bytes,
        "measurements": measured,
    }


def _end_with_parent() -> None:
    """End as SIGTERM would let us; then at once. What we started has a lifeline of its own, which we hold."""
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_LAST_WORDS_S)
    os._exit(_INTERRUPTED)


class _Interrupted(Exception):
    """What ran was told to stop, and has ended."""


def _until_signal(work: Any) -> Any:
    """Run *work*; SIGTERM, or the end of who started us, cancels it as Ctrl-C does: what it started is ended.

    Raises:
        _Interrupted: it was.
    """

    async def guarded() -> Any:
        task = asyncio.ensure_future(work)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, task.cancel)
        watch_lifeline(loop, task.cancel)
        return await task

    try:
        return asyncio.run(guarded())
    except (asyncio.CancelledError, KeyboardInterrupt):
        pass
    except BaseException as error:
        # While a flow runs, Prefect takes SIGTERM for itself and raises this; what we started is ended by now.
        if type(error).__name__ != "TerminationSignal":
            raise
    raise _Interrupted
