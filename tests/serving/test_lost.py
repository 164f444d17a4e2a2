"""A replica that froze, or vanished without a word, under requests that wait for its first byte."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from flexinfer.fleet import FleetReplica
from flexinfer.testing import engine as scripts
from flexinfer.testing.engine import ScriptedEngine, Seen, Wire
from flexinfer.testing.fleet import ScriptedFleet, model, replica
from flexinfer_serving.admission.budget import RetryBudget
from flexinfer_serving.explain import opaque
from flexinfer_serving.testing import Running, chat_body, running, until

CHAT = "/v1/chat/completions"


@dataclass(slots=True)
class Frozen:
    """Requests that were sent to `r1`, which answers only once `thaw` is set; `r2` is not up yet."""

    router: Running
    fleet: ScriptedFleet
    first: ScriptedEngine
    second: ScriptedEngine
    asks: list[asyncio.Task[httpx.Response]]
    thaw: asyncio.Event

    def publish(self, r1: str, r2: str) -> None:
        """Show both replicas in those phases; `gone` is not there."""
        phases = {"r1": (self.first, r1), "r2": (self.second, r2)}
        found: list[FleetReplica] = [
            replica(name, engine.url, phase=phase)
            for name, (engine, phase) in phases.items()
            if phase != "gone"
        ]
        self.fleet.publish(model(slots=4, replicas=tuple(found)))


@asynccontextmanager
async def frozen(*, asks: int = 1, **more: Any) -> AsyncIterator[Frozen]:
    thaw = asyncio.Event()

    async def late(seen: Seen, wire: Wire) -> None:
        await thaw.wait()
        await scripts.answers()(seen, wire)

    async with ScriptedEngine(late) as first, ScriptedEngine(scripts.answers()) as second:
        fleet = ScriptedFleet(model(slots=4, replicas=(replica("r1", first.url),)))
        async with running(fleet, sink=fleet) as router:
            tasks = [asyncio.ensure_future(router.chat(**more)) for _ in range(asks)]
            await until(lambda: len(first.requests) == asks)
            yield Frozen(
                router=router, fleet=fleet, first=first, second=second, asks=tasks, thaw=thaw
            )


def server(response: httpx.Response) -> str:
    assert response.status_code == 200, response.text
    return response.headers["x-flexinfer-replica"]


@pytest.mark.parametrize("state", ["loading", "gone"])
@pytest.mark.parametrize("is_stream", [False, True])
def test_its_requests_are_answered_by_another_one_at_once(state: str, is_stream: bool) -> None:
    async def test() -> None:
        async with frozen(asks=2, stream=is_stream) as at:
            at.publish(state, "ready")
            for ask in at.asks:
                assert server(await ask) == opaque("r2")
            await until(lambda: all(seen.closed.is_set() for seen in at.first.requests))
            assert all(seen.left_early for seen in at.first.requests)
            lost = 'flexinfer_retries_total{cause="lost",model="m"}'
            assert await at.router.metric(lost) == 2

    asyncio.run(test())


def test_they_wait_on_while_no_other_one_is_up_and_move_when_one_is() -> None:
    async def test() -> None:
        async with frozen() as at:
            at.publish("loading", "loading")
            await at.router.admin.get("/livez")
            assert at.second.requests == [] and not at.asks[0].done()
            at.publish("loading", "ready")
            assert server(await at.asks[0]) == opaque("r2")

    asyncio.run(test())


def test_a_replica_that_thaws_before_another_one_is_up_still_answers() -> None:
    async def test() -> None:
        async with frozen() as at:
            at.publish("loading", "loading")
            at.thaw.set()
            assert server(await at.asks[0]) == opaque("r1")

    asyncio.run(test())


def test_the_requests_of_a_draining_one_stay() -> None:
    async def test() -> None:
        async with frozen() as at:
            at.publish("draining", "ready")
            at.thaw.set()
            assert server(await at.asks[0]) == opaque("r1")
            assert at.second.requests == []

    asyncio.run(test())


def test_an_answer_that_has_begun_stays() -> None:
    async def test() -> None:
        thaw = asyncio.Event()

        async def begun(seen: Seen, wire: Wire) -> None:
            await wire.head(200, *scripts.STREAM_HEAD)
            await thaw.wait()
            await wire.chunk(b"data: [DONE]\n\n")
            await wire.chunk(b"")

        async with ScriptedEngine(begun) as first, ScriptedEngine(scripts.answers()) as second:
            fleet = ScriptedFleet(model(replicas=(replica("r1", first.url),)))
            async with running(fleet, sink=fleet) as router:
                ask = router.client.stream("POST", CHAT, json=chat_body(stream=True))
                async with ask as response:
                    both = (replica("r1", first.url, phase="loading"), replica("r2", second.url))
                    fleet.publish(model(replicas=both))
                    thaw.set()
                    assert await response.aread() == b"data: [DONE]\n\n"
                assert server(response) == opaque("r1")
                assert second.requests == []

    asyncio.run(test())


def test_a_request_beyond_the_retry_budget_stays() -> None:
    async def test() -> None:
        async with frozen(asks=3) as at:
            at.router.router.retries = RetryBudget(allowance=1.0, share=0.0)
            at.publish("loading", "ready")
            await until(lambda: len(at.second.requests) == 1)
            at.thaw.set()
            servers = sorted([server(await ask) for ask in at.asks])
            assert servers == sorted([opaque("r1"), opaque("r1"), opaque("r2")])

    asyncio.run(test())


def test_a_request_moves_once() -> None:
    async def test() -> None:
        async with frozen() as at:
            thaw = asyncio.Event()

            async def late(seen: Seen, wire: Wire) -> None:
                await thaw.wait()
                await scripts.answers()(seen, wire)

            at.second.script = late
            at.publish("loading", "ready")
            await until(lambda: len(at.second.requests) == 1)
            at.publish("ready", "loading")
            thaw.set()
            assert server(await at.asks[0]) == opaque("r2")
            assert len(at.first.requests) == 1

    asyncio.run(test())
