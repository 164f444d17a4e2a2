"""What is shown of a Model: phase, conditions, figures. Reasons are those of the published contract, and some more."""

from __future__ import annotations

from datetime import UTC, datetime

from flexinfer.resources.model import (
    ArtifactStatus,
    ColdStartPhases,
    ColdStartStatus,
    Condition,
    ConditionType,
    ModelStatus,
    Phase,
)
from flexinfer_operator.plan import crashes
from flexinfer_operator.plan.crashes import current_crash
from flexinfer_operator.plan.gate import Check
from flexinfer_operator.plan.health import is_silent
from flexinfer_operator.plan.replicas import Decision, Facts
from flexinfer_operator.plan.view import Crash, ReplicaView

SERVES_ON = "the older revision serves on; of the newer one: "
# A status is not worth a write for each moment that a load moved.
_PROGRESS_STEP_S = 5.0
_ACTIVE_STEP_S = 10.0


def status_of(
    facts: Facts, decision: Decision, *, no_room: str, now_s: float, unix_offset_s: float
) -> ModelStatus:
    """Return the status of one Model. *no_room* says why it waits for a place; empty: it does not."""
    view, before = facts.view, facts.view.status
    ready = [r for r in facts.replicas if r.state == "ready" and r.draining is None]
    loading = [r for r in facts.replicas if r.state == "loading"]
    crash = current_crash(view, facts.revision)
    phase = phase_of(facts, ready=ready, loading=loading, crash=crash, no_room=no_room)
    serving = _serving_check(facts, phase, ready=ready, crash=crash, no_room=no_room)
    schedulable = facts.gate.schedulable
    if schedulable.status == "True" and no_room:
        schedulable = Check(status="False", reason="NoRoom", message=no_room)
    checks: dict[ConditionType, Check] = {
        "ConfigValid": facts.gate.config_valid,
        "Cached": facts.gate.cached,
        "Verified": facts.gate.verified,
        "Schedulable": schedulable,
        "Loaded": serving,
        "Ready": serving,
    }
    stamp = instant(now_s + unix_offset_s)
    progress_s = max((r.progress_s for r in loading), default=None)
    return ModelStatus(
        phase=phase,
        observed_generation=view.generation,
        replicas=sum(not is_silent(r) for r in ready),
        artifact=artifact_of(facts),
        conditions=tuple(_condition(kind, check, before, stamp) for kind, check in checks.items()),
        cold_start=_cold_start(facts),
        loading_substage=max(loading, key=lambda r: r.progress_s).substage if loading else "",
        loading_progress_at=_stepped(progress_s, unix_offset_s, _PROGRESS_STEP_S),
        last_active_time=_stepped(view.last_active_s, unix_offset_s, _ACTIVE_STEP_S)
        or (before.last_active_time if before is not None else ""),
        message=_message(facts, decision, phase, crash, no_room),
    )


def phase_of(
    facts: Facts,
    *,
    ready: list[ReplicaView],
    loading: list[ReplicaView],
    crash: Crash | None,
    no_room: str,
) -> Phase:
    """Return the phase; the first that applies, in the order of the code."""
    if ready:
        return "Ready"
    if loading:
        return "Loading"
    if not facts.gate.is_open:
        if facts.gate.schedulable.reason == "NoMatchingNodes":
            return "Pending"
        return "Pending" if facts.gate.failure is None else "Failed"
    if crash is not None:
        return "Failed"
    if no_room:
        return "Preempted" if facts.view.preempted_by else "Pending"
    return "Idle"


def instant(unix_s: float) -> str:
    """Return seconds since the epoch as RFC 3339 in UTC, to the second."""
    return datetime.fromtimestamp(int(unix_s), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _serving_check(
    facts: Facts, phase: Phase, *, ready: list[ReplicaView], crash: Crash | None, no_room: str
) -> Check:
    if any(not is_silent(r) for r in ready):
        return Check(status="True", reason="Ready")
    if ready:
        return Check(status="Unknown", reason="EngineUnresponsive", message=_silence(ready))
    match phase:
        case "Loading":
            return Check(status="False", reason="StartingBackend", message=_wait(facts.replicas))
        case "Preempted":
            message = f"made room for {facts.view.preempted_by}"
            return Check(status="False", reason="Preempted", message=message)
        case "Failed" if crash is not None and facts.gate.is_open:
            return Check(status="False", reason="BackendFailed", message=_crash(facts, crash))
        case "Idle":
            return Check(status="False", reason="WaitingForActivation")
    if no_room:
        return Check(status="False", reason="NoRoom", message=no_room)
    for check in (facts.gate.config_valid, facts.gate.cached, facts.gate.schedulable):
        if check.status != "True" and check.reason not in ("AliasConflict", "EditRefused"):
            return Check(status="False", reason=check.reason)
    return Check(status="False", reason=facts.gate.verified.reason)


def _crash(facts: Facts, crash: Crash) -> str:
    said = crashes.words(facts.view, facts.revision, facts.policy)
    return f"{said}; its last line: {crash.detail}" if crash.detail else said


def _wait(replicas: tuple[ReplicaView, ...]) -> str:
    """Return what a load waits for; empty: for nobody."""
    waits = (r.waits_for for r in replicas if r.state == "loading" and r.waits_for)
    return next((f"its start waits for {what}" for what in waits), "")


def _silence(silent: list[ReplicaView]) -> str:
    tries = max(r.silence.tries for r in silent if r.silence is not None)
    return f"the engine left {tries} health probes in a row unanswered; it is asked again, then replaced"


def _condition(
    kind: ConditionType, check: Check, before: ModelStatus | None, stamp: str
) -> Condition:
    old = next((c for c in before.conditions if c.type == kind), None) if before else None
    kept = old is not None and old.status == check.status and old.last_transition_time
    return Condition(
        type=kind,
        status=check.status,
        reason=check.reason,
        message=check.message,
        last_transition_time=old.last_transition_time if old is not None and kept else stamp,
    )


def artifact_of(facts: Facts) -> ArtifactStatus | None:
    """Return the artifact that answers, or that will: an older one while its replicas are the only ready ones."""
    bound, before = facts.view.bound, facts.view.status
    ready = {r.digest for r in facts.replicas if r.state == "ready"}
    shown = None if before is None else before.artifact
    if shown is not None and shown.digest in ready and bound.digest not in ready:
        return shown
    if not bound.digest:
        return None
    if not bound.is_cached and before is not None and before.artifact is not None:
        if before.artifact.digest == bound.digest:
            return before.artifact
    return ArtifactStatus(
        digest=bound.digest,
        reference=bound.reference,
        format=bound.format,
        quantization=bound.quantization,
        size_bytes=bound.size_bytes,
    )


def _cold_start(facts: Facts) -> ColdStartStatus | None:
    starts = facts.view.cold_starts
    if starts is None or starts.samples == 0:
        return None
    known = ColdStartPhases.model_fields
    phases = {name: round(value, 3) for name, value in starts.phases.items() if name in known}
    return ColdStartStatus(
        p50_seconds=round(starts.p50_s, 3),
        p95_seconds=round(starts.p95_s, 3),
        phases=ColdStartPhases(**phases),
    )


def _stepped(at_s: float | None, unix_offset_s: float, step_s: float) -> str:
    if at_s is None:
        return ""
    return instant((at_s + unix_offset_s) // step_s * step_s)


def _message(
    facts: Facts, decision: Decision, phase: Phase, crash: Crash | None, no_room: str
) -> str:
    if facts.gate.failure is not None:
        older = SERVES_ON if phase == "Ready" else ""
        return older + facts.gate.failure.message
    if wait := _wait(facts.replicas):
        return wait
    if crash is not None:
        return _crash(facts, crash)
    if facts.view.edit_fault:
        return f"the newest edit is refused, the last good one holds: {facts.view.edit_fault}"
    if no_room:
        return no_room
    if silent := [r for r in facts.replicas if is_silent(r)]:
        return _silence(silent)
    if phase == "Pending" or facts.gate.cached.status == "False":
        return facts.gate.cached.message
    if facts.gate.config_valid.reason == "AliasConflict":
        return facts.gate.config_valid.message
    return ""
