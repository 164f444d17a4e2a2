"""How long to wait after crashes: not at all after the first of one that served, then doubling, capped; forgotten
once a replica has proved stable."""

from __future__ import annotations

from collections.abc import Sequence

from flexinfer_operator.plan.view import Crash, ModelView, Policy

# A crash this many caps ago says nothing about the next start.
_MEMORY_IN_CAPS = 10
# Deaths of one artifact's load that say more of the artifact, or of the machine, than of chance.
ALIKE_STARTS = 3


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


def words(view: ModelView, revision: str, policy: Policy) -> str:
    """Return what to say of the crash that still speaks of *revision*: what happened, how often, what follows."""
    crash = current_crash(view, revision)
    if crash is None:
        return ""
    said = [crash.message]
    alike = _alike(view, crash)
    if alike >= ALIKE_STARTS:
        said.append(
            f"the last {alike} starts ended like this, so its file, or too little memory for it, is the probable "
            "cause: see `flexinfer artifact verify` and `flexinfer doctor`"
        )
    delay_s = _delay_s(view.crashes, revision, policy)
    if delay_s > 0:
        said.append(f"where it is wanted it is started again after {delay_s:g} s")
    return "; ".join(said)


def _alike(view: ModelView, newest: Crash) -> int:
    """Return how many starts in a row, up to the *newest* one, died in the same way during the load."""
    alike = 0
    for crash in reversed(view.crashes):
        if (crash.revision, crash.code, crash.message, crash.ready_for_s) != (
            newest.revision,
            newest.code,
            newest.message,
            0.0,
        ):
            break
        alike += 1
    return alike


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
