"""Whether a ready replica still lives, from the health probes that it left unanswered.

answers                                            → ready
moves (processor time), no answer                  → ready: busy; after `unanswered_busy_s` → replaced
neither                                            → routers send it nothing; after `unanswered_tries` → replaced
"""

from __future__ import annotations

from flexinfer_operator.plan.view import Policy, ReplicaView

UNRESPONSIVE = "engine_unresponsive"


def is_silent(replica: ReplicaView) -> bool:
    """Return whether it neither answers nor moves: whoever can choose another one should."""
    silence = replica.silence
    return replica.state == "ready" and silence is not None and silence.still_tries > 0


def fault(replica: ReplicaView, policy: Policy) -> str:
    """Return why *replica* must be replaced, as what follows "the engine"; empty: it need not."""
    silence = replica.silence
    if replica.state != "ready" or silence is None or silence.tries < policy.unanswered_tries:
        return ""
    asked = f"left {silence.tries} health probes in {silence.lasted_s:.0f} s unanswered"
    if silence.still_tries >= policy.unanswered_tries:
        return f"{asked} and used no processor time meanwhile: it is frozen, or waits for ever"
    if silence.lasted_s >= policy.unanswered_busy_s:
        return f"{asked}, though it used processor time"
    return ""
