"""The contract of every strategy, and what least-loaded promises."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from flexinfer.errors import PluginError, PluginNotInstalled, UnknownPlugin
from flexinfer_serving.chosen import Chosen
from flexinfer_serving.routing import STRATEGIES, Candidate, Choice, Route, Strategy
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


class Broken(Strategy):
    """A plug-in that can be made, and then fails in the way that *fault* says."""

    name = "broken"
    fault = ""

    def pick(self, candidates: Sequence[Candidate], route: Route) -> Choice:
        if self.fault == "raises":
            raise KeyError("x")
        if self.fault == "strange":
            return None  # type: ignore[return-value]
        return Choice(replica="nobody", why="x")


class Unfinished(Strategy):
    name = "unfinished"


class Fragile(Broken):
    def __init__(self) -> None:
        raise RuntimeError("no")


def named(what: type[Strategy] | Exception) -> Chosen:
    def get(name: str) -> type[Strategy]:
        if isinstance(what, Exception):
            raise what
        return what

    return Chosen(get)


TWO = [Candidate(replica="a", in_flight=1, slots=2), Candidate(replica="b", in_flight=0, slots=2)]


@pytest.mark.parametrize(
    "what",
    [
        UnknownPlugin("none of that name"), PluginNotInstalled("needs 'x'"), PluginError("not a Strategy"),
        SyntaxError("its module"), Unfinished, Fragile, Broken,
        type("Raises", (Broken,), {"fault": "raises"}), type("Strange", (Broken,), {"fault": "strange"}),
    ],
    ids=str,
)  # fmt: skip
def test_a_plug_in_that_fails_in_any_way_is_least_loaded_and_told_once_for_each_model(
    what: type[Strategy] | Exception,
) -> None:
    chosen = named(what)
    with capture_logs() as logs:
        for model in ("m", "n", "m", "m"):
            assert chosen.find(model, "x").pick(TWO, Route()).replica == "b"
        assert [(one["event"], one["model"]) for one in logs] == [
            ("strategy_failed", "m"),
            ("strategy_failed", "n"),
        ]
        chosen.forget("m")
        chosen.find("m", "x").pick(TWO, Route())
        assert [one["model"] for one in logs] == ["m", "n", "m"]


def test_a_good_plug_in_picks_for_itself() -> None:
    class First(Strategy):
        name = "first"

        def pick(self, candidates: Sequence[Candidate], route: Route) -> Choice:
            return Choice(replica=candidates[0].replica, why="first")

    assert named(First).find("m", "x").pick(TWO, Route()).replica == "a"
