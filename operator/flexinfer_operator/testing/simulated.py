"""A cluster in memory: nothing runs, everything is told. For tests of the loop and of whoever stands on `Cluster`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace

from flexinfer.clock import Clock
from flexinfer.engine import Limits
from flexinfer.fleet import DemandLease, FleetModel, FleetSnapshot
from flexinfer.resources.model import Model, ModelStatus
from flexinfer_operator.leases import LeaseBook
from flexinfer_operator.plan.action import Action, Build, Drain, Start, Stop, Undrain
from flexinfer_operator.plan.preemption import preempted_by
from flexinfer_operator.plan.view import (
    Bound,
    BuildFailure,
    Builds,
    Crash,
    Draining,
    EngineFacts,
    ModelView,
    Policy,
    ReplicaView,
    Silence,
    Snapshot,
)
from flexinfer_operator.publication import Publication
from flexinfer_operator.revisions import Revisions

CACHED = Bound(
    reference="tiny:q8-0",
    digest="sha256:" + "0" * 64,
    is_cached=True,
    format="gguf",
    quantization="Q8_0",
    size_bytes=1,
)
ENGINE = EngineFacts(
    limits=Limits(context_tokens=4096, slots=4),
    endpoints=("chat/completions",),
    formats=frozenset({"gguf"}),
)


class SimulatedCluster:
    """See `flexinfer_operator.cluster.Cluster`. What an engine or a build would do, the test does."""

    def __init__(self, clock: Clock, policy: Policy | None = None) -> None:
        self._clock = clock
        self._policy = policy or Policy()
        self._models: dict[str, ModelView] = {}
        self._replicas: dict[str, ReplicaView] = {}
        self._revisions = Revisions()
        self.book = LeaseBook(models=self._models, replicas=self._replicas)
        self.publication = Publication(first_generation=1000)
        self.applied: list[Action] = []

    def observe(self) -> Snapshot:
        now_s = self._clock.now_s()
        for model in self.book.expire(now_s):
            self._revisions.touch(model)
        return Snapshot(
            revision=self._revisions.newest,
            unix_offset_s=self._clock.unix_s() - now_s,
            policy=self._policy,
            models=tuple(
                replace(view, last_active_s=self.book.model_active_s(view.name))
                for view in self._models.values()
            ),
            replicas=tuple(self._seen(one) for one in self._replicas.values()),
            leases=self.book.leases(),
            routers=self.book.routers(),
        )

    def _seen(self, one: ReplicaView) -> ReplicaView:
        draining = one.draining
        if draining is not None:
            generation = self.publication.draining_generation(one.id)
            draining = replace(draining, generation=generation)
        return replace(one, draining=draining, last_active_s=self.book.replica_active_s(one.id))

    async def watch(self) -> AsyncIterator[Snapshot]:
        seen = 0
        while True:
            await self._revisions.newer_than(seen)
            snapshot = self.observe()
            seen = snapshot.revision
            yield snapshot

    async def apply(self, action: Action, *, observed: int) -> None:
        self._revisions.check(action.model, observed=observed)
        self.applied.append(action)
        now_s = self._clock.now_s()
        match action:
            case Start():
                self._start(action, now_s)
            case Drain():
                self._mark(action.replica, Draining(since_s=now_s, for_model=action.for_model))
            case Undrain():
                self._mark(action.replica, None)
            case Stop():
                self._stop(action, now_s)
            case Build():
                self._build(action.model, Builds(is_running=True))
        self._revisions.bump()

    async def publish(self, fleet: Sequence[FleetModel]) -> None:
        if self.publication.publish(fleet, now_s=self._clock.now_s()) is not None:
            self._revisions.bump()

    async def record(self, statuses: Mapping[str, ModelStatus]) -> None:
        for name, status in statuses.items():
            if name in self._models:
                self._models[name] = replace(self._models[name], status=status)

    # What the world does.

    def put(
        self,
        model: Model,
        *,
        bound: Bound = CACHED,
        engine: EngineFacts = ENGINE,
        edit_fault: str = "",
    ) -> None:
        """Write *model*, new or changed."""
        name = model.metadata.name
        before = self._models.get(name)
        if before is None:
            view = ModelView(model=model, generation=1, bound=bound, engine=engine)
            self._models[name] = replace(view, edit_fault=edit_fault)
        else:
            self._models[name] = replace(
                before,
                model=model,
                generation=before.generation + (before.model != model),
                bound=bound,
                engine=engine,
                edit_fault=edit_fault,
                is_deleted=False,
            )
        self._revisions.touch(name)

    def remove(self, name: str) -> None:
        """Delete a Model: it is shown as deleted while it has replicas."""
        if name not in self._models:
            return
        self._models[name] = replace(self._models[name], is_deleted=True)
        self._forget_if_empty(name)
        self._revisions.touch(name)

    def lease(self, lease: DemandLease, *, connection: int = 1) -> None:
        if self.book.take(connection, lease, now_s=self._clock.now_s()):
            self._revisions.touch(lease.model)

    def progress(self, replica: str) -> None:
        self._replicas[replica] = replace(self._replicas[replica], progress_s=self._clock.now_s())

    def waits(self, replica: str, what: str) -> None:
        """Say what a load waits for; empty: it goes on."""
        one = self._replicas[replica]
        self._replicas[replica] = replace(one, waits_for=what)
        self._revisions.touch(one.model)

    def ready(self, replica: str) -> None:
        now_s = self._clock.now_s()
        one = self._replicas[replica]
        self._replicas[replica] = replace(one, state="ready", ready_s=now_s, progress_s=now_s)
        self._models[one.model] = replace(
            self._models[one.model], last_ready_s=now_s, preempted_by=""
        )
        self._revisions.touch(one.model)

    def unanswered(self, replica: str, silence: Silence | None) -> None:
        """Say which probes a ready engine left unanswered; None: it answers again."""
        one = self._replicas[replica]
        self._replicas[replica] = replace(one, silence=silence)
        self._revisions.touch(one.model)

    def crash(self, replica: str, *, retryable: bool = True, message: str = "exit code 1") -> None:
        """End an engine that nobody asked to end."""
        one = self._replicas[replica]
        self._note_crash(one, "engine_crashed", message, retryable)
        self.ended(replica)

    def ended(self, replica: str) -> None:
        """A stopping process is gone."""
        one = self._replicas.pop(replica)
        self.book.forget_replica(replica)
        self._forget_if_empty(one.model)
        self._revisions.touch(one.model)

    def built(
        self,
        name: str,
        *,
        failure: str = "",
        detail: str = "",
        is_passing: bool = False,
        is_wrong: bool = False,
    ) -> None:
        """End a build, well or with *failure*."""
        view = self._models[name]
        if failure:
            failed = BuildFailure(
                at_s=self._clock.now_s(),
                message=failure,
                detail=detail,
                is_passing=is_passing,
                is_wrong=is_wrong,
            )
            self._build(name, Builds(failures=(*view.builds.failures, failed)))
        else:
            self._models[name] = replace(view, bound=CACHED, builds=Builds())
        self._revisions.touch(name)

    @property
    def replicas(self) -> tuple[ReplicaView, ...]:
        return tuple(self._seen(one) for one in self._replicas.values())

    @property
    def fleet(self) -> FleetSnapshot | None:
        return self.publication.current(now_s=self._clock.now_s())

    def status(self, name: str) -> ModelStatus:
        found = self._models[name].status
        assert found is not None, f"{name} has no status yet"
        return found

    def _start(self, action: Start, now_s: float) -> None:
        if action.replica in self._replicas or action.model not in self._models:
            return
        self._replicas[action.replica] = ReplicaView(
            id=action.replica,
            model=action.model,
            revision=action.revision,
            digest=action.digest,
            state="loading",
            created_s=now_s,
            progress_s=now_s,
            url=f"http://127.0.0.1:1/{action.replica}",
            key="key",
        )
        view = self._models[action.model]
        self._models[action.model] = replace(
            view, starts=view.starts + 1, preempted_by=preempted_by(action, None)
        )

    def _stop(self, action: Stop, now_s: float) -> None:
        one = self._replicas.get(action.replica)
        if one is None or one.state == "stopping":
            return
        if action.failed_as:
            self._note_crash(one, action.failed_as, action.why, True)
        view = self._models[one.model]
        self._models[one.model] = replace(view, preempted_by=preempted_by(action, one.draining))
        self._replicas[action.replica] = replace(one, state="stopping")

    def _mark(self, replica: str, draining: Draining | None) -> None:
        one = self._replicas.get(replica)
        if one is not None and one.state != "stopping":
            already = draining is not None and one.draining is not None
            self._replicas[replica] = one if already else replace(one, draining=draining)

    def _note_crash(self, one: ReplicaView, code: str, message: str, retryable: bool) -> None:
        view = self._models.get(one.model)
        if view is None:
            return
        now_s = self._clock.now_s()
        crash = Crash(
            revision=one.revision,
            at_s=now_s,
            code=code,
            message=message,
            ready_for_s=0.0 if one.ready_s is None else now_s - one.ready_s,
            retryable=retryable,
        )
        self._models[one.model] = replace(view, crashes=(*view.crashes, crash)[-8:])

    def _build(self, name: str, builds: Builds) -> None:
        view = self._models[name]
        if builds.is_running:
            builds = replace(builds, failures=view.builds.failures)
        self._models[name] = replace(view, builds=builds)

    def _forget_if_empty(self, name: str) -> None:
        view = self._models.get(name)
        if view is not None and view.is_deleted:
            if not any(one.model == name for one in self._replicas.values()):
                del self._models[name]
                self.book.forget_model(name)
