"""May a Model run at all? What its source is bound to, its config, its evidence, and what follows when one fails.

The first that applies, in this order:
    1. no such engine here, or the config has keys that it does not know    → Failed
    2. the source names nothing                                             → Failed
    3. its bytes are not all here   a build is due or runs → Pending; one failed and the next is not due → Failed,
       and tried again: a few times, or for ever where the failure may pass by itself
    4. the engine does not load the format                                  → Failed
    5. no machine of the wanted kind                                        → Pending
    6. the evidence that `spec.quality` asks for is missing                 → Failed
    7. open
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from flexinfer.artifact.evidence import judge
from flexinfer.fleet import Failure
from flexinfer_operator.plan.view import Builds, ModelView, Policy


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One condition's value."""

    status: Literal["True", "False", "Unknown"]
    reason: str
    message: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    config_valid: Check
    cached: Check
    verified: Check
    schedulable: Check
    failure: Failure | None = None
    """Set where nothing but a change, or a later try (`retry_after_s`), helps."""
    wants_build: bool = False
    again_s: float | None = None
    """The instant from which a build is tried again."""

    @property
    def is_open(self) -> bool:
        checks = (self.config_valid, self.cached, self.verified, self.schedulable)
        return all(check.status == "True" or check.reason in _HARMLESS for check in checks)


# These say that something is wrong and do not keep the Model from running.
_HARMLESS = ("AliasConflict", "EditRefused", "StampChanged")
_YES = Check(status="True", reason="Accepted")
_ASKED_LATER = Check(status="Unknown", reason="CacheNotReady", message="the artifact is not here")


def judge_model(view: ModelView, *, policy: Policy, alias_conflict: str, now_s: float) -> Gate:
    """Return what keeps *view* from running. *alias_conflict* says which alias is another Model's; empty: none."""
    config = _config(view, alias_conflict)
    schedulable, machine_failure = _schedulable(view, policy)
    cached, cache_failure, wants_build, again_s = _cached(view, policy, now_s)
    verified, evidence_failure = _verified(view, cached)
    failures = (_config_failure(view), cache_failure, machine_failure, evidence_failure)
    return Gate(
        config_valid=config,
        cached=cached,
        verified=verified,
        schedulable=schedulable,
        failure=next((failure for failure in failures if failure is not None), None),
        wants_build=wants_build and _config_failure(view) is None,
        again_s=again_s,
    )


def _config(view: ModelView, alias_conflict: str) -> Check:
    failure = _config_failure(view)
    if failure is not None:
        return Check(status="False", reason=_config_reason(view), message=failure.message)
    if view.edit_fault:
        return Check(status="False", reason="EditRefused", message=view.edit_fault)
    if alias_conflict:
        return Check(status="False", reason="AliasConflict", message=alias_conflict)
    return _YES


def _config_reason(view: ModelView) -> str:
    if view.engine.fault is not None:
        is_config = view.engine.fault.code in ("config_invalid", "context_too_long")
        return "ConfigInvalid" if is_config else "BackendUnsupported"
    return "ConfigInvalid" if view.engine.problems else "SourceInvalid"


def _config_failure(view: ModelView) -> Failure | None:
    if view.engine.fault is not None:
        return view.engine.fault
    if view.engine.problems:
        return Failure(code="config_invalid", message="; ".join(view.engine.problems))
    return view.bound.fault


def _cached(
    view: ModelView, policy: Policy, now_s: float
) -> tuple[Check, Failure | None, bool, float | None]:
    bound = view.bound
    if bound.is_cached:
        return Check(status="True", reason="Cached"), None, False, None
    if bound.fault is not None:
        return Check(status="Unknown", reason="SourceInvalid"), None, False, None
    if bound.unreadable is not None:
        check = Check(status="Unknown", reason="StoreUnreadable", message=bound.unreadable.message)
        return check, bound.unreadable, False, None
    what = bound.damage or f"nothing is published as {bound.reference}"
    failures = view.builds.failures
    said, detail = _last_failure(view.builds)
    if view.builds.is_running:
        behind = view.builds.behind
        now = f"it is built after {behind}" if behind else "it is being built"
        check = Check(
            status="False", reason="CacheNotReady", message=f"{what}: {now}{said}{detail}"
        )
        return check, None, False, None
    is_spent = bool(bound.damage) and any(one.is_wrong for one in failures)
    if is_spent or sum(not one.is_passing for one in failures) >= policy.build_tries:
        code = "digest_mismatch" if bound.damage else "build_failed"
        last = "; it is built again by `flexinfer build`, after an edit of its spec, or when the operator starts anew"
        failure = Failure(code=code, message=what + said + last)
        check = Check(status="False", reason="BuildFailed", message=what + said + detail + last)
        return check, failure, False, None
    again_s = next_build_s(view.builds, policy)
    if again_s <= now_s:
        return (
            Check(status="False", reason="CacheNotReady", message=what + said + detail),
            None,
            True,
            None,
        )
    pause = f"; it is built again {_build_pause_s(view.builds, policy):g} s after that"
    # Nobody is held: the next build may be minutes away, and takes a while itself.
    failure = Failure(
        code="build_failed", message=what + said + pause, retry_after_s=again_s - now_s
    )
    check = Check(status="False", reason="BuildFailed", message=what + said + detail + pause)
    return check, failure, False, again_s


def _last_failure(builds: Builds) -> tuple[str, str]:
    """Return what to say of the last build that failed, and what of it is not for clients; both empty: none did."""
    if not builds.failures:
        return "", ""
    last = builds.failures[-1]
    return f"; the last build failed: {last.message}", f" ({last.detail})" if last.detail else ""


def next_build_s(builds: Builds, policy: Policy) -> float:
    """Return the instant before which no build is tried again."""
    if not builds.failures:
        return float("-inf")
    return builds.failures[-1].at_s + _build_pause_s(builds, policy)


def _build_pause_s(builds: Builds, policy: Policy) -> float:
    """Return how long after a failure the next build may begin: four times longer each time, bounded."""
    steps = min(len(builds.failures) - 1, 16)
    return min(policy.build_backoff_s * 4.0**steps, policy.build_backoff_cap_s)


def _schedulable(view: ModelView, policy: Policy) -> tuple[Check, Failure | None]:
    bound, gpu = view.bound, view.model.spec.gpu
    if bound.is_cached and view.engine.formats and bound.format not in view.engine.formats:
        message = (
            f"{view.model.spec.backend} loads {', '.join(sorted(view.engine.formats))}; "
            f"the artifact is {bound.format}"
        )
        check = Check(status="False", reason="BackendUnsupported", message=message)
        return check, Failure(code="backend_unsupported", message=message)
    if gpu.vendor not in policy.vendors and gpu.vendor != "auto":
        message = (
            f"spec.gpu.vendor is {gpu.vendor}; found here: {', '.join(sorted(policy.vendors))}"
        )
        check = Check(status="False", reason="NoMatchingNodes", message=message)
        return check, Failure(code="no_matching_nodes", message=message)
    return _YES, None


def _verified(view: ModelView, cached: Check) -> tuple[Check, Failure | None]:
    if cached.status != "True":
        return _ASKED_LATER, None
    verdict = judge(view.model.spec.quality, view.bound.evidence)
    if verdict.passes:
        if view.bound.doubt:
            # A start hashes what was touched, so nothing wrong is ever loaded; until then nobody knows.
            return Check(status="Unknown", reason="StampChanged", message=view.bound.doubt), None
        return Check(status="True", reason="EvidenceAccepted"), None
    message = f"{view.bound.digest}: {'; '.join(verdict.missing)}"
    check = Check(status="False", reason="EvidenceMissing", message=message)
    return check, Failure(code="evidence_missing", message=message)
