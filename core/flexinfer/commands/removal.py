"""`flexinfer artifact rm` and `gc`: names are taken away, and then the bytes that no name needs."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from flexinfer.artifact import ANNOTATION_SOURCE
from flexinfer.catalog import Catalog, search_paths
from flexinfer.catalog.binding import wanted
from flexinfer.console import print_json
from flexinfer.errors import Conflict, FlexInferError, IntegrityError, InvalidInput, NotFound
from flexinfer.files import read_error
from flexinfer.oci import Digest
from flexinfer.places import Home
from flexinfer.resources.document import parse_document
from flexinfer.resources.model import Model
from flexinfer.resources.source import parse_source
from flexinfer.settings import Settings, load, setting_files
from flexinfer.spelling import nearest
from flexinfer.store import Store
from flexinfer.store_names import BUILD_PREFIX, is_build, is_source
from flexinfer.units import format_bytes

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_MAX_JOURNAL = 16 * 1024 * 1024
_MAX_MODEL = 1024 * 1024


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
    before = _freeable(home, store)
    tags = dict(store.tags())
    for name in names:
        if name not in tags:
            raise missing(store, name)
    if not force:
        wishes = model_wishes(home, load(Settings, os.environ, files=setting_files(home.root)))
        leased = store.leased()
        for name in names:
            refuse_used(name, tags[name].digest, wishes, leased)
    removed = [one for name in dict.fromkeys(names) for one in _with_build_names(store, name)]
    hints = [] if as_json else [_source_hint(store, name, removed) for name in names]
    for name in removed:
        store.untag(name)
    after = _freeable(home, store)
    freed = None if before is None or after is None else max(0, after - before)
    if as_json:
        print_json({"removed": removed, "freeableBytes": freed})
        return
    for name in removed:
        typer.echo(f"removed the name {name}")
    amount = (
        "what no name needs now"
        if freed is None
        else f"{format_bytes(freed)}, needed by no name now,"
    )
    typer.echo(f"`flexinfer artifact gc` frees {amount} once nobody has touched it for an hour")
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
        rest = store.old_partials(grace_s)
    else:
        found = store.collect(roots=roots, grace_s=grace_s)
        rest = store.collect_partials(grace_s)
    freed = found.bytes + rest.bytes
    is_refused = dry_run and store.is_working
    left = 0 if grace_s == 0 else (_freeable(home, store) or 0) + store.old_partials(0.0).bytes
    younger = max(0, left - freed) if dry_run else left
    report: dict[str, Any] = {
        "dryRun": dry_run,
        "buildRunning": is_refused,
        "manifests": list(found.manifests),
        "blobs": list(found.blobs),
        "blobBytes": found.bytes,
        "otherFiles": rest.files,
        "otherBytes": rest.bytes,
        "freedBytes": freed,
        "youngerBytes": younger,
    }
    if as_json:
        print_json(report)
        return
    word = "would be freed" if dry_run else "freed"
    parts = f"{len(found.blobs)} blobs of no name, {len(found.manifests)} of them manifests"
    more = f", {rest.files} partial or quarantined files" if rest.files else ""
    typer.echo(f"{format_bytes(freed)} {word}: {parts}{more}")
    if is_refused:
        typer.echo("not now: a build is running, and gc removes nothing until it has ended")
    elif younger:
        typer.echo(
            f"{format_bytes(younger)} of no name are younger than {older_than.strip()}; "
            "--older-than 0 takes them"
        )


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
    """Return the digests that the journals of builds in progress name: they go on with these bytes.

    Raises:
        ResourceExhausted: code `disk_error`: one cannot be read, so nobody knows what it needs.
    """
    found: set[Digest] = set()
    for path in work.glob(f"{BUILD_PREFIX}*/journal.json"):
        try:
            with path.open("rb") as stream:
                text = stream.read(_MAX_JOURNAL).decode("ascii", "replace")
        except FileNotFoundError:  # the build has just ended
            continue
        except OSError as error:
            raise read_error(error, path=path) from error
        found.update(Digest(one) for one in _DIGEST.findall(text))
    return frozenset(found)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What the Model files ask for. *unknown*: files that do not tell now, each with the reason."""

    files: Mapping[str, str]
    """By reference, a file that asks for it."""
    unknown: Mapping[str, str]


def model_wishes(home: Home, settings: Settings) -> Wishes:
    """Return what every Model file in *home* asks for."""
    catalog = Catalog.load(search_paths(settings.catalog, home, Path.cwd()))
    files: dict[str, str] = {}
    unknown: dict[str, str] = {}
    try:
        paths = home.model_files()
    except OSError as error:
        return Wishes(files={}, unknown={home.models.name: error.strerror or str(error)})
    for path in paths:
        try:
            with path.open("rb") as stream:
                text = stream.read(_MAX_MODEL).decode("utf-8", "replace")
            model = parse_document(Model, text, path.name)
            files.setdefault(wanted(parse_source(model.spec.source), catalog)[2], path.name)
        except OSError as error:
            unknown[path.name] = error.strerror or str(error)
        except FlexInferError as error:
            unknown[path.name] = error.message
    return Wishes(files=files, unknown=unknown)


def refuse_used(name: str, digest: Digest, wishes: Wishes, leased: Collection[Digest]) -> None:
    """Raise if somebody uses what is called *name*, or may do so.

    Raises:
        Conflict: codes `artifact_in_use`, `model_file_unreadable`: the operator may serve what the file said before.
    """
    if file := wishes.files.get(name):
        raise Conflict(
            f"{name}: models/{file} asks for it; delete that file first, or use --force",
            code="artifact_in_use",
        )
    if digest in leased:
        raise Conflict(
            f"{name}: a running engine has it checked out; stop it first, or use --force",
            code="artifact_in_use",
        )
    for file, reason in wishes.unknown.items():
        raise Conflict(
            f"{name}: models/{file} may ask for it, and does not tell: {reason}; mend or delete that file, "
            "or use --force",
            code="model_file_unreadable",
        )


def _freeable(home: Home, store: Store) -> int | None:
    """Return how many bytes no name needs; None where a named manifest is wrong, so that nobody knows."""
    try:
        return store.garbage(roots=noted(home.work), grace_s=0.0).bytes
    except IntegrityError:
        return None


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
            if is_source(one) and one not in removed:
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
