"""`flexinfer artifact`: what is in the store, and whether its bytes are what they should be."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import Any

import typer

from flexinfer.artifact import PREDICATE_TEST_RESULT, Artifact, Statement
from flexinfer.commands.removal import gc, missing, rm
from flexinfer.console import group, print_json, print_table
from flexinfer.errors import FlexInferError, IntegrityError, NotFound
from flexinfer.oci import Descriptor, Digest, Layout
from flexinfer.oci.recovery import rebuild_index
from flexinfer.places import Home
from flexinfer.printable import escaped
from flexinfer.store import Store, VerifyFailure
from flexinfer.store_names import is_build, is_source
from flexinfer.units import format_bytes

_MAX_NAMED = 5

app = group(
    help="List, inspect, verify and remove artifacts in the store.",
    epilog="Example: flexinfer artifact ls",
)


@app.command("ls", epilog="Example: flexinfer artifact ls --json")
def ls(
    as_json: bool = typer.Option(False, "--json", help="Write JSON instead of a table."),
    everything: bool = typer.Option(
        False, "--all", help="Also sources, and what has no name or only that of a build."
    ),
) -> None:
    """List the artifacts in the store, one row for each name."""
    store = _store()
    rows = [_row(store, name, descriptor) for name, descriptor in _named(store, everything)]
    if as_json:
        print_json(rows)
        return
    if not rows:
        if store.is_working:
            typer.echo("no artifacts yet; a build is running: flexinfer status shows how far it is")
        else:
            typer.echo("no artifacts yet; build one with: flexinfer build ENTRY/VARIANT")
        return
    print_table(
        ("reference", "digest", "format", "quantization", "size", "evidence"),
        [
            (
                row["reference"] or "-",
                _short(row["digest"]),
                row["format"] or "-",
                row["quantization"] or "-",
                format_bytes(row["sizeBytes"]),
                row["error"] or _verdicts(row["evidence"]) or "none",
            )
            for row in rows
        ],
    )


@app.command("inspect", epilog="Example: flexinfer artifact inspect smollm2-135m-instruct:q8-0")
def inspect(
    reference: str = typer.Argument(
        ..., metavar="REF", help="A name, a digest, or its first 6 or more digits."
    ),
    as_json: bool = typer.Option(False, "--json", help="Write JSON instead of text."),
) -> None:
    """Show one artifact: its model, files, annotations and evidence."""
    store = _store()
    descriptor = _find(store, reference)
    artifact = store.artifact(descriptor.digest)
    evidence = store.evidence(descriptor.digest)
    names = [name for name, one in store.tags() if one.digest == descriptor.digest]
    about = _row(store, names[0] if names else "", descriptor) | {
        "references": names,
        "model": _model(artifact),
        "files": [
            {"path": file.path, "digest": file.digest, "sizeBytes": file.size}
            for file in artifact.files
        ],
        "annotations": dict(sorted(artifact.annotations.items())),
        "notes": list(artifact.notes),
        "statements": [
            {"digest": one.digest, "predicateType": said.predicate_type, "predicate": dict(said.predicate)}
            for one, said in evidence.statements
        ],
        "damagedStatements": [_failure(one) for one in evidence.damaged],
    }  # fmt: skip
    if as_json:
        print_json(about)
        return
    typer.echo(f"digest      {descriptor.digest}")
    for name in names:
        typer.echo(f"reference   {name}")
    for key, value in _model(artifact).items():
        typer.echo(f"{key:<11} {escaped(str(value))}")
    print_table(
        ("file", "digest", "size"),
        [(file.path, _short(file.digest), format_bytes(file.size)) for file in artifact.files],
    )
    for key, text in sorted(artifact.annotations.items()):
        typer.echo(f"annotation  {escaped(f'{key}: {text}')}")
    for failure in evidence.damaged:
        typer.echo(f"damaged     {escaped(f'{failure.digest}: {failure.code}: {failure.message}')}")
    for _, said in evidence.statements:
        typer.echo(f"evidence    {escaped(f'{said.predicate_type}: {_result(said)}')}")
        for key, value in sorted(said.predicate.items()):
            typer.echo(f"            {key}: {escaped(json.dumps(value, ensure_ascii=False))}")
    for note in artifact.notes:
        typer.echo(f"note        {escaped(note)}")


@app.command("verify", epilog="Example: flexinfer artifact verify smollm2-135m-instruct:q8-0")
def verify(
    reference: str = typer.Argument(
        "", metavar="[REF]", help="A name, a digest, or its first digits; without it, all."
    ),
    as_json: bool = typer.Option(False, "--json", help="Write JSON instead of lines."),
) -> None:
    """Hash every byte again. What is wrong goes into quarantine; then the exit code is 7."""
    store = _store()
    if reference:
        wanted = {_find(store, reference).digest: reference}
    else:
        rows = sorted(_named(store, True), key=lambda row: is_build(row[0]), reverse=True)
        wanted = {descriptor.digest: name for name, descriptor in rows}
    reports = []
    failures: list[VerifyFailure] = []
    for digest, name in sorted(wanted.items(), key=lambda item: item[1]):
        report = store.verify_artifact(digest, force=True)
        failures.extend(report.failures)
        reports.append(
            {
                "reference": name,
                "digest": digest,
                "verified": not report.failures,
                "hashedBytes": report.hashed_bytes,
                "failures": [_failure(failure) for failure in report.failures],
            }
        )
        if not as_json:
            word = "ok    " if not report.failures else "FAILED"
            count = f"{len(report.checked)} blobs, {format_bytes(report.hashed_bytes)}"
            typer.echo(f"{word} {name or '-'} {_short(digest)} {count}")
            _print_failures(report.failures)
    if as_json:
        print_json(reports)
    _refuse(failures)


@app.command("scrub", epilog="Example: flexinfer artifact scrub")
def scrub(
    rebuild: bool = typer.Option(
        False, "--rebuild-index", help="First make index.json anew, if it is lost."
    ),
    as_json: bool = typer.Option(False, "--json", help="Write JSON instead of lines."),
) -> None:
    """Hash every blob in the store, referenced or not, and look for missing ones."""
    names = _rebuilt(quiet=as_json) if rebuild else ()
    report = _store().scrub()
    if as_json:
        print_json(
            {
                "recovered": list(names),
                "checked": report.checked,
                "hashedBytes": report.hashed_bytes,
                "failures": [_failure(failure) for failure in report.failures],
                "missing": [_failure(failure) for failure in report.missing],
            }
        )
    else:
        typer.echo(f"{report.checked} blobs are right, {format_bytes(report.hashed_bytes)} hashed")
        _print_failures((*report.failures, *report.missing))
    _refuse([*report.failures, *report.missing])


app.command("rm", epilog="Example: flexinfer artifact rm smollm2-135m-instruct:q8-0")(rm)
app.command("gc", epilog="Example: flexinfer artifact gc --dry-run")(gc)


def _find(store: Store, reference: str) -> Descriptor:
    """As `Store.find`; what is not there is said with the names that are."""
    try:
        return store.find(reference)
    except NotFound as error:
        if "sha256:" in reference:
            raise
        raise missing(store, reference) from error


def _rebuilt(*, quiet: bool) -> tuple[str, ...]:
    """Make a lost index anew, say what came of it, and return the names of the artifacts that were found."""
    found = rebuild_index(Layout(Home.find(os.environ).prepare().store))
    names = tuple(name for name, _ in found or ())
    if not quiet:
        if found is None:
            typer.echo("index.json is there; nothing was rebuilt")
        for name in names:
            typer.echo(f"found {name}; flexinfer artifact inspect shows what it is")
    return names


def _store() -> Store:
    return Store(Home.find(os.environ).prepare().store)


def _named(store: Store, everything: bool) -> list[tuple[str, Descriptor]]:
    """Return the rows to show: each name, but a build's own name only for what has no other, and no sources."""
    tags = store.tags()
    if everything:
        named = {descriptor.digest for _, descriptor in tags}
        rest = [
            ("", one)
            for one in store.manifests()
            if one.digest not in named and store.manifest(one.digest).subject is None
        ]
        return [*tags, *rest]
    named = {d.digest for name, d in tags if not is_build(name)}
    shown = [(name, d) for name, d in tags if not is_source(name)]
    return [(name, d) for name, d in shown if not is_build(name) or d.digest not in named]


def _row(store: Store, name: str, descriptor: Descriptor) -> dict[str, Any]:
    """Return one artifact for `ls`; what cannot be read is shown with its reason, not left out."""
    row: dict[str, Any] = {
        "reference": name,
        "digest": descriptor.digest,
        "format": "",
        "quantization": "",
        "sizeBytes": 0,
        "architecture": "",
        "evidence": [],
        "createdAt": "",
        "error": "",
    }
    try:
        artifact = store.artifact(descriptor.digest)
        row |= {
            "format": artifact.config.format,
            "quantization": artifact.config.quantization,
            "sizeBytes": artifact.size_bytes,
            "architecture": artifact.config.architecture,
            "createdAt": artifact.config.created_at,
        }
        evidence = store.evidence(descriptor.digest)
        row["evidence"] = [
            {"predicateType": said.predicate_type, "digest": one.digest, "result": _result(said)}
            for one, said in evidence.statements
        ]
        for failure in evidence.damaged[:1]:
            row["error"] = f"{failure.code}: {failure.message}"
        absent = [file.path for file in artifact.files if not store.has(file.digest, file.size)]
        if absent:
            row["error"] = f"blob_missing: {', '.join(absent[:_MAX_NAMED])} not in the store"
    except FlexInferError as error:
        row["error"] = f"{error.code}: {error.message}"
    return row


def _result(said: Statement) -> str:
    """Return the verdict of a test result; other statements have none."""
    result = said.predicate.get("result") if said.predicate_type == PREDICATE_TEST_RESULT else None
    return result if isinstance(result, str) else ""


def _verdicts(evidence: Sequence[dict[str, Any]]) -> str:
    words = [
        f"{one['predicateType'].rstrip('/').split('/')[-2]} {one['result']}".strip()
        for one in evidence
    ]
    return ", ".join(dict.fromkeys(words))


def _model(artifact: Artifact) -> dict[str, str]:
    config = artifact.config
    found = {
        "name": config.name,
        "family": config.family,
        "architecture": config.architecture,
        "format": config.format,
        "quantization": config.quantization,
        "precision": config.precision,
        "parameters": config.param_size,
        "licenses": ", ".join(config.licenses),
        "source": config.source_url,
        "revision": config.revision,
        "created": config.created_at,
        "size": format_bytes(artifact.size_bytes),
    }
    return {key: text for key, text in found.items() if text}


def _failure(failure: VerifyFailure) -> dict[str, str]:
    return {
        "artifact": failure.artifact,
        "path": failure.path,
        "digest": failure.digest,
        "code": failure.code,
        "message": failure.message,
    }


def _print_failures(failures: Sequence[VerifyFailure]) -> None:
    for failure in failures:
        typer.echo(f"  {failure.code}: {escaped(failure.message)}")


def _refuse(failures: Sequence[VerifyFailure]) -> None:
    """Raise when something was wrong.

    Raises:
        IntegrityError: with the code of the first failure.
    """
    if failures:
        first = failures[0]
        more = f" (and {len(failures) - 1} more)" if len(failures) > 1 else ""
        raise IntegrityError(
            f"{first.path} ({first.digest}): {first.message}{more}", code=first.code
        )


def _short(digest: Digest | str) -> str:
    return digest[: len("sha256:") + 12]
