"""What `flexinfer status` tells of a router that drains: one that was asked to, and one that ends."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from flexinfer.cli import app
from flexinfer.places import Home
from flexinfer.process import SingleInstance
from flexinfer.testing import engine as scripts
from flexinfer.testing.engine import ScriptedEngine, Seen, Wire
from flexinfer.testing.fleet import ScriptedFleet, model, replica
from flexinfer_serving.testing import Running, running, until


class Status:
    """`flexinfer status` of a home whose `up` has started *router*."""

    def __init__(self, router: Running) -> None:
        self._router = router

    async def text(self, *options: str) -> Result:
        return await asyncio.to_thread(CliRunner().invoke, app, ["status", *options])

    async def tree(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((await self.text("--json")).stdout)
        return found


@pytest.fixture
def with_status(home: Home, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Run a test beside a router that `up` seems to have started, whose engine answers when it may."""
    monkeypatch.setenv("FLEXINFER_HOME", str(home.root))

    def run(test: Callable[[Running, Status, asyncio.Event], Awaitable[None]]) -> None:
        async def within() -> None:
            may_answer = asyncio.Event()

            async def slow(seen: Seen, wire: Wire) -> None:
                await may_answer.wait()
                await scripts.answers()(seen, wire)

            async with ScriptedEngine(slow) as engine:
                fleet = ScriptedFleet(model(slots=4, replicas=(replica("r1", engine.url),)))
                async with running(fleet, drain_timeout_s=30) as router:
                    about = {
                        "address": f"{router.url}/v1",
                        "admin": str(router.admin.base_url).rstrip("/"),
                        "folder": "/",
                    }
                    with SingleInstance.acquire(home.up_lock, about):
                        await test(router, Status(router), may_answer)

        asyncio.run(within())

    return run


def test_one_that_was_asked_to_drain_answers_and_is_told_how_to_end_it(
    with_status: Callable[..., None],
) -> None:
    async def test(router: Running, status: Status, may_answer: asyncio.Event) -> None:
        before = await status.tree()
        assert before["answers"] and not before["draining"] and before["models"]
        await router.admin.post("/drain")
        said = await status.text()
        assert said.exit_code == 0
        assert "draining: POST /drain was called; requests are answered" in said.stdout
        assert f"`curl -X DELETE {before['admin']}/drain`" in said.stdout
        assert "does not answer" not in said.stdout
        assert await status.tree() == before | {"draining": True}
        may_answer.set()
        assert (await router.chat()).status_code == 200
        await router.admin.delete("/drain")
        assert await status.tree() == before

    with_status(test)


def test_one_that_ends_is_not_told_to_be_asked(with_status: Callable[..., None]) -> None:
    async def test(router: Running, status: Status, may_answer: asyncio.Event) -> None:
        await router.admin.post("/drain")
        ask = asyncio.ensure_future(router.chat())
        await until(lambda: router.router.active)
        router.worker.end()
        await until(lambda: router.router.is_ending)
        said = await status.text()
        assert said.exit_code == 6
        assert "does not answer: it is ending" in said.stdout
        may_answer.set()
        assert (await ask).status_code == 200

    with_status(test)
