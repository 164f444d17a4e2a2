"""The lower bound of the divergence is one, whatever the distributions are."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexinfer_pipelines.validators.kl import (
    lower_bound,
    mean_lower_bound,
    same_top_rate,
    top_token,
)

weights = st.lists(st.floats(1e-6, 1.0), min_size=3, max_size=24)


def normal(numbers: list[float]) -> list[float]:
    total = sum(numbers)
    return [number / total for number in numbers]


def top(probabilities: list[float], count: int) -> dict[int, float]:
    ranked = sorted(range(len(probabilities)), key=lambda n: -probabilities[n])[:count]
    return {n: math.log(probabilities[n]) for n in ranked}


@given(weights, weights, st.integers(1, 24))
def test_the_bound_never_exceeds_the_truth(p: list[float], q: list[float], count: int) -> None:
    size = min(len(p), len(q))
    p, q = normal(p[:size]), normal(q[:size])
    truth = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    found = lower_bound(top(p, count), top(q, count))
    assert 0.0 <= found <= truth + 1e-9


@given(weights, st.integers(1, 24))
def test_equal_distributions_are_not_apart(p: list[float], count: int) -> None:
    known = top(normal(p), count)
    assert lower_bound(known, known) == 0.0


def test_all_tokens_known_is_the_divergence_itself() -> None:
    p, q = [0.5, 0.3, 0.2], [0.4, 0.4, 0.2]
    truth = 0.5 * math.log(0.5 / 0.4) + 0.3 * math.log(0.3 / 0.4)
    assert lower_bound(top(p, 3), top(q, 3)) == pytest.approx(truth, abs=1e-5)


def test_nothing_in_common_bounds_nothing() -> None:
    assert lower_bound({1: -0.1}, {2: -0.1}) == 0.0


def test_a_certain_token_that_the_other_thinks_rare_is_far() -> None:
    assert lower_bound({1: -0.001}, {1: -7.0, 2: -0.001}) > 6.0


def test_a_candidate_that_overshoots_one_by_rounding_leaves_almost_no_rest() -> None:
    # 0.9 · ln 0.9 + 0.1 · ln(0.1 / 1e-6): of the candidate's rest only the slack is left.
    found = lower_bound({1: math.log(0.9)}, {1: 1e-5})
    assert found == pytest.approx(1.05646, abs=1e-4)


def test_a_base_that_overshoots_one_by_rounding_has_no_rest() -> None:
    assert lower_bound({1: 1e-5}, {1: math.log(0.5)}) == pytest.approx(math.log(2), abs=1e-4)


def test_the_same_top_is_counted_per_context() -> None:
    base = [{1: -0.1, 2: -3.0}, {1: -0.5, 2: -0.9}]
    candidate = [{1: -0.2, 2: -3.0}, {1: -1.0, 2: -0.4}]
    assert same_top_rate(base, candidate) == 0.5
    assert mean_lower_bound(base, base) == 0.0


def test_the_mean_is_over_the_contexts() -> None:
    p, q = {1: math.log(0.5), 2: math.log(0.5)}, {1: math.log(0.25), 2: math.log(0.75)}
    # KL of (1/2, 1/2) from (1/4, 3/4) is ln(2/√3); of equal ones 0.
    found = mean_lower_bound([p, p], [q, p])
    assert found == pytest.approx(math.log(2 / math.sqrt(3)) / 2, abs=1e-5)


def test_of_equal_tokens_the_smallest_is_the_top() -> None:
    assert top_token({5: -1.0, 3: -1.0, 4: -2.0}) == 3
