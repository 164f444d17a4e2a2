"""Verdicts: the same numbers, the same answer, with both numbers in it."""

from __future__ import annotations

from typing import Any

import pytest

from flexinfer.artifact import evidence
from flexinfer.resources.entry import Validate
from flexinfer_pipelines.validators.divergence import Divergence
from flexinfer_pipelines.validators.judging import still_passes, validators
from flexinfer_pipelines.validators.smoke import Smoke, agrees
from flexinfer_pipelines.validators.structure import Structure

NAN = float("nan")
WHOLE = {
    "structure.missingTensors": 0,
    "structure.extraTensors": 0,
    "structure.changedShapes": 0,
    "structure.notFinite": 0,
    "structure.zeroTensors": 0,
}


def checks(**more: Any) -> Validate:
    return Validate.model_validate(more)


@pytest.mark.parametrize(
    ("same", "bound", "passes"),
    [
        (0.9, 0.1, True),
        (0.89, 0.1, False),
        (0.9, 0.11, False),
        (NAN, 0.0, False),
        (1.0, NAN, False),
    ],
)
def test_divergence_is_judged_at_its_thresholds(same: float, bound: float, passes: bool) -> None:
    measured = {"divergence.sameTop": same, "divergence.klLowerBound": bound}
    verdict = Divergence().judge(measured, checks(minSameTop=0.9, maxKlLowerBound=0.1))
    assert verdict.passes == passes
    assert verdict.thresholds == {"divergence.sameTop": 0.9, "divergence.klLowerBound": 0.1}


def test_a_failure_says_what_was_measured_and_what_was_wanted() -> None:
    measured = {"divergence.sameTop": 0.5625, "divergence.klLowerBound": 0.01}
    verdict = Divergence().judge(measured, checks(minSameTop=0.75))
    assert verdict.failures == ("divergence.sameTop is 0.5625, wanted at least 0.75",)


@pytest.mark.parametrize("name", sorted(WHOLE))
def test_a_file_that_is_not_whole_fails(name: str) -> None:
    assert Structure().judge(WHOLE, checks()).passes
    assert not Structure().judge({**WHOLE, name: 1}, checks()).passes


@pytest.mark.parametrize(
    ("answered", "agreement", "passes"),
    [(3, 1.0, True), (2, 1.0, False), (3, 0.34, False), (3, NAN, False)],
)
def test_smoke_wants_answers_that_agree(answered: int, agreement: float, passes: bool) -> None:
    measured = {"smoke.prompts": 3, "smoke.answered": answered, "smoke.agreement": agreement}
    assert Smoke().judge(measured, checks()).passes == passes


@pytest.mark.parametrize(("norm", "passes"), [(1.0, True), (0.0, False), (NAN, False)])
def test_an_embedding_must_be_something(norm: float, passes: bool) -> None:
    assert Smoke().judge({"smoke.embeddingNorm": norm}, checks()).passes == passes


@pytest.mark.parametrize(
    ("wanted", "given", "expected"),
    [
        ("The capital of France is Paris.", "paris, of course", True),
        ("Seven (7)", "7 days", True),
        ("The capital of France is Paris.", "I do not know", False),
        ("", "anything", True),
    ],
)
def test_answers_agree_by_a_telling_word(wanted: str, given: str, expected: bool) -> None:
    assert agrees(wanted, given) == expected


def test_cheap_validators_come_first_and_only_what_is_asked() -> None:
    asked = validators(checks(minSameTop=0.9), is_copy=False)
    assert [one.name for one in asked] == ["structure", "smoke", "footprint", "divergence"]
    fewer = validators(checks(smoke=False, footprint=False), is_copy=False)
    assert [one.name for one in fewer] == ["structure"]


def test_old_evidence_is_judged_by_the_thresholds_of_today() -> None:
    measured = {**WHOLE, "divergence.sameTop": 0.8, "divergence.klLowerBound": 0.2}
    result = evidence.TestResult(result="PASSED", passed=(), failed=(), measurements=measured)
    lenient = checks(smoke=False, footprint=False, minSameTop=0.8)
    strict = checks(smoke=False, footprint=False, minSameTop=0.81)
    unmeasured = checks(smoke=True, footprint=False)
    assert still_passes(result, lenient, is_copy=False)
    assert not still_passes(result, strict, is_copy=False)
    assert not still_passes(result, unmeasured, is_copy=False)
