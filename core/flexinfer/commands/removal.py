"""`flexinfer artifact rm` and `gc`: names are taken away, and then the bytes that no name needs."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from flexinfer.artifact import ANNOTATION_SOURCE
from flexinfer.catalog import Catalog, search_paths
from flexinfer.catalog.binding import wanted
from flexinfer.console import print_json
from flexinfer.errors import Conflict, FlexInferError, InvalidInput, NotFound
from flexinfer.oci import Digest
from flexinfer.places import Home
from flexinfer.resources.document import parse_document
from flexinfer.resources.model import Model
from flexinfer.resources.source import parse_source
from flexinfer.settings import Settings, load, setting_files
from flexinfer.spelling import nearest
from flexinfer.store import Store
from flexinfer.units import format_bytes

# What builds were made from; kept so that the next variant need not fetch it.
SOURCES = "sources/"
BUILD_TAG = "build-"
GRACE_S = 3600.0
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_MAX_JOURNAL = 16 * 1024 * 1024
_MAX_MODEL = 1024 * 1024


def is_build(name: str) -> bool:
    """Say whether *name* is a build's own: by its key."""
    return name.rpartition(":")[2].startswith(BUILD_TAG)


def missing(store: Store, name: str) -> NotFound:
    """Return the error for *name*, which is not there: with the tags of that repository, else the nearest name."""
    names = [one for one, _ in store.tags() if not is_build(one)]
    tags = [
        one
        for one in names
        if one.rpartition(":")[0] == name.rpartition(":")[0] or one.startswith(f"{name}:")
    ]
    hint = f"; there are: {', '.join(tags)}" if tags else nearest(name, names)
    return NotFound(
        f"no artifact {name!r} in {store.root}{hint or '; flexinfer artifact ls lists them'}",
        code="artifact_not_found",
    )


def rm(
    names: Annotated[
        list[str], typer.Argument(metavar="NAME…", help="Names as `artifact ls` shows them.")
    ],
    force: bool = typer.Option(
        False, "--force", help="Also what a Model uses; it is built again when needed."
    ),
    as_json: bool = typer.Option(False, "--json", help="Write JSON instead of text."),
) -> None:
    """Take names away. What no name needs any more goes with `flexinfer artifact gc`."""
    home, store = _open()
    before = store.garbage(roots=noted(home.work), grace_s=0.0)
    tags = dict(store.tags())
    for name in names:
        if name not in tags:
            raise missing(store, name)
    if not force:
        users = used_by(home, load(Settings, os.environ, files=setting_files(home.root)))
        leased = store.leased()
        for name in names:
            refuse_used(name, tags[name].digest, users.get(name, ()), leased)
    removed = [one for name in dict.fromkeys(names) for one in _with_build_names(store, name)]
    hints = [] if as_json else [_source_hint(store, name, removed) for name in names]
    for name in removed:
        store.untag(name)
    after = store.garbage(roots=noted(home.work), grace_s=0.0)
    freed = max(0, after.bytes - before.bytes)
    if as_json:
        print_json({"removed": removed, "freeableBytes": freed})
        return
    for name in removed:
        typer.echo(f"removed the name {name}")
    typer.echo(
        f"{format_bytes(freed)} are needed by no name now; `flexinfer artifact gc` frees them "
        "once nobody has touched them for an hour"
    )
    for hint in dict.fromkeys(hint for hint in hints if hint):
        typer.echo(hint)


def gc(
    dry_run: bool = typer.Option(False, "--dry-run", help="Only say what would go."),
    older_than: str = typer.Option(
        "1h",
        "--older-than",
        metavar="TIME",
        help="Leave what was touched within this time: 30m, 2d; 0 for nothing.",
    ),
    as_json: bool = typer.Option(False, "--json", help="Write JSON instead of text."),
) -> None:
    """Delete bytes that no name needs, abandoned partial files, old quarantine. Not while a build runs."""
    grace_s = parse_age(older_than)
    home, store = _open()
    roots = noted(home.work)
    if dry_run:
        found = store.garbage(roots=roots, grace_s=grace_s)
        files = bytes_ = 0
    else:
        found = store.collect(roots=roots, grace_s=grace_s)
        rest = store.collect_partials(grace_s)
        files, bytes_ = rest.files, rest.bytes
    report: dict[str, Any] = {
        "dryRun": dry_run,
        "manifests": list(found.manifests),
        "blobs": list(found.blobs),
        "blobBytes": found.bytes,
        "otherFiles": files,
        "otherBytes": bytes_,
        "freedBytes": found.bytes + bytes_,
    }
    if as_json:
        print_json(report)
        return
    word = "would be freed" if dry_run else "freed"
    parts = f"{len(found.blobs)} blobs of no name, {len(found.manifests)} of them manifests"
    more = f", {files} partial or quarantined files" if files else ""
    typer.echo(f"{format_bytes(found.bytes + bytes_)} {word}: {parts}{more}")


def parse_age(text: str) -> float:
    """Return the seconds that *text* means: a number with s, m, h or d.

    Raises:
        InvalidInput: code `older_than`.
    """
    match = re.fullmatch(r"(\d{1,9})(s|m|h|d)?", text.strip())
    if match is None or (match[2] is None and int(match[1]) != 0):
        raise InvalidInput(
            f"--older-than {text!r}: expected a time as 30m, 1h or 2d", code="older_than"
        )
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[match[2] or "s"]


def noted(work: Path) -> frozenset[Digest]:
    """Return the digests that the journals of builds in progress name: they go on with these bytes."""
    found: set[Digest] = set()
    for path in work.glob("build-*/journal.json"):
        try:
            with path.open("rb") as stream:
                text = stream.read(_MAX_JOURNAL).decode("ascii", "replace")
        except OSError:  # the build has just ended
            continue
        found.update(Digest(one) for one in _DIGEST.findall(text))
    return frozenset(found)


def used_by(home: Home, settings: Settings) -> dict[str, tuple[str, ...]]:
    """Return by reference the Model files that ask for it. A file that cannot be read asks for nothing."""
    catalog = Catalog.load(search_paths(settings.catalog, home, Path.cwd()))
    found: dict[str, tuple[str, ...]] = {}
    for path in sorted(home.models.glob("*.y*ml")):
        try:
            with path.open("rb") as stream:
                text = stream.read(_MAX_MODEL).decode("utf-8", "replace")
            model = parse_document(Model, text, path.name)
            reference = wanted(parse_source(model.spec.source), catalog)[2]
        except (OSError, FlexInferError):
            continue
        found[reference] = (*found.get(reference, ()), path.name)
    return found


def refuse_used(name: str, digest: Digest, files: Sequence[str], leased: frozenset[Digest]) -> None:
    """Raise if somebody uses what is called *name*.

    Raises:
        Conflict: code `artifact_in_use`.
    """
    if files:
        raise Conflict(
            f"{name}: models/{files[0]} asks for it; delete that file first, or use --force",
            code="artifact_in_use",
        )
    if digest in leased:
        raise Conflict(
            f"{name}: a running engine has it checked out; stop it first, or use --force",
            code="artifact_in_use",
        )


def _with_build_names(store: Store, name: str) -> list[str]:
    """Return *name*, and the builds' own names of the same artifact if it has no other name for people."""
    tags = store.tags()
    digest = dict(tags)[name].digest
    same = [one for one, descriptor in tags if descriptor.digest == digest and one != name]
    return [name, *same] if all(is_build(one) for one in same) else [name]


def _source_hint(store: Store, name: str, removed: Sequence[str]) -> str:
    """Return what to say of the source that *name* was made from, if that is kept under a name of its own."""
    try:
        identity = store.artifact(store.resolve(name).digest).annotations.get(ANNOTATION_SOURCE)
        for one, descriptor in store.tags():
            if one.startswith(SOURCES) and one not in removed:
                artifact = store.artifact(descriptor.digest)
                if artifact.annotations.get(ANNOTATION_SOURCE) == identity:
                    size = format_bytes(artifact.size_bytes)
                    return (
                        f"its source ({size}) stays for other variants: flexinfer artifact rm {one}"
                    )
    except FlexInferError:
        return ""  # what cannot be read has no source to speak of
    return ""


def _open() -> tuple[Home, Store]:
    home = Home.find(os.environ).prepare()
    return home, Store(home.store)
