"""What a person at the terminal is told when a Model's phase changes."""

from __future__ import annotations

from flexinfer.log import get_logger
from flexinfer.resources.model import ModelStatus
from flexinfer_operator.plan.status import SERVES_ON
from flexinfer_operator.plan.view import Crash

log = get_logger(__name__)


def announce(name: str, before: ModelStatus | None, after: ModelStatus) -> None:
    """Log a change of phase, a new clash of aliases, a new revision that may not serve; all else is silent."""
    clash = _clash(after)
    if clash and clash != _clash(before):
        human = f"{name}: {clash}: it is not called that"
        log.warning("model_alias_taken", model=name, error=clash, human=human)
    old = None if before is None else before.phase
    if after.message.startswith(SERVES_ON) and (before is None or before.message != after.message):
        human = f"{name}: {after.message}"
        log.warning("model_revision_refused", model=name, error=after.message, human=human)
    if after.phase == old:
        return
    human = _sentence(name, before, after)
    fields = {"model": name, "phase": after.phase, "before": old, "message": after.message}
    if human:
        fields["human"] = human
    if after.phase == "Failed":
        log.warning("model_phase_changed", **fields)
    else:
        log.info("model_phase_changed", **fields)


def _clash(status: ModelStatus | None) -> str:
    conditions = () if status is None else status.conditions
    return next((one.message for one in conditions if one.reason == "AliasConflict"), "")


def _sentence(name: str, before: ModelStatus | None, after: ModelStatus) -> str:
    match after.phase:
        case "Loading":
            return f"{name}: loading"
        case "Ready":
            return f"{name}: ready"
        case "Idle":
            return f"{name}: idle, its engine is stopped" if before is not None else ""
        case "Preempted":
            return f"{name}: made room for another model"
        case "Failed":
            return f"{name}: failed: {after.message}"
        case "Pending":
            return f"{name}: waiting: {after.message}"


def announce_refusal(fault: str, has_old_state: bool) -> None:
    """Log that a Model's file is refused; *fault* names file, line and column."""
    words = "refused, the old state stays" if has_old_state else "refused"
    log.warning("model_edit_refused", error=fault, human=f"{words}: {fault}")


def announce_failure(replica: str, model: str, crash: Crash) -> None:
    """Log that an engine which runs is taken for failed, and ended."""
    human = f"{model}: {crash.message}; it is ended, and started again when it is wanted"
    log.warning("replica_given_up", replica=replica, model=model, code=crash.code, human=human)


def announce_end(replica: str, model: str, crash: Crash | None) -> None:
    """Log that nothing is left of a replica, and why where nobody asked for it."""
    if crash is None:
        log.info("replica_stopped", replica=replica, model=model)
    else:
        fields = {"code": crash.code, "error": crash.message, "last_line": crash.detail}
        log.warning("replica_failed", replica=replica, model=model, **fields)
