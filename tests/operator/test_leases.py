"""The lease book and the publication: what routers said, and what they were told."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from flexinfer.fleet import DemandLease, Failure, FleetModel, FleetReplica
from flexinfer.settings import OperatorSection
from flexinfer_operator.leases import MAX_LEASES, MAX_TTL_S, LeaseBook
from flexinfer_operator.plan.demand import sum_leases
from flexinfer_operator.publication import Publication


def lease(model: str = "m", router: str = "r", **fields: object) -> DemandLease:
    return DemandLease(**{"router": router, "model": model, **fields})  # type: ignore[arg-type]


def book_of(max_ttl_s: float = MAX_TTL_S) -> LeaseBook:
    """A book of a cluster that has Models `m` and `other` and replicas `a` and `b`."""
    return LeaseBook(models={"m", "other"}, replicas={"a", "b"}, max_ttl_s=max_ttl_s)


def size_of(book: LeaseBook) -> int:
    """How many names are kept, however deep."""
    from_connections = sum(len(one.models) for one in book._connections.values())
    return (
        len(book._leases)
        + len(book._model_active_s)
        + len(book._replica_active_s)
        + from_connections
    )


MODEL = FleetModel(name="m", backend="b", context_tokens=1, slots=1)


def test_a_lease_ends_with_its_time_and_was_busy_until_then() -> None:
    book = book_of()
    book.take(1, lease(in_flight={"a": 1}, ttl_s=10), now_s=100)
    assert book.expire(109.9) == ()
    assert book.expire(110) == ("m",)
    assert book.leases() == ()
    assert book.model_active_s("m") == 110


def test_the_same_words_again_are_no_news_but_live_longer() -> None:
    book = book_of()
    assert book.take(1, lease(waiting=1, ttl_s=10), now_s=100)
    assert not book.take(1, lease(waiting=1, oldest_wait_s=5, ttl_s=10), now_s=105)
    assert [view.expires_s for view in book.leases()] == [115]
    assert book.take(1, lease(waiting=2, ttl_s=10), now_s=106)
    assert book.take(1, lease(waiting=2, generation=7, ttl_s=10), now_s=106)


def test_a_router_that_left_is_forgotten_after_the_grace_unless_it_came_back() -> None:
    book = book_of()
    book.take(1, lease(waiting=1, ttl_s=60), now_s=100)
    book.take(1, lease("other", waiting=1, ttl_s=60), now_s=100)
    book.take(2, lease(waiting=1, ttl_s=60), now_s=100.5)
    assert set(book.disconnected(1, now_s=101, grace_s=2)) == {"m", "other"}
    assert book.expire(103) == ("other",)
    assert [view.lease.model for view in book.leases()] == ["m"]
    assert [router.name for router in book.routers()] == ["r"]


def test_a_router_without_a_lease_has_applied_nothing() -> None:
    book = book_of()
    book.connected(5)
    assert [router.generation for router in book.routers()] == [0]
    book.take(5, lease(generation=9), now_s=0)
    book.take(5, lease(generation=4), now_s=0)
    assert [router.generation for router in book.routers()] == [9]


def test_no_lease_outlives_the_longest_that_is_allowed() -> None:
    book = book_of(max_ttl_s=30)
    book.take(1, lease(ttl_s=1e9), now_s=0)
    assert [view.expires_s for view in book.leases()] == [30]


def test_every_time_that_a_router_may_be_set_to_is_kept_as_asked() -> None:
    asked = OperatorSection(lease_ttl_s=MAX_TTL_S).lease_ttl_s
    book = book_of()
    book.take(1, lease(ttl_s=asked), now_s=0)
    assert [view.expires_s for view in book.leases()] == [asked]
    with pytest.raises(ValidationError):
        OperatorSection(lease_ttl_s=MAX_TTL_S + 1)


def test_activity_is_when_a_request_was_last_there() -> None:
    book = book_of()
    book.take(1, lease(idle_s=30.0), now_s=100)
    assert book.model_active_s("m") == 70
    book.take(1, lease(idle_s=50.0), now_s=101)
    assert book.model_active_s("m") == 70
    book.take(1, lease(in_flight={"a": 2, "b": 0}), now_s=102)
    assert (book.replica_active_s("a"), book.replica_active_s("b")) == (102, None)


def test_a_flood_of_names_is_bounded() -> None:
    book = book_of()
    for number in range(MAX_LEASES + 50):
        book.take(1, lease(f"m{number}"), now_s=0)
    assert len(book.leases()) == MAX_LEASES


def test_names_that_nobody_knows_leave_nothing_when_their_leases_end() -> None:
    book = book_of()
    for number in range(3000):
        told = lease(f"m{number}", waiting=1, in_flight={f"r{number}": 1}, ttl_s=1)
        book.take(1, told, now_s=number)
        book.expire(number)
    book.take(1, lease("m", waiting=1, in_flight={"a": 1}, ttl_s=1), now_s=3000)
    book.expire(3001)
    assert size_of(book) == 2
    assert book.model_active_s("m") == 3001 and book.replica_active_s("a") == 3000


def test_a_late_word_of_a_replica_that_is_gone_is_not_kept() -> None:
    replicas = {"a"}
    book = LeaseBook(models={"m"}, replicas=replicas)
    book.take(1, lease(in_flight={"a": 1}), now_s=0)
    replicas.remove("a")
    book.forget_replica("a")
    book.take(1, lease(in_flight={"a": 1}), now_s=1)
    assert book.replica_active_s("a") is None


def test_a_late_word_of_a_model_that_is_gone_is_not_kept() -> None:
    models = {"m"}
    book = LeaseBook(models=models, replicas=())
    book.take(1, lease(waiting=1, ttl_s=5), now_s=0)
    models.remove("m")
    book.forget_model("m")
    book.take(1, lease(waiting=1, ttl_s=5), now_s=1)
    book.expire(6)
    assert size_of(book) == 0


def test_a_forgotten_model_leaves_nothing() -> None:
    book = book_of()
    book.take(1, lease(waiting=1), now_s=0)
    book.forget_model("m")
    assert book.leases() == () and book.model_active_s("m") is None
    assert book.disconnected(1, now_s=1, grace_s=1) == ()


@given(
    st.lists(
        st.tuples(
            st.sampled_from("ab"), st.integers(0, 5), st.integers(0, 5), st.floats(0, 20),
            st.floats(0, 5),
        ),
        max_size=30,
    )
)  # fmt: skip
def test_demand_is_the_sum_of_what_is_alive(said: list[tuple[str, int, int, float, float]]) -> None:
    book, now_s = book_of(), 0.0
    alive: dict[str, tuple[float, int, int]] = {}
    for router, waiting, flying, ttl_s, pause_s in said:
        now_s += pause_s
        told = lease(router=router, waiting=waiting, in_flight={"x": flying}, ttl_s=ttl_s)
        book.take(1, told, now_s=now_s)
        alive[router] = (now_s + ttl_s, waiting, flying)
        demand = sum_leases(book.leases(), now_s=now_s)
        left = [one for one in alive.values() if one[0] > now_s]
        assert demand.waiting == sum(one[1] for one in left)
        assert demand.in_flight.get("x", 0) == sum(one[2] for one in left)
        book.expire(now_s)
        assert len(book.leases()) == len(left)


def test_time_alone_is_no_new_generation() -> None:
    said = Publication(first_generation=10)
    first = replace(MODEL, failure=Failure(code="c", message="m", retry_after_s=5))
    assert said.publish([first], now_s=0) is not None
    later = replace(MODEL, failure=Failure(code="c", message="m", retry_after_s=4))
    assert said.publish([later], now_s=1) is None
    current = said.current(now_s=3)
    assert current is not None and current.generation == 11
    failure = current.models[0].failure
    assert failure is not None and failure.retry_after_s == 2


def test_nothing_is_told_before_the_first_publication() -> None:
    said = Publication(first_generation=10)
    assert said.current(now_s=0) is None
    assert said.publish([], now_s=0) is not None
    assert said.current(now_s=0) is not None


def test_a_replica_that_was_taken_back_drains_anew() -> None:
    said = Publication(first_generation=0)

    def tell(*phases: str) -> None:
        replicas = tuple(FleetReplica(id=str(n), url="", phase=p) for n, p in enumerate(phases))  # type: ignore[arg-type]
        said.publish([replace(MODEL, replicas=replicas)], now_s=0)

    tell("draining")
    tell("draining", "ready")
    assert said.draining_generation("0") == 1
    tell("ready", "ready")
    assert said.draining_generation("0") is None
    tell("draining", "ready")
    assert said.draining_generation("0") == 4
