"""How long each replica's first answer took to begin: measured once, told to the operator once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping


class FirstTokens:
    """The replicas of one Model. What is not known (any more) is not measured."""

    def __init__(self) -> None:
        self._measured: dict[str, bool] = {}
        self._untold: dict[str, float] = {}

    @property
    def untold(self) -> Mapping[str, float]:
        return dict(self._untold)

    def know(self, replicas: Iterable[str]) -> None:
        """Take the replicas as a new snapshot shows them; those that it has no more are forgotten."""
        self._measured = {name: self._measured.get(name, False) for name in replicas}
        self._untold = {n: s for n, s in self._untold.items() if n in self._measured}

    def heard(self, replica: str, seconds: float) -> None:
        """Take how long an answer took from being sent to its first byte; only the first one counts."""
        if self._measured.get(replica, True):
            return
        self._measured[replica] = True
        self._untold[replica] = seconds

    def told(self) -> None:
        self._untold.clear()
