"""Who may start when the machine is full."""

from __future__ import annotations

import pytest

from flexinfer_operator.plan.view import Policy
from flexinfer_operator.testing.drive import Drive, make_model


@pytest.fixture
def full() -> Drive:
    """One place, taken by `a`, which was just used."""
    drive = Drive(Policy(max_loaded=1, swap_wait_s=10))
    drive.cluster.put(make_model("a"))
    drive.cluster.put(make_model("b"))
    drive.woken("a")
    return drive


def test_an_idle_model_makes_room_for_one_that_is_asked_for(full: Drive) -> None:
    full.want(0, model="a", idle_s=0)
    full.want(1, model="b")
    replica = full.only("a").id
    assert full.kinds(full.settle()) == [("Drain", replica)]
    full.want(0, model="a", idle_s=0)
    assert full.kinds(full.settle()) == [("Stop", replica)]
    assert full.cluster.status("b").phase == "Pending"
    full.cluster.ended(replica)
    assert [kind for kind, _ in full.kinds(full.settle())] == ["Start"]


def test_a_busy_model_is_left_alone_until_the_other_has_waited(full: Drive) -> None:
    replica = full.only("a").id
    full.want(0, model="a", in_flight={replica: 1}, ttl_s=100)
    full.want(1, model="b", ttl_s=100)
    assert full.after(9.9) == ()
    assert full.kinds(full.after(0.1)) == [("Drain", replica)]
    assert full.after(5) == ()
    full.want(3, model="a", ttl_s=100)
    assert full.kinds(full.settle()) == [("Stop", replica)]


def test_room_made_for_someone_who_left_is_given_back(full: Drive) -> None:
    replica = full.only("a").id
    full.want(0, model="a", in_flight={replica: 1}, ttl_s=100)
    full.want(1, model="b", ttl_s=100)
    full.after(10)
    full.want(0, model="b", ttl_s=100)
    assert full.kinds(full.settle()) == [("Undrain", replica)]


def test_a_busy_model_of_higher_priority_never_makes_room() -> None:
    drive = Drive(Policy(max_loaded=1, swap_wait_s=10))
    drive.cluster.put(make_model("a", gpu={"priority": 200}))
    drive.cluster.put(make_model("b"))
    replica = drive.woken("a").id
    for _ in range(10):
        drive.want(0, model="a", in_flight={replica: 1}, ttl_s=100)
        drive.want(1, model="b", oldest_wait_s=500, ttl_s=100)
        assert drive.after(50) == ()
    assert drive.cluster.status("b").conditions[3].reason == "NoRoom"
    assert drive.told("b").waits_for.startswith("a place (")


def test_the_lowest_priority_then_the_longest_idle_goes_first() -> None:
    drive = Drive(Policy(max_loaded=3))
    for name, priority in (("a", 100), ("b", 50), ("c", 50), ("d", 100)):
        drive.cluster.put(make_model(name, gpu={"priority": priority}))
    for name in "bca":
        drive.woken(name)
        drive.want(0, model=name, idle_s=0)
        drive.after(1)
    drive.want(1, model="d")
    assert drive.kinds(drive.settle()) == [("Drain", drive.only("b").id)]


def test_one_waiter_drains_one_replica() -> None:
    drive = Drive(Policy(max_loaded=2))
    for name in "abc":
        drive.cluster.put(make_model(name))
    for name in "ab":
        drive.woken(name)
        drive.want(0, model=name, idle_s=0)
    drive.want(1, model="c", ttl_s=100)
    assert len(drive.settle()) == 1
    drive.want(5, model="c", ttl_s=100)
    assert drive.after(5) == ()


def test_a_standing_wish_takes_free_room_and_drains_nobody() -> None:
    drive = Drive(Policy(max_loaded=1))
    drive.cluster.put(make_model("a"))
    replica = drive.woken("a")
    drive.want(0, model="a", idle_s=0, ttl_s=1000)
    drive.cluster.put(make_model("b", serverless={"minReplicas": 1}))
    assert drive.after(100) == ()
    drive.after(200)
    drive.want(0, model="a", idle_s=300)
    drive.settle()
    drive.cluster.ended(replica.id)
    assert [one.model for one in drive.settle()] == ["b"]


def test_a_standing_replica_yields_to_a_higher_priority_only_and_comes_back() -> None:
    drive = Drive(Policy(max_loaded=1))
    drive.cluster.put(make_model("a", serverless={"minReplicas": 1}))
    drive.settle()
    replica = drive.only("a").id
    drive.cluster.ready(replica)
    drive.cluster.put(make_model("same"))
    drive.cluster.put(make_model("high", gpu={"priority": 300}))
    drive.want(1, model="same", ttl_s=1000)
    assert drive.after(60) == ()
    drive.want(1, model="high", ttl_s=1000)
    assert drive.kinds(drive.settle()) == [("Drain", replica)]
    drive.want(1, model="high", ttl_s=1000)
    drive.settle()
    drive.cluster.ended(replica)
    assert [one.model for one in drive.settle()] == ["high"]
    assert drive.cluster.status("a").phase == "Preempted"


def test_a_load_nobody_waits_for_any_more_yields() -> None:
    drive = Drive(Policy(max_loaded=1))
    for name in "ab":
        drive.cluster.put(make_model(name))
    drive.want(1, model="a")
    drive.settle()
    drive.want(1, model="b")
    assert drive.settle() == ()
    drive.want(0, model="a")
    assert drive.kinds(drive.settle()) == [("Stop", drive.only("a").id)]


def test_higher_priority_then_longer_wait_comes_first() -> None:
    drive = Drive(Policy(max_loaded=1))
    for name, priority in (("a", 100), ("b", 100), ("c", 200)):
        drive.cluster.put(make_model(name, gpu={"priority": priority}))
        drive.want(1, model=name, oldest_wait_s={"a": 1, "b": 5, "c": 0}[name], ttl_s=1000)
    order = []
    for _ in range(3):
        drive.settle()
        (replica,) = drive.cluster.replicas
        order.append(replica.model)
        drive.want(0, model=replica.model, ttl_s=1000)
        drive.settle()
        drive.cluster.ended(replica.id)
    assert order == ["c", "b", "a"]


def test_a_model_that_loads_for_somebody_is_never_taken() -> None:
    drive = Drive(Policy(max_loaded=1, swap_wait_s=0))
    for name in "ab":
        drive.cluster.put(make_model(name))
    drive.want(1, model="a", ttl_s=1000)
    drive.settle()
    drive.want(1, model="b", oldest_wait_s=500, ttl_s=1000)
    assert drive.settle() == ()
    drive.cluster.ready(drive.only("a").id)
    assert drive.kinds(drive.settle()) == [("Drain", drive.only("a").id)]


def test_a_start_that_waits_for_somebody_else_yields_when_it_had_its_turn() -> None:
    drive = Drive(Policy(max_loaded=1, swap_wait_s=10))
    for name in "ab":
        drive.cluster.put(make_model(name))
    drive.want(1, model="a", ttl_s=1000)
    drive.settle()
    replica = drive.only("a").id
    drive.cluster.waits(replica, "the verification of a blob")
    drive.want(1, model="b", oldest_wait_s=500, ttl_s=1000)
    assert drive.after(9.9) == ()
    assert drive.kinds(drive.after(0.1)) == [("Stop", replica)]
    assert drive.cluster.status("a").phase == "Pending"
    drive.cluster.ended(replica)
    drive.settle()
    assert drive.replicas("a") == () and drive.only("b").state == "loading"


def test_a_start_of_higher_priority_that_waits_for_somebody_else_does_not_yield() -> None:
    drive = Drive(Policy(max_loaded=1, swap_wait_s=0))
    drive.cluster.put(make_model("a", gpu={"priority": 200}))
    drive.cluster.put(make_model("b"))
    drive.want(1, model="a", ttl_s=1000)
    drive.settle()
    drive.cluster.waits(drive.only("a").id, "the verification of a blob")
    drive.want(1, model="b", oldest_wait_s=500, ttl_s=1000)
    assert drive.after(20) == ()


def test_one_that_just_became_ready_serves_before_it_makes_room() -> None:
    drive = Drive(Policy(max_loaded=1, swap_wait_s=10))
    for name in "ab":
        drive.cluster.put(make_model(name))
    drive.want(1, model="a", ttl_s=1000)
    drive.settle()
    drive.want(1, model="b", oldest_wait_s=500, ttl_s=1000)
    replica = drive.only("a").id
    drive.cluster.ready(replica)
    drive.want(0, model="a", in_flight={replica: 1}, ttl_s=1000)
    assert drive.after(9.9) == ()
    assert drive.kinds(drive.after(0.1)) == [("Drain", replica)]


def test_a_place_that_becomes_free_anyway_is_waited_for() -> None:
    drive = Drive(Policy(max_loaded=2))
    drive.cluster.put(make_model("a", serverless={"idleTimeout": "60s"}))
    for name in "bc":
        drive.cluster.put(make_model(name))
    for name in "ab":
        drive.woken(name)
        drive.want(0, model=name, idle_s=0, ttl_s=1000)
    drive.want(0, model="a", router="r2", generation=0, ttl_s=1000)  # it never acknowledges
    assert drive.kinds(drive.after(60)) == [("Drain", drive.only("a").id)]
    drive.want(1, model="c", ttl_s=1000)
    assert drive.settle() == ()
    assert drive.only("b").draining is None
