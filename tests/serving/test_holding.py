"""Requests for a Model that is not up: held, told about, woken once, admitted in order, refused with true words."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from flexinfer.fleet import ColdStart, Failure, FleetModel
from flexinfer.testing import engine as scripts
from flexinfer.testing.engine import Script, ScriptedEngine, Seen, Wire
from flexinfer.testing.fleet import ScriptedFleet, model, replica
from flexinfer_serving.explain import opaque
from flexinfer_serving.testing import Running, raw_chat, running, until

COLD = model(slots=2, cold_start_timeout_s=30.0, cold_start=ColdStart(p50_s=7, p95_s=9, samples=3))


@asynccontextmanager
async def cold(
    script: Script, at: FleetModel = COLD, **section: Any
) -> AsyncIterator[tuple[Running, ScriptedFleet, ScriptedEngine]]:
    """Run a router over a fleet whose one Model has no replica yet."""
    async with ScriptedEngine(script) as engine:
        fleet = ScriptedFleet(at)
        async with running(fleet, sink=fleet, **section) as router:
            yield router, fleet, engine


def ready(engine: ScriptedEngine, at: FleetModel = COLD) -> FleetModel:
    return replace(at, replicas=(replica("r1", engine.url),))


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def main() -> None:
        await test()

    asyncio.run(main())


def test_twenty_requests_at_once_wake_once_and_are_all_answered_in_order() -> None:
    async def test() -> None:
        async with cold(scripts.answers()) as (router, fleet, engine):
            asks = []
            for number in range(20):
                asks.append(asyncio.ensure_future(router.chat(seed=number)))
                await until(lambda: sum_waiting(router) == len(asks))
            assert fleet.leases[0].waiting == 1
            assert engine.requests == []
            fleet.publish(ready(engine))
            responses = await asyncio.gather(*asks)
            assert [response.status_code for response in responses] == [200] * 20
            order = [seen.json["seed"] for seen in engine.requests]
            assert all(abs(place - seed) < COLD.slots for place, seed in enumerate(order))
            assert float(responses[0].headers["x-flexinfer-cold-start"]) > 0

    run(test)


def sum_waiting(router: Running) -> int:
    found = router.router.dispatcher.waiting
    return sum(found.values())


def test_demand_is_written_at_once_and_carries_what_the_operator_needs() -> None:
    async def test() -> None:
        async with cold(scripts.answers()) as (router, fleet, engine):
            ask = asyncio.ensure_future(router.chat())
            await asyncio.wait_for(fleet.leased.wait(), 5)
            lease = fleet.leases[0]
            assert (lease.model, lease.waiting, lease.generation) == ("m", 1, 1)
            assert lease.idle_s is not None and lease.idle_s < 5
            assert lease.is_busy
            fleet.publish(ready(engine))
            await ask
            await until(lambda: not fleet.leases[-1].is_busy)
            assert fleet.leases[-1].generation == 2

    run(test)


def test_a_draining_replica_is_acknowledged_and_gets_nothing_new() -> None:
    gate = asyncio.Event

    async def test() -> None:
        release = gate()

        async def slow(seen: Seen, wire: Wire) -> None:
            await release.wait()
            await scripts.answers()(seen, wire)

        async with cold(slow) as (router, fleet, engine):
            fleet.publish(ready(engine))
            first = asyncio.ensure_future(router.chat())
            await engine.arrived.wait()
            fleet.publish(replace(COLD, replicas=(replica("r1", engine.url, phase="draining"),)))
            assert fleet.leases[-1].generation == 3
            assert fleet.leases[-1].in_flight == {"r1": 1}
            second = asyncio.ensure_future(router.chat())
            await until(lambda: sum_waiting(router) == 1)
            release.set()
            assert (await first).status_code == 200
            await until(lambda: fleet.leases[-1].in_flight == {})
            assert len(engine.requests) == 1
            fleet.publish(ready(engine))
            assert (await second).status_code == 200

    run(test)


def test_a_replica_that_failed_is_named_to_the_operator_until_it_answers() -> None:
    async def test() -> None:
        async with cold(scripts.answers()) as (router, fleet, engine):
            fleet.publish(replace(COLD, replicas=(replica("r0"),)))  # nobody listens there
            ask = asyncio.ensure_future(router.chat())
            await until(lambda: fleet.leases and fleet.leases[-1].suspects == ("r0",))
            assert fleet.leases[-1].waiting == 1
            fleet.publish(replace(COLD, replicas=(replica("r0"), replica("r1", engine.url))))
            assert (await ask).status_code == 200
            fleet.publish(replace(COLD, replicas=(replica("r0", engine.url),)))
            await until(lambda: fleet.leases[-1].suspects == ())

    run(test)


def test_a_new_operator_hears_at_once_of_those_who_wait() -> None:
    async def test() -> None:
        async with cold(scripts.answers()) as (router, fleet, engine):
            ask = asyncio.ensure_future(router.chat())
            await until(lambda: fleet.leases)
            fleet.leases.clear()
            fleet.reconnect()
            assert fleet.leases[0].waiting == 1
            fleet.publish(ready(engine))
            await ask

    run(test)


def test_an_empty_pools_budget_ends_in_503_with_a_true_retry_after() -> None:
    async def test() -> None:
        at = replace(COLD, cold_start_timeout_s=0.3)
        async with cold(scripts.answers(), at) as (router, _, _engine):
            response = await router.chat()
            assert response.status_code == 503
            assert response.json()["error"]["code"] == "model_loading"
            assert response.headers["retry-after"] == "9"
            assert response.headers["x-flexinfer-explain"]

    run(test)


def test_a_failed_load_is_503_at_once_with_the_cause() -> None:
    async def test() -> None:
        async with cold(scripts.answers()) as (router, fleet, _):
            ask = asyncio.ensure_future(router.chat())
            await until(lambda: fleet.leases)
            failure = Failure(code="out_of_memory", message="needs 9 GB", retry_after_s=20)
            fleet.publish(replace(COLD, failure=failure))
            response = await ask
            assert response.status_code == 503
            assert response.json()["error"]["code"] == "model_failed"
            assert "needs 9 GB" in response.json()["error"]["message"]
            assert response.headers["retry-after"] == "20"

    run(test)


def test_a_model_that_was_never_bound_tells_its_cause_not_a_missing_endpoint() -> None:
    """What its engine offers is not known: nothing may be said of that."""

    async def test() -> None:
        failure = Failure(code="config_invalid", message="spec.config.slotz: unknown key")
        at = replace(COLD, endpoints=(), failure=failure)
        async with cold(scripts.answers(), at) as (router, fleet, engine):
            response = await router.chat()
            assert response.status_code == 503
            assert response.json()["error"]["code"] == "model_failed"
            assert "slotz" in response.json()["error"]["message"]
            fleet.publish(replace(ready(engine), endpoints=()))
            assert (await router.chat()).status_code == 200

    run(test)


def test_a_full_queue_is_429_with_retry_after() -> None:
    async def test() -> None:
        async with cold(scripts.answers(), max_queue_requests=1) as (router, fleet, engine):
            first = asyncio.ensure_future(router.chat())
            await until(lambda: sum_waiting(router) == 1)
            second = await router.chat()
            assert second.status_code == 429
            assert second.json()["error"]["code"] == "model_overloaded"
            assert int(second.headers["retry-after"]) >= 1
            fleet.publish(ready(engine))
            assert (await first).status_code == 200

    run(test)


def test_a_busy_pools_budget_ends_in_429() -> None:
    async def test() -> None:
        async with cold(scripts.raw(end="hold"), saturated_wait_s=0.2) as (router, fleet, engine):
            fleet.publish(replace(ready(engine), slots=1))
            first = asyncio.ensure_future(router.chat())
            await engine.arrived.wait()
            second = await router.chat()
            assert second.status_code == 429
            first.cancel()

    run(test)


def test_the_callers_deadline_is_504_in_the_queue_and_at_the_engine() -> None:
    async def test() -> None:
        unmeasured = replace(COLD, cold_start=ColdStart())
        async with cold(scripts.raw(end="hold"), unmeasured) as (router, fleet, engine):

            async def ask() -> tuple[int, str]:
                response = await router.client.post(
                    "/v1/chat/completions",
                    content=raw_chat().partition(b"\r\n\r\n")[2],
                    headers={"x-request-deadline": "0.3"},
                )
                return response.status_code, response.json()["error"]["code"]

            assert await ask() == (504, "deadline_exceeded")
            fleet.publish(ready(engine))
            assert await ask() == (504, "deadline_exceeded")
            await until(lambda: engine.requests[0].closed.is_set())

    run(test)


def test_a_deadline_that_cannot_be_met_is_answered_at_once_and_wakes_nobody() -> None:
    async def test() -> None:
        async with cold(scripts.answers()) as (router, fleet, _):
            response = await router.client.post(
                "/v1/chat/completions",
                content=raw_chat().partition(b"\r\n\r\n")[2],
                headers={"x-request-deadline": "5"},
            )
            assert response.json()["error"]["code"] == "model_loading"
            assert response.headers["retry-after"] == "9"
            assert sum(lease.waiting for lease in fleet.leases) == 0

    run(test)


def test_a_bad_deadline_is_400() -> None:
    async def test() -> None:
        async with cold(scripts.answers()) as (router, _, _engine):
            response = await router.client.post(
                "/v1/chat/completions", content=b"{}", headers={"x-request-deadline": "soon"}
            )
            assert response.json()["error"]["param"] == "X-Request-Deadline"

    run(test)


async def lines_of(router: Running) -> AsyncIterator[str]:
    body = json.loads(raw_chat(stream=True).partition(b"\r\n\r\n")[2])
    async with router.client.stream("POST", "/v1/chat/completions", json=body) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        async for line in response.aiter_lines():
            if line:
                yield line


def test_a_held_stream_gets_comments_then_its_values_then_the_engines_bytes() -> None:
    async def test() -> None:
        async with cold(scripts.stream_of("a"), keepalive_comment_s=0.1) as (router, fleet, engine):
            fleet.publish(
                replace(
                    COLD,
                    replicas=(replace(replica("r1", phase="loading"), substage="LoadingWeights"),),
                )
            )
            found: list[str] = []
            async for line in lines_of(router):
                found.append(line)
                if len(found) == 2:
                    fleet.publish(ready(engine))
            assert found[0].startswith(": flexinfer loading LoadingWeights 0.")
            values = next(line for line in found if "cold-start=" in line)
            assert "model=m" in values and f"replica={opaque('r1')}" in values
            assert found[-1] == "data: [DONE]"

    run(test)


def test_a_held_stream_whose_load_fails_ends_with_an_error_event() -> None:
    async def test() -> None:
        async with cold(scripts.stream_of("a"), keepalive_comment_s=0.1) as (router, fleet, _):
            found: list[str] = []
            async for line in lines_of(router):
                if not found:
                    fleet.publish(replace(COLD, failure=Failure(code="crash", message="died")))
                found.append(line)
            error = json.loads(found[-1].removeprefix("data: "))["error"]
            assert error["code"] == "model_failed"

    run(test)


def test_before_the_first_comment_the_status_is_still_open() -> None:
    async def test() -> None:
        async with cold(scripts.stream_of("a"), replace(COLD, cold_start_timeout_s=0.2)) as (
            router,
            _,
            _e,
        ):
            response = await router.chat(stream=True)
            assert response.status_code == 503

    run(test)


def test_a_static_fleet_without_a_ready_replica_is_answered_at_once() -> None:
    async def test() -> None:
        async with running(ScriptedFleet(COLD)) as router:
            response = await router.chat()
            assert (response.status_code, response.json()["error"]["code"]) == (
                503,
                "model_unavailable",
            )

    run(test)


def test_a_router_whose_replicas_are_all_dead_is_ready_as_it_can_say_so() -> None:
    async def test() -> None:
        dead = replace(COLD, replicas=(replica("r1", phase="loading"),))
        async with running(ScriptedFleet(dead)) as router:
            for client in (router.client, router.admin):
                assert (await client.get("/readyz")).status_code == 200

    run(test)


def test_a_deleted_model_is_found_by_nobody_and_its_running_answer_ends() -> None:
    async def test() -> None:
        release = asyncio.Event()

        async def slow(seen: Seen, wire: Wire) -> None:
            await release.wait()
            await scripts.answers()(seen, wire)

        async with ScriptedEngine(slow) as engine:
            fleet = ScriptedFleet(ready(engine, replace(COLD, slots=1)))
            async with running(fleet) as router:
                runs, waits = (asyncio.ensure_future(router.chat()) for _ in range(2))
                await until(lambda: sum_waiting(router) == 1)
                draining = (replica("r1", engine.url, phase="draining"),)
                fleet.publish(replace(COLD, replicas=draining, is_deleted=True))
                for refused in (await waits, await router.chat()):
                    code = refused.json()["error"]["code"]
                    assert (refused.status_code, code) == (404, "model_not_found")
                listed = (await router.client.get("/v1/models")).json()
                assert listed["data"] == []
                release.set()
                assert (await runs).status_code == 200

    run(test)


def test_a_model_that_is_removed_refuses_those_who_wait() -> None:
    async def test() -> None:
        async with cold(scripts.answers()) as (router, fleet, _):
            ask = asyncio.ensure_future(router.chat())
            await until(lambda: sum_waiting(router) == 1)
            fleet.publish()
            assert (await ask).json()["error"]["code"] == "model_not_found"

    run(test)


@pytest.mark.parametrize("slots", [1, 3])
def test_never_more_at_the_engines_than_their_slots(slots: int) -> None:
    most = 0
    now = 0

    async def test() -> None:
        release = asyncio.Event()

        async def count(seen: Seen, wire: Wire) -> None:
            nonlocal most, now
            now += 1
            most = max(most, now)
            await release.wait()
            now -= 1
            await scripts.answers()(seen, wire)

        async with ScriptedEngine(count) as engine:
            replicas = (replica("r1", engine.url), replica("r2", engine.url + "/2"))
            fleet = ScriptedFleet(replace(COLD, slots=slots, replicas=replicas))
            async with running(fleet) as router:
                asks = [asyncio.ensure_future(router.chat()) for _ in range(16)]
                # Every request is decided, and those that were let through have all come.
                await until(lambda: sum_waiting(router) == 16 - 2 * slots and now == 2 * slots)
                release.set()
                responses = await asyncio.gather(*asks)
                assert {response.status_code for response in responses} == {200}
                assert most <= 2 * slots

    run(test)


def test_the_first_first_byte_of_each_replica_is_told_once_in_a_lease() -> None:
    async def slow(seen: Seen, wire: Wire) -> None:
        await asyncio.sleep(0.05)
        await scripts.answers()(seen, wire)

    async def test() -> None:
        async with cold(slow) as (router, fleet, engine):
            ask = asyncio.ensure_future(router.chat())  # whole: its first byte is its last
            await until(lambda: sum_waiting(router) == 1)
            fleet.publish(ready(engine))
            await ask
            await until(lambda: not fleet.leases[-1].is_busy)
            assert told(fleet, "r1") == []
            await router.chat(stream=True)
            await until(lambda: told(fleet, "r1"))
            engine.script = scripts.answers()
            await router.chat(stream=True)
            both = (replica("r1", engine.url), replica("r2", engine.url + "/2"))
            fleet.publish(replace(COLD, replicas=both))
            await router.chat(stream=True)
            await until(lambda: told(fleet, "r2"))
            assert len(told(fleet, "r1")) == len(told(fleet, "r2")) == 1
            assert told(fleet, "r1")[0] >= 0.05

    run(test)


def told(fleet: ScriptedFleet, name: str) -> list[float]:
    """Return every first token of that replica that any lease told."""
    return [lease.first_token_s[name] for lease in fleet.leases if name in lease.first_token_s]
