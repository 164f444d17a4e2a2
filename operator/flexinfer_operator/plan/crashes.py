"""How long to wait after crashes: not at all after the first of one that served, then doubling, capped; forgotten
once a replica has proved stable."""

from __future__ import annotations

from collections.abc import Sequence

from flexinfer_operator.plan.view import Crash, ModelView, Policy

# A crash this many caps ago says nothing about the next start.
_MEMORY_IN_CAPS = 10


def current_crash(view: ModelView, revision: str) -> Crash | None:
    """Return the crash that still speaks of *revision*: none is newer, and nothing became ready after it."""
    for crash in reversed(view.crashes):
        if crash.revision == revision:
            is_past = view.last_ready_s is not None and view.last_ready_s > crash.at_s
            return None if is_past else crash
    return None


def retry_s(view: ModelView, revision: str, policy: Policy) -> float:
    """Return the instant before which *revision* is not started again; minus infinity where it never crashed."""
    crash = current_crash(view, revision)
    if crash is None:
        return float("-inf")
    return crash.at_s + _delay_s(view.crashes, revision, policy)


def _delay_s(crashes: Sequence[Crash], revision: str, policy: Policy) -> float:
    """Return the wait after the newest crash of *revision*."""
    mine = [crash for crash in crashes if crash.revision == revision]
    newest = mine[-1]
    if not newest.retryable:
        return policy.backoff_cap_s
    in_a_row = 0
    for crash in reversed(mine):
        if newest.at_s - crash.at_s > _MEMORY_IN_CAPS * policy.backoff_cap_s:
            break
        in_a_row += 1
        if crash.ready_for_s >= policy.stable_s:
            break
    if in_a_row == 1 and newest.ready_for_s > 0:
        return 0.0  # it did serve: who asks next is held through a start, not refused
    return float(min(policy.backoff_s * 2.0 ** min(in_a_row - 1, 30), policy.backoff_cap_s))
