"""This machine as a `Cluster`: the picture is kept here, everything happens in the modules beside.

models/*.yaml ─ModelFiles─┐                                ┌─► Replica (engine processes)
store, catalog ──Binder───┼─► picture ─► plan ─► apply ────┼─► Builder (child processes)
run/operator.sock ─leases─┘                                └─► publish ─► routers
                                    record ─► state.db, by one thread, never awaited on the way to a start
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import httpx

from flexinfer.clock import Clock
from flexinfer.engine import ENGINES
from flexinfer.errors import Conflict
from flexinfer.fleet import DemandLease, FleetModel, FleetSnapshot
from flexinfer.log import get_logger
from flexinfer.places import Home
from flexinfer.resources.model import ModelStatus
from flexinfer.settings import Settings
from flexinfer.store import Store
from flexinfer_operator.facts import EngineLookup, edit_problems
from flexinfer_operator.leases import LeaseBook
from flexinfer_operator.local.adoption import find_engines
from flexinfer_operator.local.binding import Binder
from flexinfer_operator.local.builds import BuildCommand, Builder, build_command
from flexinfer_operator.local.desk import Desk
from flexinfer_operator.local.hearing import DEFAULT_PACE, Pace
from flexinfer_operator.local.ledger import ColdStartRecord
from flexinfer_operator.local.logs import prune_logs
from flexinfer_operator.local.look import keep_looking
from flexinfer_operator.local.models import ModelFiles
from flexinfer_operator.local.notices import (
    announce,
    announce_end,
    announce_failure,
    announce_refusal,
)
from flexinfer_operator.local.pool import Pool
from flexinfer_operator.local.replica import Means, Replica
from flexinfer_operator.local.routers import RouterServer
from flexinfer_operator.local.shelf import Shelf
from flexinfer_operator.local.sight import Sight
from flexinfer_operator.local.tools import HomeTools, Tools
from flexinfer_operator.local.verdicts import Verdicts
from flexinfer_operator.plan.action import Action, Build, Drain, Start, Stop, Undrain
from flexinfer_operator.plan.preemption import preempted_by
from flexinfer_operator.plan.view import Crash, Policy, Snapshot
from flexinfer_operator.publication import Publication
from flexinfer_operator.revisions import Revisions

log = get_logger(__name__)

# A router that went away may be restarting: its requests are not given up at once.
_LEAVE_GRACE_S = 2.0
_DAMAGE_MEMORY_S = 60.0


class LocalCluster:
    """See `flexinfer_operator.cluster.Cluster`. `async with` starts and ends it.

    engines, tools, build, pace: what engines there are, what they run with, how a source is built, how often engines
    are asked whether they live; a test gives its own.
    """

    def __init__(
        self,
        home: Home,
        settings: Settings,
        clock: Clock,
        *,
        engines: EngineLookup = ENGINES.get,
        tools: Tools | None = None,
        build: BuildCommand = build_command,
        pace: Pace = DEFAULT_PACE,
    ) -> None:
        self._home, self._clock, self._engines = home, clock, engines
        self._section = settings.operator
        self._policy = Policy(
            max_loaded=self._section.max_loaded_models,
            drain_timeout_s=self._section.drain_timeout_s,
            drain_limit_s=self._section.drain_limit_s,
        )
        self._store = Store(home.store)
        self._desk = Desk(home.state_db, clock)
        binder = Binder(home, settings.catalog, store=self._store, engines=engines)
        files = ModelFiles(
            home.models,
            on_fault=announce_refusal,
            check=lambda document: edit_problems(engines, document, binder.offered),
            recall=self._desk.last_good,
            owner=self._desk.file_of,
        )
        self._sight = Sight(files=files, binder=binder)
        self._shelf = Shelf(clock)
        self._publication = Publication(first_generation=int(clock.unix_s() * 1000))
        self._routers = RouterServer(home.operator_socket, self, self._newest)
        self._builder = Builder(
            home,
            clock,
            nice=settings.build.nice,
            on_turn=self._touch_all_of,
            on_end=self._build_ended,
            command=build,
        )
        self._verdicts = Verdicts(self._builder)
        self._client = httpx.AsyncClient(trust_env=False)
        means = Means(
            home=home,
            clock=clock,
            store=self._store,
            tools=tools or HomeTools(home),
            client=self._client,
            stop_grace_s=self._section.stop_grace_s,
            pace=pace,
        )
        self._records = means.records
        self._pool = Pool(means, engines, max_loaded=self._policy.max_loaded)
        self._book = LeaseBook(models=self._shelf, replicas=self._pool)
        self._revisions = Revisions()
        self._look_now = asyncio.Event()
        self._looking: asyncio.Task[None] | None = None

    @property
    def socket(self) -> Path:
        return self._home.operator_socket

    # Life

    async def __aenter__(self) -> LocalCluster:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def open(self) -> None:
        """Read what is there, take over engines that run, and begin to serve routers."""
        self._records.mkdir(mode=0o700, parents=True, exist_ok=True)
        await self._desk.open()
        try:
            await self._look(True)
            self._desk.tidy(self._shelf.names(), is_whole=self._sight.files.is_whole)
            for found in await find_engines(
                self._records,
                self._store,
                models=frozenset(self._shelf.names()),
                engines=self._engines,
                grace_s=self._section.stop_grace_s,
            ):
                self._pool.adopt(found, listener=self)
                self._shelf.note_start(found.model, found.record.name)
            await self._routers.start()
        except BaseException:
            await self.close()
            raise
        every_s = self._section.rescan_s
        looking = keep_looking(self._look, self._look_now, every_s=every_s)
        self._looking = asyncio.create_task(looking, name="look")

    def kill(self) -> None:
        """Kill every engine now: they had their time."""
        self._pool.kill()

    async def close(self) -> None:
        """End routers, builds and engines; bounded by the grace time of engines."""
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)
        await self._routers.close()
        await asyncio.gather(self._builder.close(), self._pool.close())
        await self._client.aclose()
        for name in self._shelf.names():
            self._desk.stopped(name)
        await self._desk.close()

    def look_soon(self) -> None:
        """Look at files and store at once, not when it is time."""
        self._look_now.set()

    def engines(self) -> tuple[Replica, ...]:
        """Return the engines that exist, as they are; for whoever measures."""
        return self._pool.all()

    # Cluster

    def observe(self) -> Snapshot:
        now_s = self._clock.now_s()
        for model in self._book.expire(now_s):
            self._revisions.touch(model)
        return Snapshot(
            revision=self._revisions.newest,
            unix_offset_s=self._clock.unix_s() - now_s,
            policy=self._policy,
            models=tuple(
                known.view(
                    builds=self._verdicts.state(known.model.spec.source),
                    last_active_s=self._book.model_active_s(name),
                )
                for name, known in self._shelf.items()
            ),
            replicas=self._pool.views(self._book, self._publication),
            leases=self._book.leases(),
            routers=self._book.routers(),
        )

    async def watch(self) -> AsyncIterator[Snapshot]:
        seen = 0
        while True:
            await self._revisions.newer_than(seen)
            snapshot = self.observe()
            seen = snapshot.revision
            yield snapshot

    async def apply(self, action: Action, *, observed: int) -> None:
        self._revisions.check(action.model, observed=observed)
        match action:
            case Start():
                self._start(action)
            case Drain():
                self._pool.drain(action)
            case Undrain():
                self._pool.undrain(action)
            case Stop():
                self._stop(action)
            case Build():
                self._builder.start(action.source, why=action.why)
        self._revisions.bump()

    async def publish(self, fleet: Sequence[FleetModel]) -> None:
        snapshot = self._publication.publish(fleet, now_s=self._clock.now_s())
        if snapshot is not None:
            self._routers.send(snapshot)
            self._revisions.bump()

    async def record(self, statuses: Mapping[str, ModelStatus]) -> None:
        for name, status in statuses.items():
            known = self._shelf.get(name)
            if known is None or known.status == status:
                continue
            announce(name, known.status, status)
            known.status = status
            self._desk.save(name, known.remembered())

    def _start(self, action: Start) -> None:
        known = self._shelf.get(action.model)
        if known is None or known.artifact is None or action.replica in self._pool:
            return
        if known.artifact.digest != action.digest:
            raise Conflict(f"Model {action.model} is bound to another digest by now")
        known.starts += 1
        known.preempted_by = preempted_by(action, None)
        self._pool.start(
            action, known.model, known.artifact, models=len(self._shelf.names()), listener=self
        )

    def _stop(self, action: Stop) -> None:
        known, one = self._shelf.get(action.model), self._pool.get(action.replica)
        if known is not None and one is not None and one.state != "stopping":
            known.preempted_by = preempted_by(action, one.draining)
            if action.failed_as:
                known.crashed(crash := one.fail(action.failed_as, action.why))
                announce_failure(one.id, one.model, crash)
        self._pool.stop(action)

    # What replicas, routers and builds tell

    def replica_changed(self, replica: Replica) -> None:
        self._revisions.bump()

    def replica_ready(self, replica: Replica) -> None:
        now_s = self._clock.now_s()
        known = self._shelf.get(replica.model)
        if known is not None:
            known.last_ready_s, known.preempted_by = now_s, ""
        if not replica.is_adopted:
            start = ColdStartRecord(
                digest=replica.digest,
                replica=replica.id,
                at_unix_s=self._clock.unix_s(),
                phases=dict(replica.phases),
            )
            self._desk.add(start, then=self._estimated)
            log.info("replica_ready", replica=replica.id, model=replica.model, **replica.phases)
        self._revisions.touch(replica.model)

    def replica_gone(self, replica: Replica, crash: Crash | None) -> None:
        self._pool.forget(replica)
        self._book.forget_replica(replica.id)
        known = self._shelf.get(replica.model)
        if known is not None and crash is not None and not replica.is_damaged:
            known.crashed(crash)
        announce_end(replica.id, replica.model, crash)
        prune_logs(self._home.logs, replica.model, running=self._pool)
        self._forget_if_gone(replica.model)
        self._revisions.touch(replica.model)

    def artifact_damaged(self, replica: Replica, message: str) -> bool:
        """Take the artifact for damaged until the store was looked at; False: that was done just now already.

        So those who wait are held for the build that heals it, and a store that finds it whole and broken in turn
        is not asked for ever: the second time counts as a crash, with a crash's back-off.
        """
        now_s = self._clock.now_s()
        log.error("artifact_damaged", digest=replica.digest, error=message, human=message)
        self._look_now.set()
        known = self._shelf.get(replica.model)
        if known is None or known.bound.digest != replica.digest:
            return False
        is_first = known.damaged_s is None or now_s - known.damaged_s > _DAMAGE_MEMORY_S
        known.damaged_s = now_s
        known.bound = replace(known.bound, is_cached=False, damage=message)
        known.artifact = None
        return is_first

    def router_connected(self, connection: int) -> None:
        self._book.connected(connection)
        self._revisions.bump()

    def router_said(self, connection: int, lease: DemandLease) -> None:
        now_s = self._clock.now_s()
        if self._book.take(connection, lease, now_s=now_s):
            self._revisions.touch(lease.model)
        self._pool.suspect(lease.suspects)
        for replica, seconds in lease.first_token_s.items():
            one = self._pool.get(replica)
            if one is not None and not one.is_adopted and "first_token" not in one.phases:
                one.phases["first_token"] = seconds
                self._desk.first_token(one.id, one.digest, seconds, then=self._estimated)

    def router_left(self, connection: int) -> None:
        now_s = self._clock.now_s()
        for model in self._book.disconnected(connection, now_s=now_s, grace_s=_LEAVE_GRACE_S):
            self._revisions.touch(model)
        self._revisions.bump()

    def _build_ended(self, source: str, is_good: bool) -> None:
        """Look what it left, where it ended well; until then it counts as running."""
        self._look_now.set()
        if is_good:
            self._verdicts.ended(source)
        self._touch_all_of(source)

    def _touch_all_of(self, source: str) -> None:
        for name, known in self._shelf.items():
            if known.model.spec.source == source:
                self._revisions.touch(name)

    def _estimated(self, digest: str) -> None:
        for name, known in self._shelf.items():
            if known.bound.digest == digest:
                known.cold_starts = self._desk.estimate(digest)
                self._revisions.touch(name)

    # Looking

    async def _look(self, with_catalog: bool) -> None:
        """Read what changed in `models/`, the store and the catalog, and bind what that concerns anew."""
        unseen = self._verdicts.unseen()
        seen = await self._sight.look(
            lambda name: self._shelf.status(name, self._desk.known(name)),
            with_catalog=with_catalog,
            is_asked=bool(unseen),
        )
        if seen is None:
            return
        written = seen.written
        for name, binding in seen.bindings.items():
            remembered = self._desk.known(name)
            before = self._shelf.wish(name)
            known, is_different = self._shelf.put(written[name], binding, remembered)
            if known.cold_starts is None and known.bound.digest:
                known.cold_starts = self._desk.estimate(known.bound.digest)
            if known.bound.is_cached or before not in (None, self._shelf.wish(name)):
                self._builder.forgive(known.model.spec.source)
            if is_different:
                self._desk.save(name, known.remembered())
                self._revisions.touch(name)
        for name in self._shelf.names() - written.keys():
            self._shelf.delete(name)
            self._revisions.touch(name)
            self._forget_if_gone(name)
        models = [known for _, known in self._shelf.items()]
        self._builder.keep_only({k.model.spec.source for k in models if not k.is_deleted})
        for source in self._verdicts.settle(unseen, models, bound=seen.bindings):
            self._touch_all_of(source)

    # The picture

    def _forget_if_gone(self, name: str) -> None:
        known = self._shelf.get(name)
        if known is None or not known.is_deleted:
            return
        if not self._pool.has_any(name):
            self._shelf.forget(name)
            self._book.forget_model(name)
            self._revisions.forget(name)
            self._desk.forget(name)

    def _newest(self) -> FleetSnapshot | None:
        return self._publication.current(now_s=self._clock.now_s())
