"""One Model's gate in numbers: its gauges, and the cold starts that the router saw."""

from __future__ import annotations

from typing import get_args

from flexinfer.fleet import FleetModel, ReplicaPhase
from flexinfer.metrics import Metrics
from flexinfer_serving.admission.effects import Phase
from flexinfer_serving.admission.gate import Gate

_PHASES: tuple[ReplicaPhase, ...] = get_args(ReplicaPhase)
_GAUGES = ("flexinfer_requests_waiting", "flexinfer_waiting_bytes", "flexinfer_requests_in_flight")


class Measures:
    """`look` after every event of the gate.

    A cold start begins when the gate is warming and no replica is ready, and ends when it opens or fails. Waiting
    for a ready replica that is only suspected is none; nor is a wait that everybody gave up.
    """

    def __init__(self, metrics: Metrics, model: str) -> None:
        self._metrics = metrics
        self._model = model
        self._since_s: float | None = None

    def look(self, gate: Gate, model: FleetModel, *, now_s: float) -> None:
        """Write the gauges of *gate*, and a cold start if one has ended."""
        name, in_flight = self._model, sum(gate.in_flight.values())
        self._metrics.set("flexinfer_requests_waiting", gate.waiting, model=name)
        self._metrics.set("flexinfer_waiting_bytes", gate.waiting_bytes, model=name)
        self._metrics.set("flexinfer_requests_in_flight", in_flight, model=name)
        match gate.phase(now_s):
            case Phase.WARMING:
                if self._since_s is None and all(r.phase != "ready" for r in model.replicas):
                    self._since_s = now_s
            case Phase.OPEN:
                self._ended("ready", now_s)
            case Phase.FAILED:
                self._ended("failed", now_s)
            case Phase.COLD:
                self._since_s = None

    def count_replicas(self, model: FleetModel) -> None:
        """Write how many replicas a snapshot shows."""
        for phase in _PHASES:
            count = sum(replica.phase == phase for replica in model.replicas)
            self._metrics.set("flexinfer_replicas", count, model=self._model, phase=phase)

    def forget(self) -> None:
        """The Model is gone: its gauges end, its counters stay."""
        for gauge in _GAUGES:
            self._metrics.remove(gauge, model=self._model)
        for phase in _PHASES:
            self._metrics.remove("flexinfer_replicas", model=self._model, phase=phase)

    def _ended(self, outcome: str, now_s: float) -> None:
        if self._since_s is None:
            return
        seconds = now_s - self._since_s
        self._since_s = None
        self._metrics.add("flexinfer_cold_starts_total", model=self._model, outcome=outcome)
        if outcome == "ready":  # how long a failure took says nothing of how long a start takes
            self._metrics.observe(
                "flexinfer_cold_start_seconds", seconds, model=self._model, phase="total"
            )
