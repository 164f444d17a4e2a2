"""After a crash of the operator: which of its engines still run, and which of those are still wanted as they are.

An engine is taken over when its Model is there, its record can be read, and its artifact can be leased again. Its
revision may be an old one: then it is replaced as after any other change. All others are ended.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from flexinfer.errors import FlexInferError
from flexinfer.launching import RunningEngine
from flexinfer.log import get_logger
from flexinfer.oci import parse_digest
from flexinfer.process import Record, end, is_alive, procfs
from flexinfer.store import Checkout, Store
from flexinfer_operator.facts import EngineLookup

log = get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """An engine that runs and may go on."""

    record: Record
    running: RunningEngine
    checkout: Checkout

    @property
    def model(self) -> str:
        return self.record.extra["model"]


async def find_engines(
    folder: Path,
    store: Store,
    *,
    models: Collection[str],
    engines: EngineLookup,
    grace_s: float,
) -> list[Found]:
    """Return the engines to take over; when this returns, nothing is left of any other.

    *folder*: where records lie, with the keys in `secrets` below it. Nobody but the operator starts engines there.
    """
    kept: list[Found] = []
    ends = []
    known: set[int] = set()
    for file in sorted(folder.glob("*.json")) if folder.is_dir() else []:
        record = _read(file)
        if record is None:
            continue
        known.add(record.pid)
        found = await _wanted(record, store, models, engines)
        if found is not None:
            kept.append(found)
        else:
            ends.append(_ended(record, file, grace_s))
    secrets = folder / "secrets"
    ends += [_ended(record, None, grace_s) for record in _unrecorded(secrets, known)]
    await asyncio.gather(*ends)
    _forget_keys(secrets, {one.running.key_path for one in kept})
    return kept


def _read(file: Path) -> Record | None:
    try:
        return Record.read(file)
    except (FlexInferError, OSError) as error:
        log.warning("replica_record_unreadable", file=str(file), error=str(error))
        file.unlink(missing_ok=True)
        return None


async def _wanted(
    record: Record, store: Store, models: Collection[str], engines: EngineLookup
) -> Found | None:
    extra = record.extra
    if any(not extra.get(name) for name in ("model", "revision", "digest", "backend")):
        return None
    if extra["model"] not in models or not is_alive(record):
        return None
    checkout: Checkout | None = None
    try:
        engines(extra["backend"])
        checkout = await asyncio.to_thread(store.checkout, parse_digest(extra["digest"]))
        return Found(record=record, running=RunningEngine.from_record(record), checkout=checkout)
    except FlexInferError as error:
        log.warning(
            "replica_not_adopted", replica=record.name, code=error.code, error=error.message
        )
        if checkout is not None:
            checkout.close()
        return None


def _unrecorded(secrets: Path, known: Collection[int]) -> list[Record]:
    """Return engines that were started in the moment of the crash, before their record was written."""
    found = []
    wanted = f"{secrets}{os.sep}"
    for name in os.listdir(procfs.PROC) if procfs.PROC.is_dir() else ():
        if not name.isdecimal() or int(name) in known or int(name) == os.getpid():
            continue
        pid = int(name)
        arguments = procfs.command_of(pid)
        stat = procfs.stat(pid)
        if stat is None or not any(argument.startswith(wanted) for argument in arguments):
            continue
        found.append(
            Record(
                name=f"engine of pid {pid}",
                pid=pid,
                start_ticks=stat.started_at,
                boot_id=procfs.boot_id(),
            )
        )
    return found


async def _ended(record: Record, file: Path | None, grace_s: float) -> None:
    try:
        was_alive = is_alive(record)
        await end(record, grace_s)
        if was_alive:
            log.info("orphan_ended", replica=record.name, pid=record.pid)
        if file is not None:
            file.unlink(missing_ok=True)
    except FlexInferError as error:
        log.error("orphan_not_ended", replica=record.name, code=error.code, error=error.message)


def _forget_keys(folder: Path, kept: set[Path]) -> None:
    """Remove the keys of engines that are gone."""
    for file in folder.iterdir() if folder.is_dir() else ():
        if file not in kept:
            file.unlink(missing_ok=True)
