"""The retry budget: retries are a share of traffic, whatever came before."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from flexinfer_serving.admission.budget import ALLOWANCE, SHARE, RetryBudget


def spend(budget: RetryBudget) -> int:
    """Take retries until there are none left; return how many there were."""
    count = 0
    while budget.take():
        count += 1
        assert count <= 10_000, "endless"
    return count


def test_a_quiet_router_may_retry_its_allowance_and_then_one_for_five_requests() -> None:
    budget = RetryBudget()
    assert spend(budget) == ALLOWANCE
    for _ in range(50):
        budget.arrived()
    assert spend(budget) in (9, 10)  # a fifth of 50, but for rounding


def test_a_day_of_good_traffic_saves_up_no_more_than_the_allowance() -> None:
    budget = RetryBudget()
    for _ in range(100_000):
        budget.arrived()
    assert spend(budget) == ALLOWANCE


@given(st.lists(st.booleans(), max_size=300))
def test_retries_never_exceed_the_allowance_and_a_share_of_the_requests(
    events: list[bool],
) -> None:
    budget = RetryBudget()
    requests = retries = 0
    for is_request in events:
        if is_request:
            budget.arrived()
            requests += 1
        else:
            retries += budget.take()
    assert retries <= ALLOWANCE + SHARE * requests
