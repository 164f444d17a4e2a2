"""Every metric that FlexInfer has, in one table, and the collectors made from it.

Names have the prefix `flexinfer_` and base units. Labels are bounded: a model that no snapshot knows is
`other`, a status is its class. A component asks `Metrics` for the names that it writes.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


@dataclass(frozen=True, slots=True)
class Metric:
    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = _SECONDS


METRICS: tuple[Metric, ...] = (
    Metric("flexinfer_requests_total", "counter", "Requests ended, by outcome.", ("model", "route", "code")),
    Metric("flexinfer_request_seconds", "histogram", "From the request's head to the answer's end.", ("model", "route")),
    Metric("flexinfer_first_byte_seconds", "histogram", "From the request's head to the answer's first byte.", ("model", "route")),
    Metric("flexinfer_requests_in_flight", "gauge", "Requests at an engine now.", ("model",)),
    Metric("flexinfer_requests_waiting", "gauge", "Requests held now.", ("model",)),
    Metric("flexinfer_waiting_bytes", "gauge", "Bytes of held request bodies.", ("model",)),
    Metric("flexinfer_held_seconds", "histogram", "How long a request was held before it was admitted or refused.", ("model", "outcome")),
    Metric("flexinfer_retries_total", "counter", "Requests sent again before a first byte, by cause.", ("model", "cause")),
    Metric("flexinfer_disconnects_total", "counter", "Clients that left before their answer's end.", ("model", "phase")),
    Metric("flexinfer_stream_errors_total", "counter", "Streams ended by an error event.", ("model", "code")),
    Metric("flexinfer_replicas", "gauge", "Replicas in the router's snapshot, by phase.", ("model", "phase")),
    Metric("flexinfer_fleet_generation", "gauge", "Generation of the fleet snapshot that is applied."),
    Metric("flexinfer_fleet_connected", "gauge", "1 while the fleet source is connected."),
    Metric("flexinfer_cold_starts_total", "counter", "Starts that a router waited for, by outcome: ready, failed.", ("model", "outcome")),
    Metric("flexinfer_cold_start_seconds", "histogram", "From a Model being wanted or loading, with no replica ready, to one being ready.", ("model", "phase")),
)  # fmt: skip


class Metrics:
    """The collectors of one process. Not global, so that two can live in one test."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._found: dict[str, Counter | Gauge | Histogram] = {}
        self._labels = {metric.name: metric.labels for metric in METRICS}
        for metric in METRICS:
            self._found[metric.name] = self._make(metric)

    def _make(self, metric: Metric) -> Counter | Gauge | Histogram:
        if metric.kind == "counter":
            return Counter(metric.name, metric.help, metric.labels, registry=self._registry)
        if metric.kind == "gauge":
            return Gauge(metric.name, metric.help, metric.labels, registry=self._registry)
        return Histogram(
            metric.name, metric.help, metric.labels, registry=self._registry, buckets=metric.buckets
        )

    def add(self, name: str, amount: float = 1.0, **labels: str) -> None:
        """Add *amount* to a counter or gauge."""
        found = self._found[name]
        assert not isinstance(found, Histogram)
        (found.labels(**labels) if labels else found).inc(amount)

    def set(self, name: str, value: float, **labels: str) -> None:
        """Set a gauge."""
        found = self._found[name]
        assert isinstance(found, Gauge)
        (found.labels(**labels) if labels else found).set(value)

    def observe(self, name: str, value: float, **labels: str) -> None:
        """Put one value into a histogram."""
        found = self._found[name]
        assert isinstance(found, Histogram)
        (found.labels(**labels) if labels else found).observe(value)

    def remove(self, name: str, **labels: str) -> None:
        """Forget what was written with exactly these labels: what they named is gone."""
        values = [labels[label] for label in self._labels[name]]
        with suppress(KeyError):  # older client libraries raise it for what was never written
            self._found[name].remove(*values)

    def exposition(self) -> bytes:
        """Return everything in the Prometheus text format (see CONTENT_TYPE)."""
        return generate_latest(self._registry)
