"""The gate as a specification: who waits, who is let through, who is refused and with which words."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from flexinfer.fleet import ColdStart, Failure
from flexinfer.testing.fleet import model, replica
from flexinfer_serving.admission.effects import (
    Admit,
    Effect,
    GateLimits,
    Phase,
    Refuse,
    RequestId,
    Wake,
)
from flexinfer_serving.admission.gate import Gate
from flexinfer_serving.routing import Route
from flexinfer_serving.routing.least_loaded import LeastLoaded

A, B, C, D = (RequestId(number) for number in range(1, 5))
LIMITS = GateLimits(max_requests=8, max_bytes=1000, saturated_wait_s=10, can_wake=True)
READY = model(replicas=(replica("r1"),), cold_start_timeout_s=60)
COLD = model(cold_start_timeout_s=60)


def gate(at: Any = COLD, **limits: Any) -> Gate:
    return Gate(at, limits=replace(LIMITS, **limits), strategy=LeastLoaded(), now_s=0)


def arrive(to: Gate, request: RequestId, now_s: float = 0, **more: Any) -> list[Effect]:
    return to.arrived(
        request, now_s=now_s, size_bytes=more.pop("size_bytes", 1), route=Route(), **more
    )


def update(to: Gate, at: Any, now_s: float) -> list[Effect]:
    return to.updated(at, now_s=now_s, strategy=LeastLoaded())


def admitted(effects: list[Effect]) -> list[RequestId]:
    return [effect.request for effect in effects if isinstance(effect, Admit)]


def refused(effects: list[Effect]) -> dict[RequestId, str]:
    return {effect.request: effect.code for effect in effects if isinstance(effect, Refuse)}


def test_an_open_gate_admits_at_once() -> None:
    assert admitted(arrive(gate(READY), A)) == [A]


def test_the_first_waiter_of_a_cold_model_wakes_it_and_the_second_does_not() -> None:
    cold = gate()
    assert arrive(cold, A) == [Wake()]
    assert arrive(cold, B) == []


def test_waiters_are_admitted_in_the_order_of_arrival_one_per_slot() -> None:
    cold = gate()
    arrive(cold, A)
    arrive(cold, B)
    assert admitted(update(cold, READY, 1)) == [A]
    assert admitted(cold.finished(A, now_s=2)) == [B]


def test_late_requests_are_refused_not_served() -> None:
    cold = gate()
    arrive(cold, A, deadline_s=3)
    assert refused(update(cold, READY, 3)) == {A: "deadline_exceeded"}


def test_a_deadline_before_the_measured_end_of_the_load_is_answered_at_once() -> None:
    cold = gate(replace(COLD, cold_start=ColdStart(p50_s=8, p95_s=9, samples=3)))
    effects = arrive(cold, A, deadline_s=5)
    assert refused(effects) == {A: "model_loading"}
    assert cold.waiting == 0


def test_a_guessed_end_of_the_load_refuses_nobody() -> None:
    cold = gate(replace(COLD, cold_start=ColdStart(p50_s=8, p95_s=9, samples=0)))
    assert refused(arrive(cold, A, deadline_s=5)) == {}


def test_an_empty_pools_budget_ends_in_model_loading_with_what_the_load_still_takes() -> None:
    cold = gate(replace(COLD, cold_start_timeout_s=4, cold_start=ColdStart(p50_s=5, p95_s=9)))
    arrive(cold, A)
    assert cold.next_due_s == 4
    (effect,) = cold.tick(now_s=4)
    assert isinstance(effect, Refuse)
    assert (effect.code, effect.retry_after_s) == ("model_loading", 5)


def test_who_waits_for_a_build_is_told_so() -> None:
    cold = gate(replace(COLD, cold_start_timeout_s=4, waits_for="its build"))
    arrive(cold, A)
    (effect,) = cold.tick(now_s=4)
    assert isinstance(effect, Refuse)
    assert effect.message == "model 'm' waits for its build and was not up within 4.0 s"
    # The whole load comes after it, however long they have waited.
    assert (effect.code, effect.retry_after_s) == ("model_loading", 10 + COLD.cold_start.p95_s)


def test_retry_after_of_an_overdue_load_is_one_second() -> None:
    cold = gate(replace(COLD, cold_start_timeout_s=40, cold_start=ColdStart(p50_s=5, p95_s=9)))
    arrive(cold, A)
    (effect,) = cold.tick(now_s=40)
    assert isinstance(effect, Refuse)
    assert effect.retry_after_s == 1


def test_a_busy_pools_budget_ends_in_model_overloaded() -> None:
    busy = gate(READY, saturated_wait_s=2)
    arrive(busy, A)
    arrive(busy, B)
    assert busy.next_due_s == 2
    (effect,) = busy.tick(now_s=2)
    assert isinstance(effect, Refuse)
    assert effect.code == "model_overloaded"
    assert effect.retry_after_s is not None and effect.retry_after_s >= 1


def test_time_in_an_empty_pool_is_not_charged_to_the_busy_budget() -> None:
    cold = gate(saturated_wait_s=2)
    arrive(cold, A)
    arrive(cold, B)
    update(cold, READY, 30)
    assert cold.tick(now_s=31) == []
    assert refused(cold.tick(now_s=32)) == {B: "model_overloaded"}


def test_a_full_queue_refuses_at_once() -> None:
    cold = gate(max_requests=1)
    arrive(cold, A)
    assert refused(arrive(cold, B)) == {B: "model_overloaded"}


def test_bytes_are_bounded_as_requests_are() -> None:
    cold = gate(max_bytes=10)
    arrive(cold, A, size_bytes=8)
    assert refused(arrive(cold, B, size_bytes=3)) == {B: "model_overloaded"}
    cold.cancelled(A, now_s=0)
    assert refused(arrive(cold, C, size_bytes=3)) == {}


def test_a_request_that_need_not_wait_is_not_measured_against_the_queue() -> None:
    assert admitted(arrive(gate(READY, max_bytes=1), A, size_bytes=500)) == [A]


def test_hang_up_frees_the_place() -> None:
    cold = gate(max_requests=1)
    arrive(cold, A)
    cold.cancelled(A, now_s=1)
    assert refused(arrive(cold, B, 1)) == {}


def test_hang_up_frees_the_slot() -> None:
    busy = gate(READY)
    arrive(busy, A)
    arrive(busy, B)
    assert admitted(busy.cancelled(A, now_s=1)) == [B]


def test_finishing_twice_frees_one_slot() -> None:
    busy = gate(READY)
    for request in (A, B, C):
        arrive(busy, request)
    assert admitted(busy.finished(A, now_s=1)) == [B]
    assert admitted(busy.finished(A, now_s=1)) == []


def test_a_failed_load_refuses_everyone_at_once_with_the_cause() -> None:
    cold = gate()
    arrive(cold, A)
    failure = Failure(code="out_of_memory", message="needs 9 GB", retry_after_s=20)
    (effect,) = update(cold, replace(COLD, failure=failure), 1)
    assert isinstance(effect, Refuse)
    assert (effect.code, effect.retry_after_s) == ("model_failed", 20)
    assert "out_of_memory: needs 9 GB" in effect.message
    assert cold.phase(2) is Phase.FAILED


def test_after_its_back_off_a_failed_model_is_wanted_again() -> None:
    failed = gate(replace(COLD, failure=Failure(code="crash", message="died", retry_after_s=5)))
    assert refused(arrive(failed, A, 4)) == {A: "model_failed"}
    assert arrive(failed, B, 5) == [Wake()]


def test_the_same_failure_seen_again_does_not_prolong_its_back_off() -> None:
    at = replace(COLD, failure=Failure(code="crash", message="died", retry_after_s=5))
    failed = gate(at)
    update(failed, at, 4)
    assert arrive(failed, A, 5) == [Wake()]


def test_a_failure_after_a_new_load_counts_anew() -> None:
    at = replace(COLD, failure=Failure(code="crash", message="died", retry_after_s=5))
    failed = gate(at)
    arrive(failed, A, 6)
    update(failed, replace(at, replicas=(replica("r2", phase="loading"),)), 7)
    assert refused(update(failed, at, 8)) == {A: "model_failed"}


def test_a_failure_beside_a_ready_replica_refuses_nobody() -> None:
    at = replace(READY, failure=Failure(code="crash", message="the other one died"))
    assert admitted(arrive(gate(at), A)) == [A]


def test_a_draining_replica_gets_nothing_new_and_keeps_what_it_has() -> None:
    busy = gate(READY)
    arrive(busy, A)
    arrive(busy, B)
    draining = replace(READY, replicas=(replica("r1", phase="draining"),))
    assert admitted(update(busy, draining, 1)) == []
    assert busy.in_flight == {"r1": 1}
    assert admitted(busy.finished(A, now_s=2)) == []
    assert busy.in_flight == {}


def test_losing_the_last_replica_wakes_again_for_those_who_wait() -> None:
    busy = gate(READY)
    arrive(busy, A)
    arrive(busy, B)
    assert update(busy, COLD, 1) == [Wake()]


def test_slots_are_per_replica() -> None:
    two = gate(replace(READY, slots=2, replicas=(replica("r1"), replica("r2"))))
    effects = [effect for request in (A, B, C, D) for effect in arrive(two, request)]
    assert admitted(effects) == [A, B, C, D]
    assert two.in_flight == {"r1": 2, "r2": 2}


def test_a_request_given_back_keeps_its_place_and_goes_elsewhere() -> None:
    two = gate(replace(READY, replicas=(replica("r1"), replica("r2"))))
    arrive(two, A)
    arrive(two, B)
    arrive(two, C)
    two.returned(A, now_s=1)
    (effect,) = two.finished(B, now_s=2)
    assert isinstance(effect, Admit)
    assert (effect.request, effect.replica) == (A, "r2")


def test_time_at_a_replica_is_not_charged_to_the_wait_of_one_given_back() -> None:
    two = gate(
        replace(READY, replicas=(replica("r1"), replica("r2"))), saturated_wait_s=10, max_requests=8
    )
    arrive(two, A)
    arrive(two, B)
    assert two.returned(A, now_s=30) == []
    assert two.next_due_s == 40
    assert refused(two.tick(now_s=40)) == {A: "model_overloaded"}


def test_time_at_a_replica_that_is_not_up_is_not_charged_either() -> None:
    one = gate(READY)
    arrive(one, A)
    update(one, replace(READY, replicas=(replica("r1", phase="loading"),)), 5)
    assert one.returned(A, now_s=50) == [Wake()]
    assert one.next_due_s == 50 + READY.cold_start_timeout_s


def test_retry_after_of_a_busy_pool_grows_with_how_long_its_answers_take() -> None:
    def told(answer_s: float) -> float:
        busy = gate(READY, saturated_wait_s=0)
        for number in range(30):
            start_s = number * answer_s
            arrive(busy, RequestId(number), start_s)
            busy.finished(RequestId(number), now_s=start_s + answer_s)
        arrive(busy, RequestId(100), 900)
        (effect,) = arrive(busy, RequestId(101), 900)
        assert isinstance(effect, Refuse) and effect.retry_after_s is not None
        return effect.retry_after_s

    assert told(0.1) == 1
    # One slot and one request ahead: two answers of 8 seconds, by what the last 30 took.
    assert 8 <= told(8) <= 16.1


def test_a_deadline_after_the_usual_end_of_the_load_may_wait_though_a_slow_start_would_miss_it() -> (
    None
):
    cold = gate(replace(COLD, cold_start=ColdStart(p50_s=4, p95_s=20, samples=9)))
    assert refused(arrive(cold, A, deadline_s=5)) == {}
    assert refused(arrive(cold, B, deadline_s=3)) == {B: "model_loading"}


def test_a_replica_at_another_address_is_another_process_and_not_suspected() -> None:
    one = gate(replace(READY, replicas=(replica("r1", "http://127.0.0.1:1"),)))
    one.suspected("r1", now_s=0)
    arrive(one, A, 1)
    same = replace(READY, replicas=(replica("r1", "http://127.0.0.1:1"),))
    assert admitted(update(one, same, 2)) == []
    moved = replace(READY, replicas=(replica("r1", "http://127.0.0.1:2"),))
    assert admitted(update(one, moved, 3)) == [A]


def test_a_suspected_replica_gets_nothing_until_it_is_trusted() -> None:
    one = gate(READY)
    one.suspected("r1", now_s=0)
    assert arrive(one, A, 1) == [Wake()]
    assert admitted(one.trusted("r1", now_s=2)) == [A]


def test_a_replica_that_was_made_anew_is_not_suspected() -> None:
    one = gate(READY)
    one.suspected("r1", now_s=0)
    arrive(one, A, 1)
    update(one, replace(READY, replicas=(replica("r1", phase="loading"),)), 2)
    assert admitted(update(one, READY, 3)) == [A]


def test_without_anyone_to_wake_an_empty_pool_is_answered_at_once() -> None:
    assert refused(arrive(gate(can_wake=False), A)) == {A: "model_unavailable"}


def test_a_zero_budget_still_admits_what_fits() -> None:
    none = gate(READY, saturated_wait_s=0)
    assert admitted(arrive(none, A)) == [A]
    assert refused(arrive(none, B)) == {B: "model_overloaded"}


def test_a_model_that_nobody_asks_for_any_more_is_cold_again() -> None:
    cold = gate()
    arrive(cold, A)
    assert cold.phase(0) is Phase.WARMING
    cold.cancelled(A, now_s=1)
    assert cold.phase(1) is Phase.COLD
