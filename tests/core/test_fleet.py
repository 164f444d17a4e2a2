"""Fleet messages: what one side writes, the other reads; what is malformed is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexinfer.errors import InvalidInput
from flexinfer.fleet import (
    MAX_LINE,
    ColdStart,
    DemandLease,
    Failure,
    FleetModel,
    FleetReplica,
    FleetSnapshot,
    lease_to_line,
    parse_line,
    snapshot_to_line,
)

counts = st.integers(0, 2**53)
seconds = st.floats(0, 1e9)
texts = st.text(max_size=20)
replicas = st.builds(
    FleetReplica,
    id=texts,
    url=texts,
    phase=st.sampled_from(["loading", "ready", "draining"]),
    key=texts,
    substage=texts,
)
models = st.builds(
    FleetModel,
    name=texts,
    aliases=st.lists(texts, max_size=3).map(tuple),
    backend=texts,
    endpoints=st.lists(texts, max_size=3).map(tuple),
    strategy=texts,
    phase=texts,
    context_tokens=counts,
    slots=counts,
    created_unix_s=counts,
    cold_start_timeout_s=seconds,
    scales_from_zero=st.booleans(),
    cold_start=st.builds(ColdStart, p50_s=seconds, p95_s=seconds, samples=counts),
    replicas=st.lists(replicas, max_size=3).map(tuple),
    failure=st.none()
    | st.builds(Failure, code=texts, message=texts, retry_after_s=st.none() | seconds),
    artifact_digest=texts,
    quantization=texts,
)
snapshots = st.builds(
    FleetSnapshot, generation=counts, models=st.lists(models, max_size=3).map(tuple)
)
leases = st.builds(
    DemandLease,
    router=texts,
    model=texts,
    waiting=counts,
    oldest_wait_s=seconds,
    in_flight=st.dictionaries(texts, counts, max_size=3),
    idle_s=st.none() | seconds,
    generation=counts,
    ttl_s=seconds,
)


@given(snapshots)
def test_a_snapshot_survives_its_message(snapshot: FleetSnapshot) -> None:
    line = snapshot_to_line(snapshot)
    assert line.count(b"\n") == 1 and line.endswith(b"\n")
    assert parse_line(line) == snapshot


@given(leases)
def test_a_lease_survives_its_message(lease: DemandLease) -> None:
    assert parse_line(lease_to_line(lease)) == lease


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(line: bytes) -> None:
    try:
        parse_line(line)
    except InvalidInput as error:
        assert error.code == "fleet_message"


def _snapshot(**change: Any) -> bytes:
    replica = {"id": "r", "url": "http://127.0.0.1:1", "phase": "ready", "key": "TOPSECRET"}
    model = {"name": "m", "backend": "b", "context_tokens": 1, "slots": 1, "replicas": [replica]}
    return json.dumps({"snapshot": {"generation": 1, "models": [{**model, **change}]}}).encode()


def test_a_field_of_a_newer_version_is_ignored() -> None:
    found = parse_line(_snapshot(invented="x"))
    assert isinstance(found, FleetSnapshot)
    assert found.models[0].name == "m"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"slots": -1}, "models.0.slots"),
        ({"name": 5}, "models.0.name"),
        ({"replicas": [{"id": "r", "url": "u", "phase": "gone"}]}, "models.0.replicas.0.phase"),
        ({"cold_start": {"p50_s": "soon"}}, "models.0.cold_start.p50_s"),
        ({"failure": {"code": "x"}}, "models.0.failure.message"),
    ],
)
def test_a_wrong_field_is_named_with_its_place(change: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidInput, match=named):
        parse_line(_snapshot(**change))


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-1"])
def test_a_time_that_cannot_be_is_refused(number: str) -> None:
    line = f'{{"lease":{{"router":"r","model":"m","oldest_wait_s":{number}}}}}'.encode()
    with pytest.raises(InvalidInput, match="oldest_wait_s"):
        parse_line(line)


def test_a_refusal_never_holds_a_key() -> None:
    with pytest.raises(InvalidInput) as refused:
        parse_line(_snapshot(replicas=[{"id": "r", "key": ["TOPSECRET"]}]))
    assert "TOPSECRET" not in refused.value.message


def test_a_key_is_not_shown_with_its_replica() -> None:
    found = parse_line(_snapshot())
    assert "TOPSECRET" not in repr(found)


def test_a_message_beyond_the_limit_is_refused_unread() -> None:
    with pytest.raises(InvalidInput, match="expected at most 8388608 bytes"):
        parse_line(b"[" * (MAX_LINE + 1))


@pytest.mark.parametrize("line", [b"[]", b"{}", b"5", b'{"lease":[]}', b"{", b"[" * 100_000])
def test_what_is_no_message_is_refused(line: bytes) -> None:
    with pytest.raises(InvalidInput):
        parse_line(line)


def test_a_number_that_json_lacks_is_never_written() -> None:
    with pytest.raises(ValueError, match="JSON"):
        lease_to_line(DemandLease(router="r", model="m", oldest_wait_s=float("nan")))


def _model(name: str, *aliases: str) -> FleetModel:
    return FleetModel(name=name, aliases=aliases, backend="b", context_tokens=1, slots=1)


def test_a_model_is_found_by_name_before_alias() -> None:
    snapshot = FleetSnapshot(generation=1, models=(_model("a", "b"), _model("b", "c")))
    assert snapshot.find("b") == snapshot.models[1]
    assert snapshot.find("c") == snapshot.models[1]
    assert snapshot.find("d") is None


def test_a_lease_is_busy_while_anything_waits_or_runs() -> None:
    assert not DemandLease(router="r", model="m", in_flight={"x": 0}).is_busy
    assert DemandLease(router="r", model="m", in_flight={"x": 1}).is_busy
    assert DemandLease(router="r", model="m", waiting=1).is_busy
