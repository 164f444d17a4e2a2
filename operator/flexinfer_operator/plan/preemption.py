"""Whom a Model's last replica made room for, so that one that waits for a place says why: for every kind of cluster.

A replica that becomes ready ends it as well.
"""

from __future__ import annotations

from flexinfer_operator.plan.action import Start, Stop
from flexinfer_operator.plan.view import Draining


def preempted_by(action: Start | Stop, draining: Draining | None) -> str:
    """Return the Model that waits for the room that *action* makes; empty: none does.

    draining: what the replica that is stopped is drained for.
    """
    if isinstance(action, Start) or draining is None:
        return ""
    return draining.for_model
