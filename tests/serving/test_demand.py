"""When the operator hears of a Model, and how many retries there may be."""

from __future__ import annotations

from dataclasses import replace

from flexinfer_serving.admission.budget import RetryBudget
from flexinfer_serving.demand import Load, Schedule

NONE: frozenset[str] = frozenset()


def load(waiting: int = 0, generation: int = 1, arrivals: int = 0, **in_flight: int) -> Load:
    return Load(waiting=waiting, in_flight=in_flight, generation=generation, arrivals=arrivals)


def sent(schedule: Schedule, what: Load, now_s: float) -> None:
    schedule.sent(what, now_s=now_s)


def test_an_idle_model_is_not_spoken_of() -> None:
    assert Schedule(ttl_s=9).due_s(load(), NONE, now_s=0) is None


def test_the_first_waiter_is_told_at_once_however_recent_the_last_word() -> None:
    schedule = Schedule(ttl_s=9)
    sent(schedule, load(r1=1), 5)
    assert schedule.due_s(load(waiting=1, r1=1), NONE, now_s=5.1) == 5.1


def test_other_changes_wait_a_second() -> None:
    schedule = Schedule(ttl_s=9)
    sent(schedule, load(waiting=1), 5)
    assert schedule.due_s(load(waiting=2), NONE, now_s=5.1) == 6


def test_what_is_busy_is_renewed_well_before_its_lease_ends() -> None:
    schedule = Schedule(ttl_s=9)
    sent(schedule, load(r1=1), 5)
    assert schedule.due_s(load(r1=1), NONE, now_s=6) == 8


def test_what_came_and_went_between_two_words_is_told() -> None:
    schedule = Schedule(ttl_s=9)
    sent(schedule, load(arrivals=1), 5)
    assert schedule.due_s(load(arrivals=2), NONE, now_s=5.5) == 6


def test_a_new_generation_is_acknowledged_at_once_while_the_lease_lives() -> None:
    schedule = Schedule(ttl_s=9)
    sent(schedule, load(), 5)
    assert schedule.due_s(load(generation=2), NONE, now_s=6) == 6
    assert schedule.due_s(load(generation=2), NONE, now_s=15) is None


def test_a_draining_replica_that_became_free_is_told_at_once() -> None:
    schedule = Schedule(ttl_s=9)
    sent(schedule, load(r1=1), 5)
    assert schedule.due_s(load(), frozenset({"r1"}), now_s=5.1) == 5.1


def test_a_suspected_replica_is_told_at_once_and_once() -> None:
    schedule = Schedule(ttl_s=9)
    suspicious = replace(load(r1=1), suspects=("r1",))
    sent(schedule, load(r1=1), 5)
    assert schedule.due_s(suspicious, NONE, now_s=5.1) == 5.1
    sent(schedule, suspicious, 5.1)
    assert schedule.due_s(suspicious, NONE, now_s=5.2) == 8.1
    assert schedule.due_s(load(r1=1), NONE, now_s=5.2) == 6.1
    assert Schedule(ttl_s=9).due_s(replace(load(), suspects=("r1",)), NONE, now_s=1) == 1


def test_a_draining_replica_is_acknowledged_by_a_router_that_never_used_it() -> None:
    assert Schedule(ttl_s=9).due_s(load(), frozenset({"r1"}), now_s=3) == 3


def test_a_new_operator_hears_of_what_is_busy() -> None:
    schedule = Schedule(ttl_s=9)
    sent(schedule, load(r1=1), 5)
    schedule.forget()
    assert schedule.due_s(load(r1=1), NONE, now_s=5.1) == 5.1


def test_retries_stay_a_share_of_traffic() -> None:
    budget = RetryBudget(share=0.2, allowance=10)
    taken = 0
    for _ in range(1000):
        budget.arrived()
        taken += budget.take()
    assert taken <= 0.2 * 1000 + 10


def test_a_quiet_router_may_retry() -> None:
    assert RetryBudget().take()
