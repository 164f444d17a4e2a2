"""The flow `build`: the steps of a build as named task runs, with what a person wants to see as artifacts."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar
from uuid import UUID

from prefect import flow, task
from prefect.artifacts import (
    acreate_link_artifact,
    acreate_progress_artifact,
    acreate_table_artifact,
    aupdate_progress_artifact,
)
from prefect.cache_policies import NO_CACHE
from prefect.logging import get_run_logger
from prefect.runtime import flow_run

from flexinfer.clock import SystemClock
from flexinfer.errors import FlexInferError
from flexinfer.log import get_logger
from flexinfer.places import Home
from flexinfer.settings import Settings, load, setting_files
from flexinfer.store import Store
from flexinfer_pipelines.built import Built
from flexinfer_pipelines.flows.orphans import known
from flexinfer_pipelines.sequence import build
from flexinfer_pipelines.steps import STAGES, Context, Progress, Unwatched
from flexinfer_pipelines.steps.validate import Failed
from flexinfer_pipelines.target import find_target

T = TypeVar("T")
log = get_logger(__name__)
# The browser shows every update as an event: one a second is enough.
_UPDATE_EVERY_S = 1.0
# How much of a build each stage takes, roughly, for one bar over all.
_WEIGHTS = {
    "resolve": 2,
    "fetch": 25,
    "inspect": 3,
    "quantize": 25,
    "validate": 40,
    "publish": 4,
    "warm": 1,
}

watcher: ContextVar[Progress | None] = ContextVar("watcher", default=None)
"""Who else watches, in the process that calls the flow: the terminal's bars."""


@flow(name="build", flow_run_name="build {target}", persist_result=False)
async def build_flow(target: str, rebuild: bool = False) -> str:
    """Build `entry/variant`, or any source string, into a verified artifact. Returns its digest.

    *rebuild*: make and measure it again although it is there.
    """
    home = Home.find(os.environ).prepare()
    settings = load(Settings, os.environ, files=setting_files(home.root))
    entry, variant, _ = find_target(target, home, settings)
    board = _Board(watcher.get() or Unwatched())
    context = Context(
        home=home,
        settings=settings,
        environ=dict(os.environ),
        store=Store(home.store),
        clock=SystemClock(),
        chance=random.SystemRandom(),
        progress=board,
    )
    run_id = str(flow_run.get_id())
    shown = asyncio.create_task(board.show(f"{entry.metadata.name}/{variant.name}"))
    try:
        with known(home, run_id), _told(f"{entry.metadata.name}/{variant.name}"):
            built = await build(context, entry, variant, _Stages(board).run, rebuild=rebuild)
    except Failed as error:
        await _shown(
            _validation_table(
                error.result.measurements, error.result.thresholds, error.result.failed
            )
        )
        raise
    finally:
        board.is_done = True
        await _shown(shown)
    await _validation_table(built.measurements, built.thresholds, ())
    await _link(context.store, built)
    get_run_logger().info("%s is %s", built.reference, built.digest)
    return built.digest


@contextmanager
def _told(target: str) -> Iterator[None]:
    """Log once what ends a build; the traceback only of what nobody foresaw."""
    try:
        yield
    except FlexInferError as error:
        log.error("build_failed", target=target, code=error.code, error=error.message)
        raise
    except Exception as error:
        log.exception("build_failed", target=target, error=type(error).__name__)
        raise


class _Stages:
    """Runs each step as a task run of its name. A task takes no parameters, so none is stored."""

    def __init__(self, board: _Board) -> None:
        self._board = board

    async def run(self, name: str, work: Callable[[], Awaitable[T]]) -> T:
        board = self._board

        @task(
            name=name,
            task_run_name=name,
            # Who asks the network asks again, within its step: docs/decisions/0007-one-place-retries.md
            retries=0,
            cache_policy=NO_CACHE,
            persist_result=False,
        )
        async def step() -> T:
            board.started(name)
            found = await work()
            board.finished(name)
            return found

        return await step()


class _Board:
    """What is to be seen of a run: passed on at once, and shown as one progress artifact once a second."""

    def __init__(self, inner: Progress) -> None:
        self._inner = inner
        self._done = 0.0
        self._text = "starting"
        self.is_done = False

    def started(self, stage: str) -> None:
        self._set(stage, 0.0, "")
        self._inner.started(stage)

    def moved(self, stage: str, done: float, total: float | None, note: str = "") -> None:
        self._set(stage, done / total if total else 0.0, note)
        self._inner.moved(stage, done, total, note)

    def finished(self, stage: str, note: str = "") -> None:
        self._set(stage, 1.0, note)
        self._inner.finished(stage, note)

    def _set(self, stage: str, share: float, note: str) -> None:
        before = sum(_WEIGHTS[name] for name in STAGES[: STAGES.index(stage)])
        self._done = before + _WEIGHTS[stage] * min(max(share, 0.0), 1.0)
        self._text = f"{stage} {note}".strip()

    async def show(self, what: str) -> None:
        """Create the artifact, and update it when something changed, until `is_done`."""
        made: UUID = await acreate_progress_artifact(progress=0.0, key="progress", description=what)
        shown = (0.0, "")
        while not self.is_done:
            await asyncio.sleep(_UPDATE_EVERY_S)
            now = (round(self._done, 1), self._text)
            if now != shown:
                shown = now
                await aupdate_progress_artifact(
                    made, progress=now[0], description=f"{what}: {now[1]}"
                )
        await aupdate_progress_artifact(made, progress=round(self._done, 1), description=what)


async def _shown(what: Awaitable[object]) -> None:
    """Wait for what only shows something; that it fails is logged, and takes no error's place."""
    try:
        await what
    except Exception as error:
        log.warning("run_not_shown", error=f"{type(error).__name__}: {error}")


async def _validation_table(measurements: Any, thresholds: Any, failed: tuple[str, ...]) -> None:
    rows = [
        {
            "measurement": name,
            "measured": value,
            "wanted": thresholds.get(name, "nothing"),
            "verdict": "failed" if name.partition(".")[0] in failed else "passed",
        }
        for name, value in sorted(measurements.items())
    ]
    await acreate_table_artifact(rows, key="validation", description="What was measured")


async def _link(store: Store, built: Built) -> None:
    path = store.path(store.resolve(built.digest).digest)
    await acreate_link_artifact(
        path.as_uri(), link_text=built.digest, key="artifact", description=built.reference
    )
