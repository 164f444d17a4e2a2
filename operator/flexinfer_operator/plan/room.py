"""Who may start when the machine holds only so many engines.

Those for whom somebody waits come first, by priority, then by how long they wait; standing wishes
(`minReplicas`, `enabled: false`) take only room that is free. For each in turn:
    1. a place is free                                  → start
    2. it follows a replica of its own old revision     → drain that one
    3. a place is about to be free                      → wait for it
    4. somebody waits: another Model is idle            → drain its replica, lowest priority, then longest idle first
    5. somebody has waited for `swapWait`: another Model of no higher priority is busy → drain that one; one that
       loads for somebody is left alone, unless its load has waited for others for as long
A Model is never drained below `minReplicas` for one of the same or a lower priority.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from flexinfer_operator.plan.action import Action, Drain, Start, Stop
from flexinfer_operator.plan.names import replica_name
from flexinfer_operator.plan.replicas import NEVER, Decision, Facts
from flexinfer_operator.plan.view import Policy, ReplicaView


@dataclass(slots=True, kw_only=True)
class Allotment:
    actions: list[Action] = field(default_factory=list)
    waiting: dict[str, str] = field(default_factory=dict)
    """Why each Model that found no place waits."""
    timers: list[float] = field(default_factory=list)


def allot(
    facts: Mapping[str, Facts],
    decisions: Mapping[str, Decision],
    *,
    existing: tuple[ReplicaView, ...],
    policy: Policy,
    now_s: float,
) -> Allotment:
    """Return who starts now and who makes room. *existing* are all engines that hold a place."""
    out = Allotment()
    free = policy.max_loaded - len(existing)
    leaving = _leaving(decisions, existing)
    for name in sorted(
        (name for name, decision in decisions.items() if decision.wants_start),
        key=lambda name: _order(facts[name], decisions[name]),
    ):
        mine, decision = facts[name], decisions[name]
        if free > 0:
            free -= 1
            out.actions.append(_start(mine, decision))
            continue
        out.waiting[name] = f"{len(existing)} of {policy.max_loaded} engines are loaded"
        if decision.replaces:
            why = "no room for two revisions"
            out.actions.append(Drain(model=name, replica=decision.replaces, why=why))
            continue
        if _claim(leaving, name):
            continue
        if decision.is_urgent:
            _make_room(mine, facts, decisions, out, policy, now_s)
    return out


def _order(facts: Facts, decision: Decision) -> tuple[bool, int, float, str]:
    priority = facts.view.model.spec.gpu.priority
    return (not decision.is_urgent, -priority, -facts.demand.oldest_wait_s, facts.view.name)


def _start(facts: Facts, decision: Decision) -> Start:
    demand = facts.demand
    why = f"{demand.waiting} waiting" if decision.is_urgent else f"{decision.wanted} wanted"
    return Start(
        model=facts.view.name,
        replica=replica_name(facts.view, facts.revision),
        revision=facts.revision,
        digest=facts.view.bound.digest,
        why=f"a newer revision; {why}" if decision.replaces else why,
    )


def _leaving(decisions: Mapping[str, Decision], existing: tuple[ReplicaView, ...]) -> list[str]:
    """Return, for each place that will be free, the Model that it is kept for; empty: for anybody."""
    decided = {
        action.replica
        for decision in decisions.values()
        for action in decision.actions
        if isinstance(action, (Drain, Stop))
    }
    return [
        replica.draining.for_model if replica.draining is not None else ""
        for replica in existing
        if replica.state == "stopping" or replica.draining is not None or replica.id in decided
    ]


def _claim(leaving: list[str], name: str) -> bool:
    for kept_for in (name, ""):
        if kept_for in leaving:
            leaving.remove(kept_for)
            return True
    return False


def _make_room(
    waiter: Facts,
    facts: Mapping[str, Facts],
    decisions: Mapping[str, Decision],
    out: Allotment,
    policy: Policy,
    now_s: float,
) -> None:
    priority = waiter.view.model.spec.gpu.priority
    swap_at_s = now_s - waiter.demand.oldest_wait_s + policy.swap_wait_s
    chosen: tuple[tuple[bool, int, float, str], ReplicaView, Facts] | None = None
    taken = {a.replica for a in out.actions if isinstance(a, (Drain, Stop))}
    for other in facts.values():
        if other.view.name == waiter.view.name:
            continue
        rank = other.view.model.spec.gpu.priority
        gone = decisions[other.view.name].touched() | taken
        held = [
            r
            for r in other.replicas
            if r.state != "stopping" and r.draining is None and r.id not in gone
        ]
        if len(held) <= other.minimum and rank >= priority:
            continue
        for replica in held:
            is_busy = other.demand.waiting > 0 or other.demand.in_flight.get(replica.id, 0) > 0
            if is_busy:
                is_loading = replica.state == "loading" and not replica.waits_for
                if is_loading or rank > priority:
                    continue
                begun_s = replica.created_s if replica.ready_s is None else replica.ready_s
                due_s = max(swap_at_s, begun_s + policy.swap_wait_s)
                if due_s > now_s:
                    out.timers.append(due_s)
                    continue
            active_s = max(replica.last_active_s or NEVER, other.view.last_active_s or NEVER)
            key = (is_busy, rank, active_s, replica.id)
            if chosen is None or key < chosen[0]:
                chosen = (key, replica, other)
    if chosen is None:
        return
    _, replica, other = chosen
    why = f"room for {waiter.view.name}, which has {waiter.demand.waiting} waiting"
    if replica.state == "loading":
        out.actions.append(Stop(model=other.view.name, replica=replica.id, why=why))
    else:
        out.actions.append(
            Drain(model=other.view.name, replica=replica.id, for_model=waiter.view.name, why=why)
        )
