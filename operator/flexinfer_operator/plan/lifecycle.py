"""The plan for all Models: bind → gate → replicas → room, then what is shown and what routers are told.

Level-triggered: a plan follows from the picture alone, never from which event came. The same picture gives the
same plan, and an empty one once the world is as it shall be.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from flexinfer.fleet import FleetModel
from flexinfer.resources.model import ModelStatus
from flexinfer_operator.plan.action import Action, Build, Plan
from flexinfer_operator.plan.crashes import retry_s
from flexinfer_operator.plan.demand import sum_leases
from flexinfer_operator.plan.fleet import fleet_model
from flexinfer_operator.plan.gate import judge_model
from flexinfer_operator.plan.names import Aliases, revision_of, share_aliases
from flexinfer_operator.plan.replicas import Decision, Facts, decide
from flexinfer_operator.plan.room import Allotment, allot
from flexinfer_operator.plan.status import status_of
from flexinfer_operator.plan.view import LeaseView, ModelView, ReplicaView, Snapshot

T = TypeVar("T")


def plan(snapshot: Snapshot, now_s: float) -> Plan:
    """Return what shall be done about *snapshot* at *now_s* (the clock of the snapshot's instants)."""
    aliases = share_aliases([view for view in snapshot.models if not view.is_deleted])
    leases = _by_model([(view.lease.model, view) for view in snapshot.leases])
    replicas = _by_model([(one.model, one) for one in snapshot.replicas])
    facts = {
        view.name: _facts(
            view,
            snapshot,
            leases=tuple(one for one in leases.get(view.name, ()) if one.expires_s > now_s),
            replicas=tuple(replicas.get(view.name, ())),
            alias_conflict=aliases.conflicts.get(view.name, ""),
            now_s=now_s,
        )
        for view in snapshot.models
    }
    # Whoever wants a start and has none yet may need the room that others were drained for.
    needy = frozenset(
        name
        for name, mine in facts.items()
        if decide(mine, now_s=now_s, needy=frozenset(facts)).wants_start
    )
    decisions = {name: decide(mine, now_s=now_s, needy=needy) for name, mine in facts.items()}
    places = allot(
        facts,
        decisions,
        existing=snapshot.replicas,
        policy=snapshot.policy,
        now_s=now_s,
    )
    actions: list[Action] = [a for decision in decisions.values() for a in decision.actions]
    actions += places.actions
    actions += [_build(mine) for mine in facts.values() if _wants_build(mine)]
    statuses, fleet = _shown(facts, decisions, places, aliases, snapshot, now_s)
    timers = [*places.timers, *(t for decision in decisions.values() for t in decision.timers)]
    timers += [mine.gate.again_s for mine in facts.values() if mine.gate.again_s is not None]
    timers += [
        retry_s(mine.view, mine.revision, snapshot.policy)
        for mine in facts.values()
        if mine.view.crashes
    ]
    later = [timer - now_s for timer in timers if timer > now_s]
    return Plan(
        actions=tuple(actions),
        statuses=statuses,
        fleet=fleet,
        again_after_s=min(later, default=None),
        why={name: places.waiting.get(name) or decisions[name].why for name in facts},
    )


def _by_model(pairs: Sequence[tuple[str, T]]) -> dict[str, list[T]]:
    found: dict[str, list[T]] = {}
    for model, one in pairs:
        found.setdefault(model, []).append(one)
    return found


def _facts(
    view: ModelView,
    snapshot: Snapshot,
    *,
    leases: tuple[LeaseView, ...],
    replicas: tuple[ReplicaView, ...],
    alias_conflict: str,
    now_s: float,
) -> Facts:
    return Facts(
        view=view,
        gate=judge_model(view, policy=snapshot.policy, alias_conflict=alias_conflict, now_s=now_s),
        revision=revision_of(view),
        demand=sum_leases(leases, now_s=now_s),
        replicas=replicas,
        leases=leases,
        routers=snapshot.routers,
        policy=snapshot.policy,
        has_spare_place=len(snapshot.replicas) < snapshot.policy.max_loaded,
    )


def _wants_build(facts: Facts) -> bool:
    return facts.gate.wants_build and not facts.view.is_deleted


def _build(facts: Facts) -> Build:
    return Build(
        model=facts.view.name,
        source=facts.view.model.spec.source,
        reference=facts.view.bound.reference,
        why=facts.gate.cached.message,
    )


def _shown(
    facts: dict[str, Facts],
    decisions: dict[str, Decision],
    places: Allotment,
    aliases: Aliases,
    snapshot: Snapshot,
    now_s: float,
) -> tuple[dict[str, ModelStatus], tuple[FleetModel, ...]]:
    statuses: dict[str, ModelStatus] = {}
    fleet: list[FleetModel] = []
    for name, mine in facts.items():
        no_room = places.waiting.get(name, "")
        status = status_of(
            mine,
            decisions[name],
            no_room=no_room,
            now_s=now_s,
            unix_offset_s=snapshot.unix_offset_s,
        )
        if not mine.view.is_deleted:
            statuses[name] = status
        fleet.append(
            fleet_model(
                mine,
                aliases=aliases.kept.get(name, ()),
                phase=status.phase,
                no_room=no_room,
                now_s=now_s,
            )
        )
    return statuses, tuple(fleet)
