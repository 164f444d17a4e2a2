"""The engines of this machine: what the plan's actions mean for processes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import replace

from flexinfer.engine import EngineArtifact
from flexinfer.log import get_logger
from flexinfer.machine import usable_cpus, usable_memory_bytes
from flexinfer.process import Progress
from flexinfer.resources.model import Model
from flexinfer_operator.facts import EngineLookup
from flexinfer_operator.leases import LeaseBook
from flexinfer_operator.local.adoption import Found
from flexinfer_operator.local.machine import share
from flexinfer_operator.local.replica import (
    Listener,
    Means,
    Order,
    Replica,
    adopt_replica,
    start_replica,
)
from flexinfer_operator.plan.action import Drain, Start, Stop, Undrain
from flexinfer_operator.plan.view import Draining, ReplicaView
from flexinfer_operator.publication import Publication

log = get_logger(__name__)


class Pool:
    """All replicas by name, from their start until nothing of them is left."""

    def __init__(self, means: Means, engines: EngineLookup, *, max_loaded: int) -> None:
        self._means = means
        self._engines = engines
        self._max_loaded = max_loaded
        self._machine = (usable_cpus(), usable_memory_bytes())
        self._replicas: dict[str, Replica] = {}

    def __contains__(self, replica: object) -> bool:
        return replica in self._replicas

    def get(self, replica: str) -> Replica | None:
        return self._replicas.get(replica)

    def all(self) -> tuple[Replica, ...]:
        return tuple(self._replicas.values())

    def has_any(self, model: str) -> bool:
        return any(one.model == model for one in self._replicas.values())

    def forget(self, replica: Replica) -> None:
        self._replicas.pop(replica.id, None)

    def start(
        self,
        action: Start,
        model: Model,
        artifact: EngineArtifact,
        *,
        models: int,
        listener: Listener,
    ) -> None:
        """Get a replica under way. *models*: how many Models share this machine."""
        cpus, memory_bytes = self._machine
        order = Order(
            id=action.replica,
            model=model,
            revision=action.revision,
            digest=action.digest,
            artifact=artifact,
            engine=self._engines(model.spec.backend)(),
            resources=share(cpus, memory_bytes, models=models, max_loaded=self._max_loaded),
            wanted_s=self._means.clock.now_s(),
        )
        self._replicas[action.replica] = start_replica(order, self._means, listener)

    def drain(self, action: Drain) -> None:
        one = self._replicas.get(action.replica)
        if one is None or one.state == "stopping" or one.draining is not None:
            return
        one.draining = Draining(since_s=self._means.clock.now_s(), for_model=action.for_model)
        log.info("replica_draining", replica=one.id, model=one.model, why=action.why)

    def undrain(self, action: Undrain) -> None:
        one = self._replicas.get(action.replica)
        if one is not None and one.state != "stopping" and one.draining is not None:
            one.draining = None
            log.info("replica_taken_back", replica=one.id, model=one.model, why=action.why)

    def stop(self, action: Stop) -> None:
        one = self._replicas.get(action.replica)
        if one is not None and one.state != "stopping":
            log.info("replica_stopping", replica=one.id, model=one.model, why=action.why)
            one.stop(has_failed=bool(action.failed_as))

    def suspect(self, replicas: Iterable[str]) -> None:
        """Ask at once those that a router had no answer from."""
        for name in replicas:
            one = self._replicas.get(name)
            if one is not None:
                one.suspected.set()

    def adopt(self, found: Found, *, listener: Listener) -> None:
        """Take over an engine of an earlier operator."""
        extra, now_s = found.record.extra, self._means.clock.now_s()
        one = Replica(
            id=found.record.name,
            model=found.model,
            revision=extra["revision"],
            digest=extra["digest"],
            engine=self._engines(extra["backend"])(),
            means=self._means,
            listener=listener,
            created_s=now_s,
            progress=Progress(at_s=now_s),
        )
        one.hold(found.checkout)
        self._replicas[one.id] = one
        adopt_replica(one, found.running)
        log.info("replica_adopted", replica=one.id, model=one.model, pid=found.record.pid)

    def views(self, book: LeaseBook, publication: Publication) -> tuple[ReplicaView, ...]:
        return tuple(_view(one, book, publication) for one in self._replicas.values())

    def kill(self) -> None:
        for one in self._replicas.values():
            if one.running is not None:
                one.running.child.kill()

    async def close(self) -> None:
        """End all; bounded by their grace time."""
        all_of_them = tuple(self._replicas.values())
        for one in all_of_them:
            one.stop()
        await asyncio.gather(*(one.gone() for one in all_of_them))


def _view(one: Replica, book: LeaseBook, publication: Publication) -> ReplicaView:
    draining = one.draining
    if draining is not None:
        draining = replace(draining, generation=publication.draining_generation(one.id))
    running = one.running
    return ReplicaView(
        id=one.id,
        model=one.model,
        revision=one.revision,
        digest=one.digest,
        state=one.state,
        created_s=one.created_s,
        progress_s=one.progress.at_s,
        ready_s=one.ready_s,
        last_active_s=book.replica_active_s(one.id),
        substage=one.progress.substage,
        waits_for=one.waits_for,
        url="" if running is None else running.url,
        key="" if running is None else running.key,
        draining=draining,
        silence=one.silence,
    )
