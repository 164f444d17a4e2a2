"""Builds of what Models need and the store has not: one at a time, each a child process at low priority."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Collection
from dataclasses import replace
from functools import partial
from pathlib import Path

from flexinfer.clock import Clock
from flexinfer.errors import (
    DeadlineExceeded,
    FlexInferError,
    IntegrityError,
    Overloaded,
    TransferError,
    Unavailable,
)
from flexinfer.log import get_logger
from flexinfer.places import Home
from flexinfer.process import Child, ProcessSpec, start
from flexinfer.programs import BUILD, environment_for
from flexinfer.up.ending import own_error
from flexinfer_operator.plan.view import BuildFailure, Builds

log = get_logger(__name__)

MAX_FAILURES = 16
_LINES = 20
_MAX_SAID = 500
# What may pass without a change of ours: the hub or Prefect is away, another one holds the store, the disk is full.
_PASSING_EXITS = frozenset(
    kind.exit_code for kind in (Unavailable, TransferError, Overloaded, DeadlineExceeded)
)
_PASSING_CODES = frozenset({"disk_full"})
_STOP_GRACE_S = 3.0

BuildCommand = Callable[[str], tuple[str, ...]]
"""A source → the program that builds it."""


def build_command(source: str) -> tuple[str, ...]:
    """Return how a source is built: as a user would, without a progress bar."""
    return (sys.executable, "-P", "-m", "flexinfer", "build", source, "--quiet")


class Builder:
    """Builds by source.

    *on_turn* is told each source that is built or waits for it when another build begins; *on_end* is told the
    source of one that ended, and whether well.
    """

    def __init__(
        self,
        home: Home,
        clock: Clock,
        *,
        nice: int,
        on_turn: Callable[[str], None],
        on_end: Callable[[str, bool], None],
        command: BuildCommand = build_command,
    ) -> None:
        self._home = home
        self._clock = clock
        self._nice = nice
        self._on_turn = on_turn
        self._on_end = on_end
        self._command = command
        self._tasks: dict[str, asyncio.Task[BuildFailure | None]] = {}
        self._states: dict[str, Builds] = {}
        self._turn = asyncio.Lock()
        self._current = ""
        self._dropped: set[str] = set()

    def state(self, source: str) -> Builds:
        found = self._states.get(source, Builds())
        is_queued = source in self._tasks and source != self._current
        return replace(found, behind=self._current) if is_queued else found

    def start(self, source: str, *, why: str) -> None:
        """Build *source*, after those that are being built. Twice is once."""
        if source in self._tasks:
            return
        self._states[source] = replace(self.state(source), is_running=True)
        task = asyncio.create_task(self._run(source, why), name=f"build {source}")
        self._tasks[source] = task
        task.add_done_callback(partial(self._ended, source))

    def forgive(self, source: str) -> None:
        """Forget failures: the artifact is here, whole, or what is wanted is not what failed."""
        if source not in self._tasks:
            self._states.pop(source, None)

    def keep_only(self, sources: Collection[str]) -> None:
        """End the builds of all other sources: nobody wants them any more. What they have done so far is kept.

        How they failed before is forgotten.
        """
        for source in self._states.keys() - set(sources):
            self.forgive(source)
        for source in self._tasks.keys() - set(sources) - self._dropped:
            self._dropped.add(source)  # once: a second cancel would not wait for its end
            self._tasks[source].cancel()

    def ended_incomplete(self, source: str, why: str) -> None:
        """Count a build that ended well and left the artifact incomplete all the same."""
        message = f"the build ended well, and yet: {why}"
        self._failed(source, BuildFailure(at_s=self._clock.now_s(), message=message, is_wrong=True))

    def _failed(self, source: str, failure: BuildFailure) -> None:
        failures = (*self.state(source).failures, failure)
        self._states[source] = Builds(
            is_running=source in self._tasks, failures=failures[-MAX_FAILURES:]
        )

    async def close(self) -> None:
        """End every build; what it has done so far is kept by it."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self, source: str, why: str) -> BuildFailure | None:
        """Return what `_built` does; whatever breaks is a failure."""
        try:
            async with self._turn:
                self._current = source
                for queued in self._tasks:
                    self._on_turn(queued)
                log.info("build_started", source=source, why=why, human=f"building {source}")
                return await self._built(source)
        except FlexInferError as error:
            return self._failure(error.code, error.message, exit_code=error.exit_code)
        except Exception as error:
            log.error("build_broke", source=source, exc_info=error)
            return self._failure("internal_error", f"{type(error).__name__}: {error}", exit_code=1)
        finally:
            if self._current == source:
                self._current = ""

    def _ended(self, source: str, task: asyncio.Task[BuildFailure | None]) -> None:
        """Note how *task* ended, which may never have begun."""
        del self._tasks[source]
        self._dropped.discard(source)
        if task.cancelled():
            del self._states[source]
            log.info("build_dropped", source=source, human=f"{source} is built no more")
            self._on_end(source, False)
            return
        self._states[source] = replace(self.state(source), is_running=False)
        failure = task.result()
        if failure is None:
            log.info("build_finished", source=source, human=f"built {source}")
        else:
            self._failed(source, failure)
            words = f"{failure.message} ({failure.detail})" if failure.detail else failure.message
            log.warning(
                "build_failed", source=source, error=words, human=f"build of {source}: {words}"
            )
        self._on_end(source, failure is None)

    async def _built(self, source: str) -> BuildFailure | None:
        """Return why the build failed; None: it did not."""
        log_path = self._home.log("operator-build")
        child: Child = await start(
            ProcessSpec(
                name="build",
                argv=self._command(source),
                environment=environment_for(BUILD, self._home.root),
                cwd=Path.cwd(),  # `./catalogs` and `flexinfer.toml` are looked for there
                log_path=log_path,
                nice=self._nice,
                grace_s=_STOP_GRACE_S,
            )
        )
        try:
            exit_code = await child.wait()
        except asyncio.CancelledError:
            await child.stop()
            raise
        if exit_code == 0:
            return None
        said = [line.strip() for line in child.tail(_LINES) if line.strip()]
        code, message = own_error(said) or ("process_failed", said[-1] if said else "no output")
        detail = f"exit code {exit_code}; all of it: {log_path}"
        return self._failure(code, message, exit_code=exit_code, detail=detail)

    def _failure(
        self, code: str, message: str, *, exit_code: int, detail: str = ""
    ) -> BuildFailure:
        return BuildFailure(
            at_s=self._clock.now_s(),
            message=f"{code}: {message[:_MAX_SAID]}",
            detail=detail,
            is_passing=exit_code in _PASSING_EXITS or code in _PASSING_CODES,
            is_wrong=exit_code == IntegrityError.exit_code,
        )
