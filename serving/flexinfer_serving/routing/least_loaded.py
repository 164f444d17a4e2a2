"""The replica with the largest free share takes the request; of equals, the one that rested longest."""

from __future__ import annotations

from collections.abc import Sequence

from flexinfer_serving.routing import Candidate, Choice, Route, Strategy


class LeastLoaded(Strategy):
    name = "least-loaded"

    def pick(self, candidates: Sequence[Candidate], route: Route) -> Choice:
        best = min(candidates, key=_load)
        return Choice(
            replica=best.replica,
            why=f"least loaded of {len(candidates)}: {best.in_flight} of {best.slots} slots in use",
        )


def _load(candidate: Candidate) -> tuple[float, int, str]:
    share = candidate.in_flight / candidate.slots
    return (share, candidate.last_picked, candidate.replica)
