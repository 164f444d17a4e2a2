"""What routers are told of a Model."""

from __future__ import annotations

from flexinfer.fleet import ColdStart, Failure, FleetModel, FleetReplica, ReplicaPhase
from flexinfer_operator.plan.crashes import current_crash, retry_s, words
from flexinfer_operator.plan.health import is_silent
from flexinfer_operator.plan.replicas import Facts
from flexinfer_operator.plan.status import artifact_of
from flexinfer_operator.plan.view import ReplicaView


def fleet_model(
    facts: Facts, *, aliases: tuple[str, ...], phase: str, no_room: str, now_s: float
) -> FleetModel:
    """Return one Model as routers shall serve it. *no_room* says why it waits for a place; empty: it does not."""
    view, spec = facts.view, facts.view.model.spec
    limits = view.engine.limits
    starts = view.cold_starts
    artifact = artifact_of(facts)
    return FleetModel(
        name=view.name,
        aliases=() if view.is_deleted else aliases,
        backend=spec.backend,
        endpoints=view.engine.endpoints,
        strategy=view.model.strategy,
        phase=phase,
        context_tokens=0 if limits is None else limits.context_tokens,
        slots=1 if limits is None else limits.slots,
        created_unix_s=view.created_unix_s,
        cold_start_timeout_s=spec.serverless.cold_start_timeout,
        scales_from_zero=not view.is_deleted,
        is_deleted=view.is_deleted,
        cold_start=ColdStart()
        if starts is None or not starts.samples
        else ColdStart(p50_s=starts.p50_s, p95_s=starts.p95_s, samples=starts.samples),
        replicas=_replicas(facts),
        failure=_failure(facts, now_s),
        waits_for=_waits_for(facts, no_room),
        artifact_digest="" if artifact is None else artifact.digest,
        quantization="" if artifact is None else artifact.quantization,
    )


def _replicas(facts: Facts) -> tuple[FleetReplica, ...]:
    return tuple(
        FleetReplica(
            id=replica.id,
            url=replica.url,
            key=replica.key,
            phase=_phase(replica),
            substage=_substage(replica),
        )
        for replica in sorted(facts.replicas, key=lambda r: r.id)
        if replica.state != "stopping"
    )


def _phase(replica: ReplicaView) -> ReplicaPhase:
    if replica.draining is not None:
        return "draining"
    # One that gives no sign of life is not up: requests go to another one, or are held until it answers or is replaced.
    return "ready" if replica.state == "ready" and not is_silent(replica) else "loading"


def _substage(replica: ReplicaView) -> str:
    if is_silent(replica):
        return "Unresponsive"
    return replica.substage if replica.state == "loading" else ""


def _failure(facts: Facts, now_s: float) -> Failure | None:
    """Return why nothing can be served now. A replica that is up, or on its way, is no failure."""
    if any(r.state != "stopping" and r.draining is None for r in facts.replicas):
        return None
    if facts.gate.failure is not None:
        return facts.gate.failure
    crash = current_crash(facts.view, facts.revision)
    again_s = retry_s(facts.view, facts.revision, facts.policy)
    if crash is None or again_s <= now_s:
        return None
    message = words(facts.view, facts.revision, facts.policy)
    return Failure(code=crash.code, message=message, retry_after_s=again_s - now_s)


def _waits_for(facts: Facts, no_room: str) -> str:
    builds = facts.view.builds
    if builds.is_running and not facts.view.bound.is_cached:
        return "its build, which comes after another" if builds.behind else "its build"
    return f"a place ({no_room})" if no_room else ""
