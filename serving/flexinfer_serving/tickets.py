"""A request at the gates, as its exchange holds it, and what the dispatcher keeps for one Model."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from flexinfer.fleet import FleetModel, FleetReplica
from flexinfer_serving.admission.effects import RequestId
from flexinfer_serving.admission.gate import Gate
from flexinfer_serving.explain import Record
from flexinfer_serving.first_tokens import FirstTokens
from flexinfer_serving.leasing import Lessor
from flexinfer_serving.measures import Measures
from flexinfer_serving.probing import Prober


class Desk(Protocol):
    """Where tickets are handed in."""

    def finish(self, entry: Entry, ticket: Ticket) -> None: ...

    def give_back(self, entry: Entry, ticket: Ticket, replica: FleetReplica) -> None: ...

    def suspect(self, entry: Entry, replica: FleetReplica) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """A request's turn at a replica."""

    model: FleetModel
    replica: FleetReplica
    held_s: float


@dataclass(slots=True, eq=False)
class Entry:
    """One Model's gate and what runs for it."""

    model: FleetModel
    gate: Gate
    measures: Measures
    prober: Prober | None = None
    tickets: dict[RequestId, Ticket] = field(default_factory=dict)
    timer: asyncio.TimerHandle | None = None
    lessor: Lessor | None = None
    first_tokens: FirstTokens = field(default_factory=FirstTokens)
    arrivals: int = 0
    active_s: float | None = None
    is_removed: bool = False

    def replica(self, name: str) -> FleetReplica | None:
        return next((r for r in self.model.replicas if r.id == name), None)

    def has_lost(self, replica: FleetReplica) -> bool:
        """Return whether the newest snapshot no longer shows that process as up. A draining one ends its work."""
        now = self.replica(replica.id)
        return now is None or now.url != replica.url or now.phase == "loading"

    def probe(self, replica: FleetReplica) -> None:
        if self.prober is not None:
            self.prober.start(replica)

    @property
    def draining(self) -> frozenset[str]:
        return frozenset(r.id for r in self.model.replicas if r.phase == "draining")


class Ticket:
    """One request at the gates. `finish` must be called, whatever happened; it may be called twice."""

    def __init__(self, desk: Desk, entry: Entry, request: RequestId, record: Record) -> None:
        self._desk = desk
        self._entry = entry
        self.request = request
        self.record = record
        self.decision: asyncio.Future[Admission] = asyncio.get_running_loop().create_future()
        self.when_lost: Callable[[], None] | None = None
        """Called when its replica is not up by the fleet's word and another one is; set before a first byte."""

    @property
    def model(self) -> FleetModel:
        """Return the Model as the newest snapshot shows it."""
        return self._entry.model

    def finish(self) -> None:
        """Free the place or the slot."""
        self._desk.finish(self._entry, self)

    def give_back(self, replica: FleetReplica) -> None:
        """*replica* answered nothing and is suspected: wait again, at the old place. `decision` is a new future."""
        self.decision = asyncio.get_running_loop().create_future()
        self._desk.give_back(self._entry, self, replica)

    def heard(self, replica: FleetReplica, seconds: float) -> None:
        """The answer began, *seconds* after the request was sent."""
        self._entry.first_tokens.heard(replica.id, seconds)

    def suspect(self, replica: FleetReplica) -> None:
        """The replica failed in a way that is not tried again: nothing new for it until it answers."""
        self._desk.suspect(self._entry, replica)
