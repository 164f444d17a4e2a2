"""One Model's gate: a state machine from events to effects.

The gate never sleeps, sends or logs, and needs no event loop. A shell feeds it events, each with the time it
happened, and carries out the effects it returns, in order.

    COLD --arrived/Wake--> WARMING --ready--> OPEN --no replica usable--> COLD, or WARMING/Wake if anyone waits
    COLD, WARMING --failure/Refuse all--> FAILED --retry time, or a new load--> COLD, WARMING

Arrivals queue, first come first served. A replica is usable while it is ready and not suspected; it gets at most
`slots` requests at once, chosen by the strategy. Two budgets bound a wait and run one at a time: the *empty*
budget while no replica is usable (`cold_start_timeout_s` of the Model), the *full* one while replicas are up but
busy. A request whose own deadline has passed is refused, never admitted late; one whose deadline lies before the
measured end of the load is told so at once.

All limits here are per worker.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from flexinfer.fleet import Failure, FleetModel
from flexinfer_serving.admission.effects import (
    Admit,
    Effect,
    GateLimits,
    Phase,
    Refuse,
    RequestId,
    Wake,
)
from flexinfer_serving.admission.pool import Pool
from flexinfer_serving.routing import Candidate, Route, Strategy

# A saturated pool's estimate is a guess from recent answers: never tell a client to stay away longer.
_MAX_SATURATED_RETRY_S = 60.0
_NOT_BEGUN_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Waiting:
    request: RequestId
    size_bytes: int
    route: Route
    arrived_s: float
    deadline_s: float
    empty_mark_s: float
    full_mark_s: float
    """The two budgets' clocks when it arrived, later by what passed while it was at a replica."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Flight:
    """An admitted request, and the clocks at its admission."""

    waiting: _Waiting
    replica: str
    since_s: float
    empty_s: float
    full_s: float


class Gate:
    def __init__(
        self, model: FleetModel, *, limits: GateLimits, strategy: Strategy, now_s: float
    ) -> None:
        self._limits = limits
        self._strategy = strategy
        self._model = model
        self._pool = Pool()
        self._queue: dict[RequestId, _Waiting] = {}
        self._flights: dict[RequestId, _Flight] = {}
        self._queued_bytes = 0
        self._clock_s = now_s
        self._empty_s = 0.0
        self._full_s = 0.0
        self._is_woken = False
        self._is_loading = False
        self._loading_since_s: float | None = None
        self._failure: Failure | None = None
        self._failed_until_s = 0.0
        self._answer_s = 1.0
        self._adopt(model, now_s)

    @property
    def waiting(self) -> int:
        return len(self._queue)

    @property
    def waiting_bytes(self) -> int:
        return self._queued_bytes

    @property
    def in_flight(self) -> Mapping[str, int]:
        """Return requests at each replica that has any, draining and vanished ones included."""
        return self._pool.in_flight

    def oldest_wait_s(self, now_s: float) -> float:
        return max((now_s - w.arrived_s for w in self._queue.values()), default=0.0)

    def phase(self, now_s: float) -> Phase:
        if self._is_open:
            return Phase.OPEN
        if self._fault(now_s) is not None:
            return Phase.FAILED
        return Phase.WARMING if self._queue or self._loading_since_s is not None else Phase.COLD

    @property
    def next_due_s(self) -> float | None:
        """Return when `tick` is next needed; None if nobody waits."""
        return min(
            (min(w.deadline_s, self._spent_s(w)) for w in self._queue.values()), default=None
        )

    def load_left_s(self, now_s: float) -> float:
        """Return what a start still takes, by the slower of past starts; at least 1 second."""
        if self._model.waits_for:
            # Nobody knows when the build ends or a place is free; the whole load comes after it.
            return _NOT_BEGUN_S + self._model.cold_start.p95_s
        since = now_s if self._loading_since_s is None else self._loading_since_s
        return max(1.0, self._model.cold_start.p95_s - (now_s - since))

    # Events -----------------------------------------------------------------------------------------------

    def arrived(
        self,
        request: RequestId,
        *,
        now_s: float,
        size_bytes: int,
        route: Route,
        deadline_s: float = math.inf,
    ) -> list[Effect]:
        effects = self.tick(now_s=now_s)  # first, so that the expired do not hold a place
        refused = self._refusal(request, size_bytes, deadline_s, now_s)
        if refused is not None:
            return [*effects, refused]
        self._enqueue(
            _Waiting(
                request=request, size_bytes=size_bytes, route=route, arrived_s=now_s,
                deadline_s=deadline_s, empty_mark_s=self._empty_s, full_mark_s=self._full_s,
            )
        )  # fmt: skip
        return [*effects, *self._drain(now_s), *self._wake(now_s)]

    def updated(self, model: FleetModel, *, now_s: float, strategy: Strategy) -> list[Effect]:
        """Take the Model as a new snapshot shows it."""
        self._advance(now_s)
        self._strategy = strategy
        self._adopt(model, now_s)
        return [*self._drain(now_s), *self._wake(now_s)]

    def finished(self, request: RequestId, *, now_s: float) -> list[Effect]:
        """An admitted request has ended, well or not. Idempotent."""
        self._advance(now_s)
        flight = self._land(request)
        if flight is not None:
            self._answer_s += 0.2 * ((now_s - flight.since_s) - self._answer_s)
        return self._drain(now_s)

    def returned(self, request: RequestId, *, now_s: float) -> list[Effect]:
        """Nothing of an admitted request was answered: suspect its replica, let it wait again, at its old place."""
        self._advance(now_s)
        flight = self._land(request)
        if flight is None:
            return self._drain(now_s)
        self._pool.suspect(flight.replica)
        waiting = flight.waiting
        self._enqueue(
            replace(
                waiting,
                empty_mark_s=waiting.empty_mark_s + self._empty_s - flight.empty_s,
                full_mark_s=waiting.full_mark_s + self._full_s - flight.full_s,
            )
        )
        self._queue = dict(sorted(self._queue.items()))
        return [*self._drain(now_s), *self._wake(now_s)]

    def suspected(self, replica: str, *, now_s: float) -> list[Effect]:
        """A replica failed us: nothing new until it is trusted again."""
        self._advance(now_s)
        self._pool.suspect(replica)
        return [*self._drain(now_s), *self._wake(now_s)]

    def trusted(self, replica: str, *, now_s: float) -> list[Effect]:
        """A suspected replica answered a probe."""
        self._advance(now_s)
        self._pool.trust(replica)
        self._opened()
        return self._drain(now_s)

    def cancelled(self, request: RequestId, *, now_s: float) -> list[Effect]:
        """Forget a request that hung up, waiting or in flight, so that nothing is started for it."""
        self._advance(now_s)
        self._dequeue(request)
        self._land(request)
        return self._drain(now_s)

    def refuse_all(self, code: str, message: str, *, now_s: float) -> list[Effect]:
        """Refuse everyone who waits: the Model is gone, or the router ends."""
        self._advance(now_s)
        refused: list[Effect] = [
            Refuse(request=request, code=code, message=message) for request in self._queue
        ]
        self._queue.clear()
        self._queued_bytes = 0
        return refused

    def tick(self, *, now_s: float) -> list[Effect]:
        self._advance(now_s)
        return self._drain(now_s)

    # Decisions --------------------------------------------------------------------------------------------

    @property
    def _is_open(self) -> bool:
        return self._pool.usable > 0

    def _refusal(
        self, request: RequestId, size_bytes: int, deadline_s: float, now_s: float
    ) -> Refuse | None:
        """Return why an arrival may not even wait; None if it may."""
        if deadline_s <= now_s:
            return self._late(request)
        if not self._is_open:
            refused = self._hopeless(request, now_s)
            if refused is not None:
                return refused
            estimate = self._model.cold_start
            since = now_s if self._loading_since_s is None else self._loading_since_s
            # Only a measured estimate may refuse: a guess could turn away one that would have made it.
            if estimate.samples and deadline_s < since + estimate.p50_s:
                return self._loading(request, now_s, "would not be up by the caller's deadline")
        has_place = not self._queue and bool(self._pool.candidates())
        if not has_place and (
            len(self._queue) >= self._limits.max_requests
            or self._queued_bytes + size_bytes > self._limits.max_bytes
        ):
            return self._overloaded(request, now_s, f"its queue of {len(self._queue)} is full")
        return None

    def _drain(self, now_s: float) -> list[Effect]:
        effects: list[Effect] = []
        for waiting in tuple(self._queue.values()):
            effect = self._decide(waiting, now_s)
            if effect is not None:
                effects.append(effect)
                self._dequeue(waiting.request)
        if not self._queue:
            self._is_woken = False
            if not self._is_loading:
                self._loading_since_s = None  # nobody asks any more and nothing was started
        return effects

    def _decide(self, waiting: _Waiting, now_s: float) -> Admit | Refuse | None:
        if waiting.deadline_s <= now_s:
            return self._late(waiting.request)
        if not self._is_open:
            refused = self._hopeless(waiting.request, now_s)
            if refused is None and self._spent_s(waiting) <= now_s:
                held_s = now_s - waiting.arrived_s
                return self._loading(waiting.request, now_s, f"was not up within {held_s:.1f} s")
            return refused
        candidates = self._pool.candidates()
        if candidates:
            return self._admit(waiting, candidates, now_s)
        if self._spent_s(waiting) <= now_s:
            waited = f"no slot became free within {now_s - waiting.arrived_s:.1f} s"
            return self._overloaded(waiting.request, now_s, waited)
        return None

    def _admit(self, waiting: _Waiting, candidates: list[Candidate], now_s: float) -> Admit:
        choice = self._strategy.pick(candidates, waiting.route)
        self._pool.take(choice.replica)
        self._flights[waiting.request] = _Flight(
            waiting=waiting, replica=choice.replica, since_s=now_s,
            empty_s=self._empty_s, full_s=self._full_s,
        )  # fmt: skip
        return Admit(
            request=waiting.request,
            replica=choice.replica,
            why=choice.why,
            held_s=now_s - waiting.arrived_s,
        )

    def _wake(self, now_s: float) -> Iterator[Effect]:
        if self._queue and not self._is_open and not self._is_woken:
            self._is_woken = True
            if self._loading_since_s is None:
                self._loading_since_s = now_s
            yield Wake()

    # Refusals ---------------------------------------------------------------------------------------------

    def _late(self, request: RequestId) -> Refuse:
        message = f"model {self._model.name!r}: the caller's deadline passed before a slot was free"
        return Refuse(request=request, code="deadline_exceeded", message=message)

    def _hopeless(self, request: RequestId, now_s: float) -> Refuse | None:
        failure = self._fault(now_s)
        name = self._model.name
        if self._model.is_deleted:
            message = f"there is no model {name!r} any more: it was deleted"
            return Refuse(request=request, code="model_not_found", message=message)
        if failure is not None:
            left = self._failed_until_s - now_s
            return Refuse(
                request=request,
                code="model_failed",
                message=f"model {name!r} cannot be served now: {failure.code}: {failure.message}",
                retry_after_s=max(1.0, left) if math.isfinite(left) else None,
            )
        if not self._limits.can_wake:
            message = f"model {name!r}: none of its {len(self._model.replicas)} replicas answers"
            return Refuse(
                request=request, code="model_unavailable", message=message, retry_after_s=5.0
            )
        return None

    def _loading(self, request: RequestId, now_s: float, what: str) -> Refuse:
        name, waits_for = self._model.name, self._model.waits_for
        state = f"waits for {waits_for}" if waits_for else "is loading"
        return Refuse(
            request=request,
            code="model_loading",
            message=f"model {name!r} {state} and {what}",
            retry_after_s=self.load_left_s(now_s),
        )

    def _overloaded(self, request: RequestId, now_s: float, what: str) -> Refuse:
        if self._is_open:
            ahead = (len(self._queue) + 1) / max(1, self._pool.capacity)
            retry_after_s = min(_MAX_SATURATED_RETRY_S, max(1.0, self._answer_s * ahead))
        else:
            retry_after_s = self.load_left_s(now_s)
        return Refuse(
            request=request,
            code="model_overloaded",
            message=f"model {self._model.name!r} is busy: {what}",
            retry_after_s=retry_after_s,
        )

    # State ------------------------------------------------------------------------------------------------

    def _fault(self, now_s: float) -> Failure | None:
        return self._failure if now_s < self._failed_until_s else None

    def _spent_s(self, waiting: _Waiting) -> float:
        """Return when the budget that runs now is used up, if nothing changes."""
        if self._is_open:
            left = self._limits.saturated_wait_s - (self._full_s - waiting.full_mark_s)
        else:
            left = self._model.cold_start_timeout_s - (self._empty_s - waiting.empty_mark_s)
        return self._clock_s + left

    def _advance(self, now_s: float) -> None:
        passed = max(0.0, now_s - self._clock_s)
        if self._is_open:
            self._full_s += passed
        else:
            self._empty_s += passed
        self._clock_s += passed

    def _adopt(self, model: FleetModel, now_s: float) -> None:
        self._model = model
        self._pool.adopt(model)
        self._is_loading = any(replica.phase == "loading" for replica in model.replicas)
        if self._is_loading and self._loading_since_s is None:
            self._loading_since_s = now_s
        self._opened()
        if model.failure is None or self._is_loading or self._is_open:
            self._failure = None
            self._failed_until_s = 0.0
        elif model.failure != self._failure:
            self._failure = model.failure
            after = model.failure.retry_after_s
            self._failed_until_s = math.inf if after is None else now_s + after
            self._loading_since_s = None
            self._is_woken = False

    def _opened(self) -> None:
        if self._is_open:
            self._loading_since_s = None
            self._is_woken = False

    def _enqueue(self, waiting: _Waiting) -> None:
        self._queue[waiting.request] = waiting
        self._queued_bytes += waiting.size_bytes

    def _dequeue(self, request: RequestId) -> None:
        waiting = self._queue.pop(request, None)
        if waiting is not None:
            self._queued_bytes -= waiting.size_bytes

    def _land(self, request: RequestId) -> _Flight | None:
        flight = self._flights.pop(request, None)
        if flight is not None:
            self._pool.land(flight.replica)
        return flight
