"""Which evidence is enough."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexinfer.artifact.evidence import (
    KL_LOWER_BOUND,
    SAME_TOP,
    BaseEvidence,
    TestResult,
    judge,
    parse_test_result,
)
from flexinfer.errors import IntegrityError
from flexinfer.resources.model import Quality

STRICT = Quality(require="attestation", min_same_top=0.9, max_kl_lower_bound=0.1)


def result(same_top: object = 0.95, kl: object = 0.01, **fields: object) -> TestResult:
    measured = {SAME_TOP: same_top, KL_LOWER_BOUND: kl}
    given = {"result": "PASSED", "passed": ("divergence",), "failed": ()} | fields
    measurements = {name: value for name, value in measured.items() if value is not None}
    return TestResult(measurements=measurements, **given)  # type: ignore[arg-type]  # wrong ones too


def test_a_result_that_holds_everything_is_enough() -> None:
    assert judge(STRICT, [result()]).passes


def test_nothing_is_asked_by_default() -> None:
    assert judge(Quality(), []).passes


def test_no_evidence_is_not_enough_where_some_is_asked() -> None:
    assert judge(Quality(require="attestation"), []).missing == (
        "expected a test result that passed, found none",
    )
    assert not judge(Quality(min_same_top=0.5), []).passes


def test_a_failed_result_counts_for_nothing() -> None:
    verdict = judge(STRICT, [result(result="FAILED", failed=("smoke",))])
    assert verdict.missing == ("expected a test result that passed, found 1 that did not pass",)


def test_a_worse_number_is_named_with_its_limit() -> None:
    assert judge(STRICT, [result(same_top=0.5)]).missing == (f"{SAME_TOP} 0.5000 is below 0.9000",)
    assert judge(STRICT, [result(kl=0.2)]).missing == (f"{KL_LOWER_BOUND} 0.2000 is above 0.1000",)


def test_the_limits_themselves_pass() -> None:
    assert judge(STRICT, [result(same_top=0.9, kl=0.1)]).passes


def test_numbers_of_two_runs_are_never_put_together() -> None:
    halves = [result(same_top=0.99, kl=0.5), result(same_top=0.1, kl=0.001)]
    assert not judge(STRICT, halves).passes


@pytest.mark.parametrize("value", [None, math.nan, math.inf, True, "0.95"])
def test_what_is_no_number_never_passes(value: object) -> None:
    assert judge(STRICT, [result(same_top=value)]).missing == (
        f"expected {SAME_TOP}, found no measurement of it",
    )


SHARES = st.floats(0, 1)


@given(st.lists(st.tuples(SHARES, SHARES), max_size=4), st.tuples(SHARES, SHARES))
def test_a_result_that_does_not_pass_alone_never_helps(
    others: list[tuple[float, float]], one: tuple[float, float]
) -> None:
    results = [result(*pair) for pair in others]
    if judge(STRICT, [result(*one)]).passes:
        return
    assert judge(STRICT, [*results, result(*one)]).passes == any(
        judge(STRICT, [r]).passes for r in results
    )


def test_a_predicate_is_read_as_it_was_written() -> None:
    base = BaseEvidence(digest="sha256:" + "0" * 64, quantization="Q4_1", source="pypi://x==1/y")
    one = result(
        base=base, thresholds={SAME_TOP: 0.9}, engine="llamacpp 1", configuration=({"name": "r"},)
    )
    assert parse_test_result(one.to_predicate()) == one


@pytest.mark.parametrize(
    "predicate",
    [
        {},
        {"result": "GREAT", "passedTests": [], "failedTests": []},
        {"result": "PASSED", "passedTests": 1},
    ],
)
def test_a_predicate_of_another_shape_is_refused(predicate: dict[str, object]) -> None:
    with pytest.raises(IntegrityError) as caught:
        parse_test_result(predicate)
    assert caught.value.code == "evidence_invalid"
