"""Which replica takes a request: pure strategies, one file each, found by name.

A strategy sees only replicas that may take the request now, and picks one of them. It may be called from
anywhere, also from `data_received`: it never awaits, looks at a clock or remembers anything.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from flexinfer.plugins import Registry


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A ready replica with room."""

    replica: str
    in_flight: int
    slots: int
    last_picked: int = 0
    """The number of the decision that last picked it; 0: never. Larger is more recent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """What of a request may steer its way. Keys, never text."""

    session: str = ""
    cache_key: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    replica: str
    why: str
    """For `explain`: one short phrase."""


class Strategy(ABC):
    """One way to choose. Stateless."""

    name: ClassVar[str]

    @abstractmethod
    def pick(self, candidates: Sequence[Candidate], route: Route) -> Choice:
        """Return one of *candidates*, of which there is at least one."""


STRATEGIES: Registry[Strategy] = Registry("flexinfer.strategies", Strategy)
