"""What is told at the terminal: each thing once."""

from __future__ import annotations

from structlog.testing import capture_logs

from flexinfer.resources.model import ModelStatus
from flexinfer_operator.local.notices import announce
from flexinfer_operator.plan.status import SERVES_ON


def test_a_newer_revision_that_may_not_serve_is_told_once_though_the_phase_stays() -> None:
    before = ModelStatus(phase="Ready")
    refused = ModelStatus(phase="Ready", message=f"{SERVES_ON}no evidence")
    with capture_logs() as logs:
        announce("tiny", before, refused)
        announce("tiny", refused, refused)
        announce("tiny", refused, before)
    (one,) = logs
    assert (one["event"], one["human"]) == (
        "model_revision_refused",
        f"tiny: {SERVES_ON}no evidence",
    )
