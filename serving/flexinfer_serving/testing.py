"""A whole router on free ports, for tests: real sockets, a fleet and engines on scripts."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from flexinfer.engine import Engine
from flexinfer.settings import ServeSection
from flexinfer.testing.engine import PlainEngine
from flexinfer_serving.fleet import DemandSink, FleetSource
from flexinfer_serving.router import Router
from flexinfer_serving.worker import Worker

LIMIT_S = 10.0
"""How long a test waits for what must happen."""


@dataclass(slots=True)
class Running:
    """A router that serves, and clients for its two ports."""

    router: Router
    worker: Worker
    task: asyncio.Task[None]
    client: httpx.AsyncClient
    admin: httpx.AsyncClient

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.worker.public_port}"

    async def chat(self, **more: Any) -> httpx.Response:
        return await self.client.post("/v1/chat/completions", json=chat_body(**more))

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.worker.public_port)

    async def metric(self, line: str) -> float:
        """Return the value of the metric with exactly those labels; 0 where it is not there."""
        text = (await self.admin.get("/metrics")).text
        for row in text.splitlines():
            if row.startswith(line + " "):
                return float(row.rpartition(" ")[2])
        return 0.0


def chat_body(**more: Any) -> dict[str, Any]:
    return {"model": "m", "messages": [{"role": "user", "content": "hi"}], **more}


def raw_chat(**more: Any) -> bytes:
    """Return a chat request as it goes over the wire."""
    body = json.dumps(chat_body(**more)).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


@asynccontextmanager
async def running(
    source: FleetSource,
    *,
    sink: DemandSink | None = None,
    engine: Engine | None = None,
    **section: Any,
) -> AsyncIterator[Running]:
    """Run a router over *source* until the block ends, then end it in order."""
    settings = ServeSection(**{"port": 0, "admin_port": 0, "drain_timeout_s": 0.0, **section})
    router = Router(
        section=settings,
        source=source,
        sink=sink,
        engine_named=lambda name: engine or PlainEngine(),
    )
    worker = Worker(router)
    task = asyncio.create_task(worker.run())
    serving = asyncio.ensure_future(worker.is_serving.wait())
    await asyncio.wait({task, serving}, return_when=asyncio.FIRST_COMPLETED, timeout=LIMIT_S)
    if task.done():
        serving.cancel()
        task.result()
    public = f"http://127.0.0.1:{worker.public_port}"
    admin = f"http://127.0.0.1:{worker.admin_port}"
    try:
        async with (
            _client(public) as client,
            _client(admin) as other,
        ):
            await until(lambda: router.dispatcher.snapshot is not None)
            yield Running(router=router, worker=worker, task=task, client=client, admin=other)
    finally:
        worker.end()
        await task


def _client(url: str) -> httpx.AsyncClient:
    # Plain HTTP on loopback: reading the machine's certificates would take longer than most tests.
    return httpx.AsyncClient(base_url=url, timeout=LIMIT_S, trust_env=False, verify=False)


async def until(condition: Callable[[], object]) -> None:
    """Return once *condition* holds.

    Raises:
        TimeoutError: it does not within LIMIT_S.
    """
    async with asyncio.timeout(LIMIT_S):
        while not condition():
            await asyncio.sleep(0.005)
