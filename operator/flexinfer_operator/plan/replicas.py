"""One Model's replicas: how many it wants, and what becomes of those that it has.

In this order, for each replica that is not already stopping:
    1. loading: no progress for `loadStallTimeout` → stop, as failed; of an old revision, or of a deleted Model → stop
    2. ready: gives no sign of life (`health`) → stop, as failed; not draining: deleted, its bytes or evidence
       refused → drain
    3. draining: wanted again → take back; acknowledged by every router, or `drainTimeout` → stop
    4. old revision: as many new ones are ready → drain
    5. idle for `idleTimeout`, and without it `minReplicas` are ready and answer → drain
What is kept for `minReplicas` counts as in use: an old revision is then followed by a new one, idle or not.
While nobody can say what the source is bound to, nothing counts as of an old revision.
A start is only wished for here; whether there is room is decided for all Models together (`room`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from flexinfer_operator.plan import health
from flexinfer_operator.plan.action import Drain, Stop, Undrain
from flexinfer_operator.plan.crashes import current_crash, retry_s
from flexinfer_operator.plan.demand import Demand, is_acknowledged
from flexinfer_operator.plan.gate import Gate
from flexinfer_operator.plan.view import LeaseView, ModelView, Policy, ReplicaView, RouterView

NEVER = float("-inf")


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """One Model with everything that is decided about it before its replicas are looked at."""

    view: ModelView
    gate: Gate
    revision: str
    demand: Demand
    replicas: tuple[ReplicaView, ...]
    leases: tuple[LeaseView, ...]
    routers: tuple[RouterView, ...]
    policy: Policy
    has_spare_place: bool = True
    """Whether one more engine may exist."""

    @property
    def minimum(self) -> int:
        serverless = self.view.model.spec.serverless
        if self.view.is_deleted:
            return 0
        return serverless.min_replicas if serverless.enabled else max(1, serverless.min_replicas)

    @property
    def maximum(self) -> int:
        return max(self.view.model.spec.serverless.max_replicas, self.minimum, 1)

    def is_fresh(self, replica: ReplicaView) -> bool:
        return replica.revision == self.revision and not self.view.is_deleted

    def is_outdated(self, replica: ReplicaView) -> bool:
        """Return whether the spec, or what its source is bound to, is known to be another by now."""
        bound = self.view.bound
        is_known = bound.unreadable is None and bound.fault is None
        return is_known and replica.revision != self.revision


@dataclass(slots=True, kw_only=True)
class Decision:
    """What one Model wants. `timers` are instants at which it must be looked at again."""

    actions: list[Drain | Undrain | Stop] = field(default_factory=list)
    timers: list[float] = field(default_factory=list)
    wants_start: bool = False
    is_urgent: bool = False
    """Somebody waits for it."""
    replaces: str = ""
    """The ready replica of an old revision that the wished one is to follow, and whose place it may take."""
    wanted: int = 0
    why: str = ""

    def touched(self) -> set[str]:
        return {action.replica for action in self.actions if isinstance(action, (Drain, Stop))}


def decide(facts: Facts, *, now_s: float, needy: frozenset[str]) -> Decision:
    """Return what becomes of a Model's replicas. *needy* names the Models that wait for room."""
    out = Decision()
    _end_failed_and_refused(facts, out, now_s)
    out.wanted = _wanted(facts, out, now_s)
    _settle_draining(facts, out, now_s, needy)
    _wish_for_start(facts, out, now_s)
    _replace_old(facts, out)
    _drain_idle(facts, out, now_s)
    if facts.demand.is_busy or _draining(facts):
        out.timers += [view.expires_s for view in facts.leases]
    out.why = out.why or _summary(facts, out)
    return out


def _end_failed_and_refused(facts: Facts, out: Decision, now_s: float) -> None:
    view, name = facts.view, facts.view.name
    stall_s = view.model.spec.serverless.load_stall_timeout
    refused = _refusal(facts)
    for replica in facts.replicas:
        if replica.state == "loading":
            deadline_s = replica.progress_s + stall_s
            if view.is_deleted or facts.is_outdated(replica) or refused:
                why = refused or (
                    "the Model was deleted" if view.is_deleted else "the spec changed"
                )
                out.actions.append(Stop(model=name, replica=replica.id, why=why))
            elif deadline_s <= now_s:
                why = f"no progress for {stall_s:g} s"
                out.actions.append(
                    Stop(model=name, replica=replica.id, why=why, failed_as="load_stalled")
                )
            else:
                out.timers.append(deadline_s)
        elif why := health.fault(replica, facts.policy):
            # Whoever has a request there gets no answer from it: draining would only make them wait.
            out.actions.append(
                Stop(model=name, replica=replica.id, why=why, failed_as=health.UNRESPONSIVE)
            )
        elif replica.state == "ready" and replica.draining is None:
            if view.is_deleted:
                out.actions.append(
                    Drain(model=name, replica=replica.id, why="the Model was deleted")
                )
            elif refused and replica.digest == view.bound.digest:
                out.actions.append(Drain(model=name, replica=replica.id, why=refused))


def _refusal(facts: Facts) -> str:
    """Return why replicas of the bound digest must not serve; empty where they may."""
    if facts.view.bound.damage:
        return facts.view.bound.damage
    verified = facts.gate.verified
    return verified.message if verified.status == "False" else ""


def _wanted(facts: Facts, out: Decision, now_s: float) -> int:
    """Return how many replicas the demand and the spec want, before idle ones are let go."""
    if facts.view.is_deleted:
        return 0
    demand, policy = facts.demand, facts.policy
    wanted = max(facts.minimum, 1 if demand.waiting else 0)
    ready = [r for r in _serving(facts, out) if r.state == "ready" and r.ready_s is not None]
    limits = facts.view.engine.limits
    if ready and demand.waiting and limits is not None:
        needed = min(math.ceil(demand.total / max(limits.slots, 1)), facts.maximum)
        if needed > len(ready):
            newest_s = max(r.ready_s for r in ready if r.ready_s is not None)
            waited_since_s = now_s - demand.oldest_wait_s
            due_s = max(newest_s, waited_since_s) + policy.scale_up_wait_s
            if due_s <= now_s:
                wanted = max(wanted, len(ready) + 1)
            else:
                out.timers.append(due_s)
    return min(wanted, facts.maximum)


def _settle_draining(facts: Facts, out: Decision, now_s: float, needy: frozenset[str]) -> None:
    name = facts.view.name
    missing = out.wanted - len([r for r in _serving(facts, out) if facts.is_fresh(r)])
    for replica in sorted(_draining_left(facts, out), key=lambda r: r.id):
        draining = replica.draining
        assert draining is not None
        may_serve = facts.is_fresh(replica) and facts.gate.is_open
        if draining.for_model:
            wanted_again = may_serve and draining.for_model not in needy
        else:
            wanted_again = may_serve and missing > 0
        if wanted_again:
            missing -= 1
            why = "the room is no longer needed" if draining.for_model else "a request came"
            out.actions.append(Undrain(model=name, replica=replica.id, why=why))
            continue
        limit_s = _drain_limit_s(facts, replica, needy)
        deadline_s = draining.since_s + limit_s
        if is_acknowledged(replica, facts.leases, facts.routers, now_s=now_s):
            out.actions.append(Stop(model=name, replica=replica.id, why="drained"))
        elif deadline_s <= now_s:
            why = f"not drained after {limit_s:.0f} s"
            out.actions.append(Stop(model=name, replica=replica.id, why=why))
        else:
            out.timers.append(deadline_s)


def _drain_limit_s(facts: Facts, replica: ReplicaView, needy: frozenset[str]) -> float:
    """Return how long its running requests have: many times longer where that costs nobody anything."""
    short_s = facts.policy.drain_timeout_s
    is_only_old = facts.view.is_deleted or facts.is_outdated(replica)
    is_awaited = bool(needy) and not facts.has_spare_place
    if not is_only_old or is_awaited or _refusal(facts):
        return short_s
    return max(short_s, facts.policy.drain_limit_s)


def _wish_for_start(facts: Facts, out: Decision, now_s: float) -> None:
    if facts.view.is_deleted or not facts.gate.is_open:
        return
    serving = _serving(facts, out)
    fresh = [r for r in serving if facts.is_fresh(r)]
    old = _old_in_use(facts, serving, now_s)
    taken_back = sum(isinstance(action, Undrain) for action in out.actions)
    # A replica of an old revision that is still in use is followed by a new one, whether or not anyone asks now.
    wanted = max(out.wanted, min(len(old), facts.maximum))
    out.wanted = wanted
    is_loading = any(r.state == "loading" for r in facts.replicas if r.revision == facts.revision)
    if len(fresh) + taken_back >= wanted or is_loading:
        return
    if any(isinstance(action, Stop) and action.failed_as for action in out.actions):
        return  # the failure is in the next picture, with its back-off
    again_s = retry_s(facts.view, facts.revision, facts.policy)
    if again_s > now_s:
        out.why = f"tried again in {again_s - now_s:.0f} s"
        return
    out.wants_start = True
    out.is_urgent = facts.demand.waiting > 0
    if old and not _is_leaving(facts, out) and current_crash(facts.view, facts.revision) is None:
        # Not for a place that is about to be free anyway, nor for a revision that has failed.
        out.replaces = min(old, key=lambda r: (facts.demand.in_flight.get(r.id, 0), r.id)).id


def _old_in_use(facts: Facts, serving: list[ReplicaView], now_s: float) -> list[ReplicaView]:
    """Return the replicas of an old revision but for idle ones that `minReplicas` does not need."""
    old = [r for r in serving if not facts.is_fresh(r)]
    idle = sorted((r for r in old if _is_idle(facts, r, now_s)), key=lambda r: (_active_s(r), r.id))
    spare = max(sum(_answers(r) for r in serving) - facts.minimum, 0)
    return [r for r in old if r not in idle[:spare]]


def _replace_old(facts: Facts, out: Decision) -> None:
    if facts.view.is_deleted:
        return
    serving = _serving(facts, out)
    ready = [r for r in serving if facts.is_fresh(r) and _answers(r)]
    old = [r for r in serving if not facts.is_fresh(r) and r.state == "ready"]
    spare = len(ready) + len(old) - max(out.wanted, 1)
    if not ready:
        return
    old.sort(key=lambda r: (_answers(r), facts.demand.in_flight.get(r.id, 0), r.id))
    for replica in old[: max(spare, 0)]:
        out.actions.append(
            Drain(model=facts.view.name, replica=replica.id, why="a newer revision is ready")
        )


def _drain_idle(facts: Facts, out: Decision, now_s: float) -> None:
    view = facts.view
    if view.is_deleted or facts.demand.waiting:
        return
    ready = [r for r in _serving(facts, out) if r.state == "ready"]
    # One that loads may never answer: nothing is let go for its sake.
    answering = sum(_answers(r) for r in ready)
    fresh_left = sum(facts.is_fresh(r) for r in ready)
    idle = [r for r in ready if not facts.demand.in_flight.get(r.id, 0)]
    for replica in sorted(idle, key=lambda r: (_active_s(r), r.id)):
        others = answering - _answers(replica)
        if others < facts.minimum or (not others and facts.demand.is_busy):
            continue
        idle_at_s = _idle_at_s(facts, replica, is_last=not others)
        if facts.is_fresh(replica) and fresh_left > facts.maximum:
            why = f"above maxReplicas {facts.maximum}"
        elif idle_at_s <= now_s:
            why = f"idle for {view.model.spec.serverless.idle_timeout:g} s"
        else:
            out.timers.append(idle_at_s)
            continue
        answering = others
        fresh_left -= facts.is_fresh(replica)
        out.actions.append(Drain(model=view.name, replica=replica.id, why=why))


def _answers(replica: ReplicaView) -> bool:
    return replica.state == "ready" and not health.is_silent(replica)


def _is_idle(facts: Facts, replica: ReplicaView, now_s: float) -> bool:
    return (
        replica.state == "ready"
        and not facts.demand.is_busy
        and _idle_at_s(facts, replica, is_last=True) <= now_s
    )


def _idle_at_s(facts: Facts, replica: ReplicaView, *, is_last: bool) -> float:
    """Return when *replica* has been idle for long enough. The last one also waits for the Model as a whole."""
    active_s = _active_s(replica)
    if is_last and facts.view.last_active_s is not None:
        active_s = max(active_s, facts.view.last_active_s)
    return active_s + facts.view.model.spec.serverless.idle_timeout


def _serving(facts: Facts, out: Decision) -> list[ReplicaView]:
    """Return the replicas that take requests or will, after what is already decided."""
    gone = out.touched()
    return [
        r
        for r in facts.replicas
        if r.state != "stopping" and r.draining is None and r.id not in gone
    ]


def _is_leaving(facts: Facts, out: Decision) -> bool:
    """Return whether one of its replicas is about to be gone."""
    gone = out.touched()
    return any(
        r.state == "stopping" or r.draining is not None or r.id in gone for r in facts.replicas
    )


def _draining(facts: Facts) -> list[ReplicaView]:
    return [r for r in facts.replicas if r.draining is not None and r.state != "stopping"]


def _draining_left(facts: Facts, out: Decision) -> list[ReplicaView]:
    gone = out.touched()
    return [r for r in _draining(facts) if r.id not in gone]


def _active_s(replica: ReplicaView) -> float:
    started_s = replica.created_s if replica.ready_s is None else replica.ready_s
    return max(started_s, NEVER if replica.last_active_s is None else replica.last_active_s)


def _summary(facts: Facts, out: Decision) -> str:
    if facts.gate.failure is not None:
        return facts.gate.failure.message
    if out.actions:
        return "; ".join(f"{one.replica}: {one.why}" for one in out.actions)
    demand = facts.demand
    return (
        f"{demand.waiting} waiting, {sum(demand.in_flight.values())} in flight, "
        f"{out.wanted} wanted, {len(facts.replicas)} there"
    )
