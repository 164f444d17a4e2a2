"""Runs whose process is gone: without a word from it, Prefect would show them running for ever."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound
from prefect.states import Crashed

from flexinfer.files import replace_json
from flexinfer.log import get_logger
from flexinfer.places import Home
from flexinfer.process import procfs

log = get_logger(__name__)
_LOOK_EVERY_S = 10.0
_MAX_FILES = 1000


@contextmanager
def known(home: Home, run_id: str) -> Iterator[None]:
    """While it lasts, the home knows that this process is the one that carries the run *run_id*."""
    folder = home.run_records
    folder.mkdir(mode=0o700, exist_ok=True)
    found = procfs.stat(os.getpid())
    tree = {
        "pid": os.getpid(),
        "start_ticks": found.started_at if found is not None else 0,
        "boot_id": procfs.boot_id(),
    }
    path = folder / f"{run_id}.json"
    replace_json(path, tree, durable=False)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


async def end_orphans(home: Home) -> int:
    """Tell Prefect that the runs of dead processes have crashed; return how many there were."""
    ended = 0
    for path in sorted(home.run_records.glob("*.json"))[:_MAX_FILES]:
        if _is_carried(path):
            continue
        try:
            async with get_client() as client:
                state = (await client.read_flow_run(UUID(path.stem))).state
                if state is None or not state.is_final():
                    message = "its process is gone; the next build goes on where it stood"
                    await client.set_flow_run_state(
                        UUID(path.stem), Crashed(message=message), force=True
                    )
                    log.info("run_crashed", run=path.stem)
                    ended += 1
        except (ObjectNotFound, ValueError):
            log.info("run_forgotten", run=path.stem)
        path.unlink(missing_ok=True)
    return ended


async def watch(home: Home) -> None:
    """Look for such runs until cancelled. The API may be away for a while."""
    while True:
        try:
            await end_orphans(home)
        except Exception as error:
            # Whatever the client raises while the server restarts; the next look is soon.
            log.warning("orphans_not_ended", error=f"{type(error).__name__}: {error}")
        await asyncio.sleep(_LOOK_EVERY_S)


def _is_carried(path: Path) -> bool:
    try:
        tree = json.loads(path.read_text("utf-8"))
        found = procfs.stat(int(tree["pid"]))
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return (
        found is not None
        and found.is_running
        and found.started_at == tree.get("start_ticks")
        and tree.get("boot_id") == procfs.boot_id()
    )
