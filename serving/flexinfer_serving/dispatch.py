"""The shell of the gates: keeps one gate for each Model, performs its effects, runs its timers, tells the operator.

Everything here happens in one event loop, and every entry is synchronous but for a ticket's wait.
"""

from __future__ import annotations

import asyncio
import math

from flexinfer.clock import Clock
from flexinfer.errors import (
    DeadlineExceeded,
    FlexInferError,
    NotFound,
    Overloaded,
    Unavailable,
)
from flexinfer.fleet import DemandLease, FleetModel, FleetReplica, FleetSnapshot
from flexinfer.log import get_logger
from flexinfer.metrics import Metrics
from flexinfer.settings import ServeSection
from flexinfer_serving import lookup
from flexinfer_serving.admission.effects import (
    Admit,
    Effect,
    GateLimits,
    Phase,
    Refuse,
    RequestId,
    Wake,
)
from flexinfer_serving.admission.gate import Gate
from flexinfer_serving.chosen import Chosen
from flexinfer_serving.explain import Record
from flexinfer_serving.fleet import DemandSink
from flexinfer_serving.leasing import Lessor
from flexinfer_serving.measures import Measures
from flexinfer_serving.probing import Probe, Prober
from flexinfer_serving.routing import Route, Strategy
from flexinfer_serving.tickets import Admission, Entry, Ticket

log = get_logger(__name__)

KINDS: dict[str, type[FlexInferError]] = {
    "model_overloaded": Overloaded,
    "deadline_exceeded": DeadlineExceeded,
    "model_not_found": NotFound,
}


class Dispatcher:
    """See the module. It is the fleet's listener."""

    def __init__(
        self,
        *,
        router: str,
        section: ServeSection,
        lease_ttl_s: float,
        clock: Clock,
        metrics: Metrics,
        sink: DemandSink | None,
        probe: Probe,
        chosen: Chosen | None = None,
    ) -> None:
        self._chosen = chosen or Chosen()
        self._router = router
        self._section = section
        self._lease_ttl_s = lease_ttl_s
        self._clock = clock
        self._metrics = metrics
        self._sink = sink
        self._probe = probe
        self._entries: dict[str, Entry] = {}
        self._last = 0
        self.snapshot: FleetSnapshot | None = None
        self.is_connected = False

    # The fleet ------------------------------------------------------------------------------------------

    def applied(self, snapshot: FleetSnapshot) -> None:
        now_s = self._clock.now_s()
        self.snapshot = snapshot
        self._metrics.set("flexinfer_fleet_generation", snapshot.generation)
        seen = {model.name: model for model in snapshot.models}
        for name, entry in tuple(self._entries.items()):
            if name not in seen:
                self._remove(entry, now_s)
        for name, model in seen.items():
            strategy = self._chosen.find(name, model.strategy)
            known = self._entries.get(name)
            if known is None:
                known = self._entries[name] = self._entry(model, strategy, now_s)
                known.first_tokens.know(r.id for r in model.replicas)
                self._settle(known, [], now_s)
            else:
                known.first_tokens.know(r.id for r in model.replicas)
                known.model = model
                known.is_removed = False
                self._settle(
                    known, known.gate.updated(model, now_s=now_s, strategy=strategy), now_s
                )
                self._tell_lost(known, now_s)
            known.measures.count_replicas(model)

    def connected(self, is_connected: bool) -> None:
        self.is_connected = is_connected
        self._metrics.set("flexinfer_fleet_connected", int(is_connected))
        if is_connected:
            for entry in self._entries.values():
                if entry.lessor is not None:
                    entry.lessor.start_over()

    def find(self, name: str) -> FleetModel:
        """Return the Model of that name or alias. Raises what `lookup.find` raises."""
        return lookup.find(self.snapshot, name)

    # Requests -------------------------------------------------------------------------------------------

    def arrive(
        self,
        model: FleetModel,
        *,
        size_bytes: int,
        route: Route,
        deadline_s: float,
        record: Record,
    ) -> Ticket:
        """Return the request's ticket; its `decision` may be there already."""
        entry = self._entries[model.name]
        now_s = self._clock.now_s()
        self._last += 1
        ticket = Ticket(self, entry, RequestId(self._last), record)
        entry.tickets[ticket.request] = ticket
        entry.arrivals += 1
        entry.active_s = now_s
        effects = entry.gate.arrived(
            ticket.request,
            now_s=now_s,
            size_bytes=size_bytes,
            route=route,
            deadline_s=deadline_s,
        )
        self._settle(entry, effects, now_s)
        if not ticket.decision.done():
            record.note("held", now_s=now_s, phase=entry.gate.phase(now_s).value)
        return ticket

    def finish(self, entry: Entry, ticket: Ticket) -> None:
        if entry.tickets.pop(ticket.request, None) is None:
            return
        now_s = self._clock.now_s()
        entry.active_s = now_s
        decided = ticket.decision.done() and not ticket.decision.cancelled()
        if decided:
            effects = entry.gate.finished(ticket.request, now_s=now_s)
        else:
            effects = entry.gate.cancelled(ticket.request, now_s=now_s)
        if ticket.decision.done() and not ticket.decision.cancelled():
            ticket.decision.exception()  # seen: a client that left does not fetch its refusal
        self._settle(entry, effects, now_s)
        if entry.is_removed and not entry.tickets:
            self._forget(entry)

    def give_back(self, entry: Entry, ticket: Ticket, replica: FleetReplica) -> None:
        now_s = self._clock.now_s()
        effects = entry.gate.returned(ticket.request, now_s=now_s)
        entry.probe(replica)
        self._settle(entry, effects, now_s)

    def suspect(self, entry: Entry, replica: FleetReplica) -> None:
        now_s = self._clock.now_s()
        effects = entry.gate.suspected(replica.id, now_s=now_s)
        entry.probe(replica)
        self._settle(entry, effects, now_s)

    @property
    def waiting(self) -> dict[str, int]:
        """Return how many wait, by Model; Models that nobody waits for are left out."""
        return {name: e.gate.waiting for name, e in self._entries.items() if e.gate.waiting}

    @property
    def in_flight(self) -> dict[str, int]:
        """Return how many are at an engine, by Model; Models without any are left out."""
        found = {name: sum(e.gate.in_flight.values()) for name, e in self._entries.items()}
        return {name: count for name, count in found.items() if count}

    def close(self) -> None:
        """Stop all timers and probes."""
        for entry in self._entries.values():
            self._stop(entry)
        self._entries.clear()

    def _tell_lost(self, entry: Entry, now_s: float) -> None:
        """Tell the requests at replicas that froze or vanished, where another replica could take them."""
        if entry.gate.phase(now_s) is not Phase.OPEN:
            return
        for ticket in tuple(entry.tickets.values()):
            if ticket.when_lost is not None and entry.has_lost(ticket.decision.result().replica):
                ticket.when_lost()

    # Effects and timers ---------------------------------------------------------------------------------

    def _settle(self, entry: Entry, effects: list[Effect], now_s: float) -> None:
        for effect in effects:
            match effect:
                case Admit():
                    self._admit(entry, effect, now_s)
                case Refuse():
                    self._refuse(entry, effect, now_s)
                case Wake():
                    log.info("model_wanted", model=entry.model.name)
        entry.measures.look(entry.gate, entry.model, now_s=now_s)
        self._set_timer(entry, now_s)
        if entry.lessor is not None:
            entry.lessor.look()

    def _admit(self, entry: Entry, effect: Admit, now_s: float) -> None:
        ticket = entry.tickets[effect.request]
        replica = entry.replica(effect.replica)
        assert replica is not None  # a gate admits only to replicas of its newest snapshot
        ticket.record.note(
            "admitted", now_s=now_s, replica=replica.id, why=effect.why, held_s=effect.held_s
        )
        self._metrics.observe(
            "flexinfer_held_seconds", effect.held_s, model=entry.model.name, outcome="admitted"
        )
        if not ticket.decision.done():
            ticket.decision.set_result(
                Admission(model=entry.model, replica=replica, held_s=effect.held_s)
            )

    def _refuse(self, entry: Entry, effect: Refuse, now_s: float) -> None:
        ticket = entry.tickets[effect.request]
        ticket.record.note("refused", now_s=now_s, code=effect.code, why=effect.message)
        self._metrics.observe(
            "flexinfer_held_seconds",
            now_s - ticket.record.started_s,
            model=entry.model.name,
            outcome=effect.code,
        )
        kind = KINDS.get(effect.code, Unavailable)
        if not ticket.decision.done():
            ticket.decision.set_exception(
                kind(effect.message, code=effect.code, retry_after_s=effect.retry_after_s)
            )

    def _set_timer(self, entry: Entry, now_s: float) -> None:
        if entry.timer is not None:
            entry.timer.cancel()
            entry.timer = None
        due_s = entry.gate.next_due_s
        if due_s is not None and math.isfinite(due_s):
            loop = asyncio.get_running_loop()
            entry.timer = loop.call_later(max(0.0, due_s - now_s), self._tick, entry)

    def _tick(self, entry: Entry) -> None:
        now_s = self._clock.now_s()
        self._settle(entry, entry.gate.tick(now_s=now_s), now_s)

    def _lease(self, entry: Entry, now_s: float) -> DemandLease:
        return DemandLease(
            router=self._router,
            model=entry.model.name,
            waiting=entry.gate.waiting,
            oldest_wait_s=round(entry.gate.oldest_wait_s(now_s), 3),
            in_flight=dict(entry.gate.in_flight),
            idle_s=None if entry.active_s is None else round(now_s - entry.active_s, 3),
            generation=0 if self.snapshot is None else self.snapshot.generation,
            ttl_s=self._lease_ttl_s,
            first_token_s=entry.first_tokens.untold,
            suspects=() if entry.prober is None else entry.prober.suspects,
        )

    # Entries --------------------------------------------------------------------------------------------

    def _entry(self, model: FleetModel, strategy: Strategy, now_s: float) -> Entry:
        limits = GateLimits(
            max_requests=self._section.max_queue_requests,
            max_bytes=self._section.max_queue_bytes,
            saturated_wait_s=self._section.saturated_wait_s,
            can_wake=self._sink is not None,
        )
        gate = Gate(model, limits=limits, strategy=strategy, now_s=now_s)
        entry = Entry(model=model, gate=gate, measures=Measures(self._metrics, model.name))
        entry.prober = Prober(
            self._probe,
            current=lambda: entry.model,
            trusted=lambda replica: self._trusted(entry, replica),
        )
        if self._sink is not None:
            entry.lessor = Lessor(
                self._sink,
                ttl_s=self._lease_ttl_s,
                clock=self._clock,
                lease=lambda now_s: self._lease(entry, now_s),
                arrivals=lambda: entry.arrivals,
                draining=lambda: entry.draining,
                told=entry.first_tokens.told,
            )
        return entry

    def _trusted(self, entry: Entry, replica: str) -> None:
        now_s = self._clock.now_s()
        self._settle(entry, entry.gate.trusted(replica, now_s=now_s), now_s)
        self._tell_lost(entry, now_s)

    def _remove(self, entry: Entry, now_s: float) -> None:
        """The Model is gone: nobody waits for it any more; what is in flight ends by itself."""
        entry.is_removed = True
        message = f"model {entry.model.name!r} was removed"
        self._settle(entry, entry.gate.refuse_all("model_not_found", message, now_s=now_s), now_s)
        if not entry.tickets:
            self._forget(entry)

    def _forget(self, entry: Entry) -> None:
        self._stop(entry)
        if self._entries.get(entry.model.name) is entry:
            del self._entries[entry.model.name]
            self._chosen.forget(entry.model.name)
            entry.measures.forget()

    def _stop(self, entry: Entry) -> None:
        if entry.timer is not None:
            entry.timer.cancel()
        if entry.lessor is not None:
            entry.lessor.stop()
        if entry.prober is not None:
            entry.prober.stop()
