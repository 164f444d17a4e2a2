"""Whatever happens at a gate: nobody lost, nobody answered twice or late, no slot used twice, no waiter stranded."""

from __future__ import annotations

import math

from hypothesis import settings, strategies
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from flexinfer.fleet import Failure, FleetReplica
from flexinfer.testing.fleet import model, replica
from flexinfer_serving.admission.effects import Admit, Effect, GateLimits, Refuse, RequestId
from flexinfer_serving.admission.gate import Gate
from flexinfer_serving.routing import Route
from flexinfer_serving.routing.least_loaded import LeastLoaded

NAMES = ("r1", "r2", "r3")
PHASES = strategies.sampled_from(("loading", "ready", "draining", "absent"))
FAILURES = strategies.sampled_from((None, None, None, 0.0, 2.0))
SLOTS, QUEUE, WAIT_S, COLD_S = 2, 5, 4.0, 6.0


class GateMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self.last = 0
        self.waiting: dict[RequestId, float] = {}
        self.flying: dict[RequestId, str] = {}
        self.phases: dict[str, str] = {}
        self.suspects: set[str] = set()
        self.deadlines: dict[RequestId, float] = {}
        self.began: dict[RequestId, float] = {}
        self.admitted_s: dict[RequestId, float] = {}
        limits = GateLimits(
            max_requests=QUEUE, max_bytes=1000, saturated_wait_s=WAIT_S, can_wake=True
        )
        start = model(slots=SLOTS, cold_start_timeout_s=COLD_S)
        self.gate = Gate(start, limits=limits, strategy=LeastLoaded(), now_s=0)

    def perform(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Admit(request=request, replica=name):
                    assert request in self.waiting, "admitted somebody who does not wait"
                    assert self.deadlines[request] > self.now_s, "admitted late"
                    assert self.phases.get(name) == "ready", "admitted to what is not ready"
                    assert name not in self.suspects, "admitted to a suspect"
                    del self.waiting[request]
                    self.flying[request] = name
                    self.admitted_s[request] = self.now_s
                case Refuse(request=request):
                    assert request in self.waiting, "refused somebody who does not wait"
                    del self.waiting[request]
                case _:
                    pass

    @rule(patience_s=strategies.sampled_from((0.5, 3.0, math.inf)))
    def arrives(self, patience_s: float) -> None:
        self.last += 1
        request = RequestId(self.last)
        self.waiting[request] = self.now_s
        self.began[request] = self.now_s
        self.deadlines[request] = self.now_s + patience_s
        self.perform(
            self.gate.arrived(
                request,
                now_s=self.now_s,
                size_bytes=1,
                route=Route(),
                deadline_s=self.deadlines[request],
            )
        )

    @rule(seconds=strategies.sampled_from((0.1, 1.0, 5.0)))
    def time_passes(self, seconds: float) -> None:
        self.now_s += seconds
        self.perform(self.gate.tick(now_s=self.now_s))

    @rule(phases=strategies.tuples(PHASES, PHASES, PHASES), failed=FAILURES)
    def snapshot(self, phases: tuple[str, ...], failed: float | None) -> None:
        found: list[FleetReplica] = []
        for name, phase in zip(NAMES, phases, strict=True):
            if phase == "absent":
                self.phases.pop(name, None)
                if name not in self.flying.values():
                    self.suspects.discard(name)
                continue
            if phase == "ready" and self.phases.get(name) != "ready":
                self.suspects.discard(name)
            self.phases[name] = phase
            found.append(replica(name, phase=phase))
        failure = None if failed is None else Failure(code="x", message="x", retry_after_s=failed)
        new = model(
            slots=SLOTS, cold_start_timeout_s=COLD_S, replicas=tuple(found), failure=failure
        )
        self.perform(self.gate.updated(new, now_s=self.now_s, strategy=LeastLoaded()))

    @precondition(lambda self: self.flying)
    @rule(data=strategies.data())
    def finishes(self, data: strategies.DataObject) -> None:
        request = data.draw(strategies.sampled_from(sorted(self.flying)))
        del self.flying[request]
        self.perform(self.gate.finished(request, now_s=self.now_s))

    @precondition(lambda self: self.flying)
    @rule(data=strategies.data())
    def is_given_back(self, data: strategies.DataObject) -> None:
        request = data.draw(strategies.sampled_from(sorted(self.flying)))
        name = self.flying.pop(request)
        self.waiting[request] = self.now_s
        self.began[request] += self.now_s - self.admitted_s[request]  # no wait while at a replica
        self.suspects.add(name)
        self.perform(self.gate.returned(request, now_s=self.now_s))

    @precondition(lambda self: self.waiting or self.flying)
    @rule(data=strategies.data())
    def hangs_up(self, data: strategies.DataObject) -> None:
        request = data.draw(strategies.sampled_from(sorted({*self.waiting, *self.flying})))
        self.waiting.pop(request, None)
        self.flying.pop(request, None)
        self.perform(self.gate.cancelled(request, now_s=self.now_s))

    @precondition(lambda self: self.suspects)
    @rule(data=strategies.data())
    def is_trusted(self, data: strategies.DataObject) -> None:
        name = data.draw(strategies.sampled_from(sorted(self.suspects)))
        self.suspects.discard(name)
        self.perform(self.gate.trusted(name, now_s=self.now_s))

    @invariant()
    def nobody_is_lost(self) -> None:
        assert self.gate.waiting == len(self.waiting)
        assert self.gate.waiting_bytes == len(self.waiting)
        assert sum(self.gate.in_flight.values()) == len(self.flying)

    @invariant()
    def never_more_in_flight_than_slots(self) -> None:
        for name in NAMES:
            assert list(self.flying.values()).count(name) <= SLOTS

    @invariant()
    def no_waiter_is_stranded_beside_a_free_slot(self) -> None:
        flying = list(self.flying.values())
        usable = [n for n, p in self.phases.items() if p == "ready" and n not in self.suspects]
        if self.waiting:
            assert all(flying.count(name) >= SLOTS for name in usable)
            due_s = self.gate.next_due_s
            assert due_s is not None, "waits without an end"
            assert due_s > self.now_s, "is overdue"

    @invariant()
    def nobody_waits_longer_than_both_budgets(self) -> None:
        for request in self.waiting:
            assert self.now_s - self.began[request] < WAIT_S + COLD_S


GateMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
test_gate_keeps_its_promises = GateMachine.TestCase
