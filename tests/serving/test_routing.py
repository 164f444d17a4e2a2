"""The contract of every strategy, and what least-loaded promises."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexinfer_serving.routing import STRATEGIES, Candidate, Route
from flexinfer_serving.routing.least_loaded import LeastLoaded

CANDIDATES = st.lists(
    st.builds(
        Candidate,
        replica=st.sampled_from("abcdefgh"),
        in_flight=st.integers(0, 3),
        slots=st.integers(4, 8),
        last_picked=st.integers(0, 99),
    ),
    min_size=1,
    max_size=8,
    unique_by=lambda candidate: candidate.replica,
)


@pytest.mark.parametrize("name", STRATEGIES.names())
@given(candidates=CANDIDATES, session=st.text(max_size=5))
def test_a_strategy_picks_one_of_its_candidates_and_the_same_one_again(
    name: str, candidates: list[Candidate], session: str
) -> None:
    strategy = STRATEGIES.get(name)()
    choice = strategy.pick(candidates, Route(session=session))
    assert choice.replica in {candidate.replica for candidate in candidates}
    assert choice.why
    assert STRATEGIES.get(name)().pick(candidates, Route(session=session)) == choice


@given(candidates=CANDIDATES)
def test_least_loaded_takes_the_largest_free_share(candidates: list[Candidate]) -> None:
    picked = LeastLoaded().pick(candidates, Route()).replica
    shares = {c.replica: c.in_flight / c.slots for c in candidates}
    assert shares[picked] == min(shares.values())


def test_of_equals_the_one_that_rested_longest_is_taken() -> None:
    rested = Candidate(replica="z", in_flight=0, slots=2, last_picked=1)
    recent = Candidate(replica="a", in_flight=0, slots=2, last_picked=2)
    assert LeastLoaded().pick([recent, rested], Route()).replica == "z"
