"""One engine process, from the decision to start it until it is gone.

    loading ──probe answers──► ready ──stop──► stopping ──► gone
       └──ends, or cannot be started──────► gone, with the cause      (also from ready)

What happens is told to a `Listener`; nothing here decides whether it should.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import httpx

from flexinfer.clock import Clock
from flexinfer.engine import Cause, Engine, EngineArtifact, Resources, Substage
from flexinfer.errors import FlexInferError, IntegrityError
from flexinfer.launching import RunningEngine, record_of, start_engine
from flexinfer.log import get_logger
from flexinfer.oci import parse_digest
from flexinfer.places import Home
from flexinfer.process import UNKNOWN_EXIT, Progress
from flexinfer.resources.model import Model
from flexinfer.store import Checkout, Errand, Store
from flexinfer_operator.local.hearing import Pace
from flexinfer_operator.local.logs import last_words
from flexinfer_operator.local.ticking import OwnReading, checked_out, with_ticks
from flexinfer_operator.local.tools import Tools
from flexinfer_operator.local.watching import watch
from flexinfer_operator.plan.view import Crash, Draining, ReplicaState, Silence

log = get_logger(__name__)

_TAIL_LINES = 60
# What an engine that gives no sign of life has after SIGTERM.
_FAILED_GRACE_S = 1.0
# A blob or manifest that went away: what to do is decided by what the store has, not by a crash's back-off.
_ABSENT = ("blob_missing", "artifact_not_found")


class Listener(Protocol):
    """Who is told what becomes of replicas. Called in the event loop."""

    def replica_changed(self, replica: Replica) -> None: ...

    def replica_ready(self, replica: Replica) -> None: ...

    def replica_gone(self, replica: Replica, crash: Crash | None) -> None: ...

    def artifact_damaged(self, replica: Replica, message: str) -> bool: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Means:
    """What every replica of one machine is started with."""

    home: Home
    clock: Clock
    store: Store
    tools: Tools
    client: httpx.AsyncClient
    """Without a proxy."""
    stop_grace_s: float
    pace: Pace

    @property
    def records(self) -> Path:
        """Where engines are written down, so that they are found after a crash; their keys lie in `secrets` there."""
        return self.home.replica_records


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What one replica is to be."""

    id: str
    model: Model
    revision: str
    digest: str
    artifact: EngineArtifact
    engine: Engine
    resources: Resources
    wanted_s: float
    """When it was decided."""


@dataclass(eq=False, slots=True)
class Replica:
    """See the module. Made by `start_replica` and `adopt_replica`."""

    id: str
    model: str
    revision: str
    digest: str
    engine: Engine
    means: Means
    listener: Listener
    created_s: float
    progress: Progress
    state: ReplicaState = "loading"
    ready_s: float | None = None
    draining: Draining | None = None
    silence: Silence | None = None
    suspected: asyncio.Event = field(default_factory=asyncio.Event)
    """A router had no answer from it: it is asked at once."""
    waits_for: str = ""
    """Somebody else's work, in words, without which its start cannot go on."""
    running: RunningEngine | None = None
    phases: dict[str, float] = field(default_factory=dict)
    is_adopted: bool = False
    is_damaged: bool = False
    """Its bytes are at fault, not it; what follows is the artifact's matter."""
    _checkout: Checkout | None = None
    _task: asyncio.Task[None] | None = None
    _stop: asyncio.Task[None] | None = None

    @property
    def stage(self) -> str:
        """What its load is at."""
        return self.progress.substage or "start"

    @property
    def record_path(self) -> Path:
        return self.means.records / f"{self.id}.json"

    def begin(self, life: Callable[[], Awaitable[None]]) -> None:
        """Let *life* run to its end, and tell how it ended."""
        self._task = asyncio.create_task(self._live(life), name=f"replica {self.id}")

    def stop(self, *, has_failed: bool = False) -> None:
        """Begin to stop it. Twice is once. One that *has_failed* gets little time: it is waited for in vain."""
        if self.state == "stopping":
            return
        self.state = "stopping"
        grace_s = self.means.stop_grace_s
        if has_failed:
            grace_s = min(grace_s, _FAILED_GRACE_S)
        self._stop = asyncio.create_task(self._stopped(grace_s), name=f"stop {self.id}")
        self.listener.replica_changed(self)

    def fail(self, code: str, why: str) -> Crash:
        """Return it as a failure, from this moment on: nobody may start another before its back-off."""
        if self.state == "ready":
            return self._crash(code, f"the engine {why}")
        return self._crash(code, f"the load stopped moving ({self.stage}): {why}")

    def hear(self, silence: Silence | None) -> None:
        """Note which probes it left unanswered."""
        if self.state != "ready" or silence == self.silence:
            return
        if silence is not None:
            log.warning(
                "replica_silent", replica=self.id, model=self.model, tries=silence.tries,
                still_tries=silence.still_tries, lasted_s=round(silence.lasted_s, 1),
            )  # fmt: skip
        else:
            log.info("replica_heard", replica=self.id, model=self.model)
        self.silence = silence
        self.listener.replica_changed(self)

    async def gone(self) -> None:
        """Return when nothing of it is left."""
        for task in (self._stop, self._task):
            if task is not None:
                await asyncio.wait({task})

    def detach(self) -> None:
        """Leave the process to the next operator: stop watching."""
        if self._task is not None:
            self._task.cancel()
        if self.running is not None:
            self.running.child.detach()
        if self._checkout is not None:
            self._checkout.close()

    async def _stopped(self, grace_s: float) -> None:
        if self.running is None:
            assert self._task is not None
            self._task.cancel()
            return
        with suppress(FlexInferError):  # told by the life that waits for the same end
            await self.running.child.stop(grace_s)

    async def _live(self, life: Callable[[], Awaitable[None]]) -> None:
        crash: Crash | None = None
        try:
            await life()
            crash = self._crash_of_exit()
        except asyncio.CancelledError:
            if self.state != "stopping":
                raise
            if self.running is not None:
                await self.running.child.stop(self.means.stop_grace_s)
        except FlexInferError as error:
            await self._end_process()
            is_damage = isinstance(error, IntegrityError) or error.code in _ABSENT
            if is_damage:
                self.is_damaged = self.listener.artifact_damaged(self, error.message)
            crash = self._crash(
                error.code, error.message, is_retryable=is_damage or error.retryable
            )
        except Exception as error:
            await self._end_process()
            log.error("replica_broke", replica=self.id, exc_info=error)
            crash = self._crash("internal_error", f"{type(error).__name__}: {error}")
        self._clear_up()
        self.listener.replica_gone(self, None if self.state == "stopping" else crash)

    async def _end_process(self) -> None:
        if self.running is not None:
            with suppress(FlexInferError):
                await self.running.child.stop(self.means.stop_grace_s)

    def _clear_up(self) -> None:
        with suppress(OSError):
            self.record_path.unlink(missing_ok=True)
        if self.running is not None:
            with suppress(OSError):
                self.running.forget_key()
        if self._checkout is not None:
            self._checkout.close()

    def _crash_of_exit(self) -> Crash:
        assert self.running is not None
        code = self.running.child.returncode
        cause = self._cause(None if code == UNKNOWN_EXIT else code)
        when = "while it served" if self.ready_s is not None else f"during its load ({self.stage})"
        remedy = f": {cause.remedy}" if cause.remedy else ""
        return self._crash(
            cause.code,
            f"{cause.message}, {when}{remedy}",
            is_retryable=cause.retryable,
            detail=last_words(self.running.child.tail(_TAIL_LINES)),
        )

    def _cause(self, exit_code: int | None) -> Cause:
        assert self.running is not None
        try:
            return self.engine.cause(self.running.child.tail(_TAIL_LINES), exit_code)
        except Exception as error:
            log.error("engine_plugin_failed", backend=self.engine.name, exc_info=error)
            words = f"the engine ended with exit code {exit_code}"
            return Cause(code="engine_crashed", message=words, remedy="", retryable=True)

    def _crash(
        self, code: str, message: str, *, is_retryable: bool = True, detail: str = ""
    ) -> Crash:
        now_s = self.means.clock.now_s()
        return Crash(
            revision=self.revision,
            at_s=now_s,
            code=code,
            message=message,
            ready_for_s=0.0 if self.ready_s is None else now_s - self.ready_s,
            retryable=is_retryable,
            detail=detail,
        )

    def enter(self, substage: Substage) -> None:
        """Note what the load is at."""
        if self.progress.enters(substage.value, now_s=self.means.clock.now_s()):
            self.listener.replica_changed(self)

    def moved(self) -> None:
        """Note that the load moves, at what it is at."""
        self.progress.at_s = self.means.clock.now_s()

    def wait_for(self, what: str) -> None:
        """Note that its start waits for *what*; empty: it goes on."""
        if what != self.waits_for:
            self.waits_for = what
            self.listener.replica_changed(self)

    def become_ready(self) -> None:
        if self.state != "loading":
            return
        self.state = "ready"
        self.ready_s = self.means.clock.now_s()
        self.listener.replica_ready(self)

    def hold(self, checkout: Checkout) -> None:
        """Keep the lease on its files until it is gone."""
        self._checkout = checkout


def start_replica(order: Order, means: Means, listener: Listener) -> Replica:
    """Get a replica under way and return it; its process exists a few milliseconds later."""
    now_s = means.clock.now_s()
    replica = Replica(
        id=order.id,
        model=order.model.metadata.name,
        revision=order.revision,
        digest=order.digest,
        engine=order.engine,
        means=means,
        listener=listener,
        created_s=now_s,
        progress=Progress(at_s=now_s),
    )
    replica.begin(lambda: _life(replica, order))
    return replica


def adopt_replica(replica: Replica, running: RunningEngine) -> None:
    """Take over an engine that an earlier operator started."""
    replica.running = running
    replica.is_adopted = True

    async def life() -> None:
        await watch(replica, running)

    replica.begin(life)


async def _life(replica: Replica, order: Order) -> None:
    means, clock = replica.means, replica.means.clock
    launch = order.engine.launch(order.model.spec.config, order.artifact, order.resources)
    python = means.tools.ready(launch.tool)
    if python is None:
        replica.enter(Substage.INITIALIZING)
        # Its steps have limits of their own, and a package index may be silent for long.
        python = await with_ticks(means.tools.ensure(launch.tool), replica.moved)
    began_s = clock.now_s()
    reading, errand = OwnReading(), Errand()

    def verifying() -> None:
        replica.enter(Substage.VERIFYING)
        replica.wait_for(errand.waits_for)
        # A wait for somebody else's work is no stall: the lock that is waited for has a limit of its own.
        if reading.moved() or errand.waits_for:
            replica.moved()

    digest = parse_digest(order.digest)
    checkout = await with_ticks(checked_out(means.store, digest, errand), verifying)
    replica.hold(checkout)
    replica.wait_for("")
    # What others took says nothing of the next start.
    replica.phases["verify"] = max(0.0, clock.now_s() - began_s - errand.waited_s)
    began_s = clock.now_s()
    if replica.state == "stopping":  # from here on it is the process that is stopped
        raise asyncio.CancelledError
    running = await start_engine(
        order.engine,
        launch,
        name=order.id,
        run_dir=means.records,
        python=python,
        artifact=checkout.path,
        log_path=means.home.engine_log(order.id),
        model=replica.model,
        kept_open=(checkout.lease_fd,),
    )
    replica.running = running
    started_s = clock.now_s()
    _write_record(replica, running)
    replica.phases["start"] = started_s - began_s
    log.info(
        "replica_started",
        replica=replica.id,
        model=replica.model,
        pid=running.child.pid,
        after_wish_ms=round((started_s - order.wanted_s) * 1000, 2),
    )
    replica.listener.replica_changed(replica)
    await watch(replica, running, started_s=started_s)


def _write_record(replica: Replica, running: RunningEngine) -> None:
    record_of(
        running,
        {
            "model": replica.model,
            "revision": replica.revision,
            "digest": replica.digest,
            "backend": replica.engine.name,
        },
    ).write(replica.record_path)
