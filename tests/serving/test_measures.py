"""Which numbers a router gives of its Models, and when they end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

from flexinfer.fleet import Failure
from flexinfer.metrics import Metrics
from flexinfer.testing import engine as scripts
from flexinfer.testing.engine import ScriptedEngine
from flexinfer.testing.fleet import ScriptedFleet, model, replica
from flexinfer_serving.testing import Running, running, until

COLD = model(slots=2, cold_start_timeout_s=30.0)
LOADING = replace(COLD, replicas=(replica("r1", phase="loading"),))
READY = 'flexinfer_cold_starts_total{model="m",outcome="ready"}'
FAILED = 'flexinfer_cold_starts_total{model="m",outcome="failed"}'
TIMES = 'flexinfer_cold_start_seconds_count{model="m",phase="total"}'
Test = Callable[[Running, ScriptedFleet, ScriptedEngine], Awaitable[None]]


def serving(test: Test) -> None:
    """Run *test* against a router whose one Model has no replica yet."""

    async def run() -> None:
        async with ScriptedEngine(scripts.answers()) as engine:
            fleet = ScriptedFleet(COLD)
            async with running(fleet, sink=fleet) as router:
                await test(router, fleet, engine)

    asyncio.run(run())


def test_a_cold_start_that_somebody_waited_for_is_counted_and_timed() -> None:
    async def test(router: Running, fleet: ScriptedFleet, engine: ScriptedEngine) -> None:
        ask = asyncio.ensure_future(router.chat())
        await until(lambda: router.router.dispatcher.waiting)
        fleet.publish(LOADING)
        fleet.publish(replace(COLD, replicas=(replica("r1", engine.url),)))
        assert (await ask).status_code == 200
        assert (await router.chat()).status_code == 200
        assert [await router.metric(line) for line in (READY, TIMES, FAILED)] == [1, 1, 0]

    serving(test)


def test_a_start_that_fails_is_counted_and_not_timed() -> None:
    async def test(router: Running, fleet: ScriptedFleet, engine: ScriptedEngine) -> None:
        fleet.publish(LOADING)
        fleet.publish(replace(COLD, failure=Failure(code="crash", message="died")))
        assert [await router.metric(line) for line in (READY, TIMES, FAILED)] == [0, 0, 1]

    serving(test)


def test_a_replica_that_was_only_suspected_is_no_cold_start() -> None:
    async def test(router: Running, fleet: ScriptedFleet, engine: ScriptedEngine) -> None:
        engine.script = scripts.status(503)
        fleet.publish(replace(COLD, replicas=(replica("r1", engine.url),)))
        ask = asyncio.ensure_future(router.chat())
        await until(lambda: router.router.dispatcher.waiting)
        engine.script = scripts.answers()
        assert (await ask).status_code == 200
        assert [await router.metric(line) for line in (READY, TIMES, FAILED)] == [0, 0, 0]

    serving(test)


def test_the_gauges_of_a_model_end_with_it_and_its_counters_stay() -> None:
    async def test(router: Running, fleet: ScriptedFleet, engine: ScriptedEngine) -> None:
        fleet.publish(LOADING)
        fleet.publish(replace(COLD, replicas=(replica("r1", engine.url),)))
        assert (await router.chat()).status_code == 200
        assert await router.metric('flexinfer_replicas{model="m",phase="ready"}') == 1
        fleet.publish(model("n"))
        await until(lambda: not router.router.active)
        lines = (await router.admin.get("/metrics")).text.splitlines()
        gauges = ("replicas", "requests_waiting", "waiting_bytes", "requests_in_flight")
        for name in gauges:
            shown = {
                line.split('model="')[1].split('"')[0]
                for line in lines
                if line.startswith(f"flexinfer_{name}{{")
            }
            assert shown == {"n"}
        assert await router.metric(READY) == 1
        fleet.publish(COLD)
        assert 'flexinfer_requests_waiting{model="m"}' in (await router.admin.get("/metrics")).text

    serving(test)


def test_the_gauges_of_a_removed_model_stay_until_its_last_request_has_ended() -> None:
    async def test(router: Running, fleet: ScriptedFleet, engine: ScriptedEngine) -> None:
        engine.script = scripts.raw(end="hold")
        fleet.publish(replace(COLD, replicas=(replica("r1", engine.url),)))
        ask = asyncio.ensure_future(router.chat())
        await engine.arrived.wait()
        fleet.publish()
        in_flight = 'flexinfer_requests_in_flight{model="m"}'
        assert await router.metric(in_flight) == 1
        ask.cancel()
        await until(lambda: not router.router.active)
        assert in_flight not in (await router.admin.get("/metrics")).text

    serving(test)


def test_of_a_gauge_only_the_labels_that_are_named_are_removed() -> None:
    metrics = Metrics()
    metrics.set("flexinfer_requests_waiting", 1, model="m")
    metrics.remove("flexinfer_requests_waiting", model="nobody")  # never set: no error
    assert b'flexinfer_requests_waiting{model="m"} 1.0' in metrics.exposition()
    metrics.remove("flexinfer_requests_waiting", model="m")
    assert b"flexinfer_requests_waiting{" not in metrics.exposition()
