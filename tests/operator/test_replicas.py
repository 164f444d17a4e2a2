"""One Model's replicas at their edges: scale-up after a start, an idle old revision, what crashes leave behind."""

from __future__ import annotations

import pytest

from flexinfer_operator.plan.action import Start
from flexinfer_operator.testing.drive import Drive, make_model


def crashed(drive: Drive, *, served_s: float = 0.0) -> str:
    """Start a replica, let it serve for that long, crash it; return what those who wait are told."""
    drive.want(1, ttl_s=10_000)
    drive.settle()
    replica = drive.only().id
    if served_s:
        drive.cluster.ready(replica)
        drive.settle()
        drive.clock.advance(served_s)
    drive.cluster.crash(replica, message="abort")
    drive.settle()
    said = drive.told().failure
    drive.clock.advance(0.0 if said is None else said.retry_after_s or 0.0)
    return "" if said is None else said.message


def test_requests_that_waited_for_the_start_are_given_a_moment_at_the_new_replica(
    drive: Drive,
) -> None:
    drive.cluster.put(make_model(serverless={"maxReplicas": 4}))
    drive.want(50, oldest_wait_s=30, ttl_s=100)
    drive.settle()
    drive.cluster.ready(drive.only().id)
    assert drive.settle() == ()
    assert drive.after(0.9) == ()
    assert [type(one) for one in drive.after(0.1)] == [Start]


def test_an_old_revision_that_nobody_uses_any_more_is_followed_by_none(drive: Drive) -> None:
    drive.cluster.put(make_model(config={"slots": 2}, serverless={"idleTimeout": "60s"}))
    old = drive.woken()
    drive.want(0, idle_s=0, ttl_s=1000)
    drive.clock.advance(61)
    drive.cluster.put(make_model(config={"slots": 4}, serverless={"idleTimeout": "60s"}))
    assert drive.kinds(drive.settle()) == [("Drain", old.id)]


def test_a_standing_replica_that_crashed_is_started_again_by_itself(drive: Drive) -> None:
    drive.cluster.put(make_model(serverless={"minReplicas": 1}))
    drive.settle()
    drive.cluster.crash(drive.only().id)
    drive.settle()
    assert drive.again_s == pytest.approx(1.0)
    assert [type(one) for one in drive.after(drive.again_s or 0)] == [Start]


def test_the_failure_of_a_model_nobody_waits_for_ends_by_itself(drive: Drive) -> None:
    drive.cluster.put(make_model())
    drive.want(1)
    drive.settle()
    drive.cluster.crash(drive.only().id)
    drive.want(0, idle_s=0)
    drive.settle()
    assert drive.told().failure is not None
    assert drive.again_s == pytest.approx(1.0)
    drive.after(drive.again_s or 0)
    assert drive.told().failure is None


def test_a_crash_of_long_ago_makes_no_start_wait_longer(drive: Drive) -> None:
    drive.cluster.put(make_model())
    waits = []
    for _ in range(3):
        drive.want(1)
        drive.settle()
        drive.cluster.crash(drive.only().id)
        drive.settle()
        waits.append(drive.failure().retry_after_s)
        drive.after(601)
    assert waits == pytest.approx([1.0, 1.0, 1.0])


def test_ends_of_engines_that_served_do_not_point_to_the_artifact(drive: Drive) -> None:
    drive.cluster.put(make_model())
    said = [crashed(drive, served_s=5) for _ in range(4)]
    assert said[-1] and not any("starts ended" in one for one in said)
    assert "starts ended" not in crashed(drive)
    assert "starts ended" not in crashed(drive)
    assert "the last 3 starts" in crashed(drive)
