"""What one request tells of itself: headers, comments, metrics, and its record."""

from __future__ import annotations

from collections.abc import Callable

from flexinfer.engine import Endpoint
from flexinfer.fleet import FleetModel, FleetReplica
from flexinfer.log import get_logger
from flexinfer_serving.client import Headers
from flexinfer_serving.explain import opaque
from flexinfer_serving.router import Router

log = get_logger(__name__)

STREAM_HEADERS: Headers = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class Account:
    """Told by the exchange as it goes on; `ended` is the last word."""

    def __init__(self, router: Router, endpoint: Endpoint, request_id: str) -> None:
        self._metrics = router.metrics
        self._clock = router.clock
        self._route = str(endpoint)
        self.started_s = self._clock.now_s()
        self.record = router.decisions.open(
            request_id=request_id,
            route=self._route,
            now_s=self.started_s,
            unix_s=self._clock.unix_s(),
        )
        self.model = "other"
        self.phase = "body"
        self.dropped: tuple[str, ...] = ()
        self._is_stream = False
        self._has_first_byte = False
        self._held_s = 0.0
        self._sent_s = 0.0

    def read(self, *, is_stream: bool, dropped: tuple[str, ...]) -> None:
        """The body is here and in order."""
        self._is_stream = is_stream
        self.dropped = dropped

    def found(self, model: FleetModel) -> None:
        """The Model is one that we have, so its name may be a label."""
        self.model = self.record.model = model.name

    def admitted(self, held_s: float) -> None:
        self._held_s = held_s

    def sent(self) -> None:
        """The request goes to a replica now."""
        self.phase = "sent"
        self._sent_s = self._clock.now_s()

    def failed(self, replica: FleetReplica, cause: str) -> None:
        self.record.note("failed", now_s=self._clock.now_s(), replica=replica.id, cause=cause)

    def retried(self, cause: str) -> None:
        self._metrics.add("flexinfer_retries_total", model=self.model, cause=cause)

    def first_byte(self, heard: Callable[[float], None] = lambda _: None) -> None:
        """Something of the answer is here; only the first time counts. *heard* is told how long after sending."""
        if self._has_first_byte:
            return
        self._has_first_byte = True
        now_s = self._clock.now_s()
        heard(now_s - self._sent_s)
        self.phase = "streaming" if self._is_stream else "answering"
        self._metrics.observe(
            "flexinfer_first_byte_seconds",
            now_s - self.started_s,
            model=self.model,
            route=self._route,
        )

    def broke_off(self, code: str) -> None:
        """A stream that had begun ends with an error event."""
        self._metrics.add("flexinfer_stream_errors_total", model=self.model, code=code)

    def left(self) -> None:
        """The client has gone."""
        self._metrics.add("flexinfer_disconnects_total", model=self.model, phase=self.phase)

    def ended(self, code: str) -> None:
        now_s = self._clock.now_s()
        seconds = now_s - self.started_s
        self.record.note("ended", now_s=now_s, code=code)
        model, route = self.model, self._route
        self._metrics.add("flexinfer_requests_total", model=model, route=route, code=code)
        self._metrics.observe("flexinfer_request_seconds", seconds, model=model, route=route)
        log.debug(
            "request_ended",
            request_id=self.record.request_id,
            model=model,
            route=route,
            code=code,
            seconds=round(seconds, 4),
        )

    def headers(self, model: FleetModel | None, replica: FleetReplica | None = None) -> Headers:
        """Return what a client is told beside its answer, as far as it is known."""
        found: Headers = []
        if model is not None:
            found.append((b"x-flexinfer-model", model.name.encode("ascii", "replace")))
        if replica is not None:
            found.append((b"x-flexinfer-replica", opaque(replica.id).encode()))
            found.append((b"x-flexinfer-cold-start", f"{self._held_s:.3f}".encode()))
            total_ms = 1000 * (self._clock.now_s() - self.started_s)
            held_ms = 1000 * self._held_s
            timing = f"held;dur={held_ms:.1f}, engine;dur={max(0.0, total_ms - held_ms):.1f}"
            found.append((b"server-timing", timing.encode()))
        if self.record.steps:
            found.append((b"x-flexinfer-explain", self.record.id.encode()))
        if self.dropped:
            found.append((b"x-flexinfer-dropped", ",".join(self.dropped).encode()))
        return found

    def comment(self, model: FleetModel, replica: FleetReplica) -> str:
        """Return the comment that stands for `headers` where those are out already."""
        values = " ".join(
            f"{str(name, 'latin-1').removeprefix('x-flexinfer-')}={str(value, 'latin-1')}"
            for name, value in self.headers(model, replica)
            if name.startswith(b"x-flexinfer-")
        )
        return f"flexinfer {values}"

    def progress(self, model: FleetModel) -> str:
        """Return the comment for a client that waits."""
        waited_s = self._clock.now_s() - self.started_s
        substage = next((r.substage for r in model.replicas if r.phase == "loading"), "")
        if any(r.phase == "ready" for r in model.replicas):
            return f"flexinfer queued {waited_s:.1f}s"
        return f"flexinfer loading {substage or model.phase} {waited_s:.1f}s"
