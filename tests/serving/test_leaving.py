"""A client leaves: its place is freed and the engine's socket is closed, in every phase."""

from __future__ import annotations

import asyncio
import socket
from dataclasses import replace

import pytest

from flexinfer.testing import engine as scripts
from flexinfer.testing.engine import ScriptedEngine
from flexinfer.testing.fleet import ScriptedFleet, model, replica
from flexinfer_serving.testing import Running, raw_chat, running, until

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
EVENT = scripts.event("a")
FIRST = HEAD + b"%x\r\n%s\r\n" % (len(EVENT), EVENT)


async def quiet(router: Running) -> None:
    """Wait until the router counts nobody any more, then check what it tells."""
    await until(lambda: not router.router.active)
    assert await router.metric('flexinfer_requests_in_flight{model="m"}') == 0
    assert await router.metric('flexinfer_requests_waiting{model="m"}') == 0
    assert await router.metric('flexinfer_waiting_bytes{model="m"}') == 0


def leave(stage: str, *, stream: bool, answer: bytes, sees: bytes = b"") -> None:
    async def run() -> None:
        async with ScriptedEngine(scripts.raw(answer, end="hold")) as engine:
            fleet = ScriptedFleet(model(replicas=(replica("r1", engine.url),)))
            async with running(fleet, sink=fleet) as router:
                reader, writer = await router.connect()
                writer.write(raw_chat(stream=stream))
                await engine.arrived.wait()
                if sees:
                    await reader.readuntil(sees)
                writer.close()
                await asyncio.wait_for(engine.requests[0].closed.wait(), 1.0)
                assert engine.requests[0].left_early
                await quiet(router)
                line = f'flexinfer_disconnects_total{{model="m",phase="{stage}"}}'
                assert await router.metric(line) == 1

    asyncio.run(run())


def test_while_a_streams_headers_are_awaited() -> None:
    leave("sent", stream=True, answer=b"")


def test_while_a_whole_answer_is_awaited() -> None:
    leave("sent", stream=False, answer=b"")


def test_while_a_whole_answer_is_half_here() -> None:
    half = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{"
    leave("answering", stream=False, answer=half)


def test_while_a_stream_runs() -> None:
    leave("streaming", stream=True, answer=FIRST, sees=b"\n\n")


def test_while_a_stream_has_begun_and_is_silent() -> None:
    leave("answering", stream=True, answer=HEAD, sees=b"\r\n\r\n")


@pytest.mark.parametrize("stream", [False, True])
def test_while_it_waits_in_the_queue(stream: bool) -> None:
    async def run() -> None:
        fleet = ScriptedFleet(model())
        async with running(fleet, sink=fleet) as router:
            _, writer = await router.connect()
            writer.write(raw_chat(stream=stream))
            await until(lambda: fleet.leases)
            writer.close()
            await quiet(router)
            await until(lambda: fleet.leases[-1].waiting == 0)

    asyncio.run(run())


def test_while_the_router_connects() -> None:
    async def run() -> None:
        # Nobody accepts and the backlog is full: a connection that never comes about.
        blocked = socket.create_server(("127.0.0.1", 0), backlog=0)
        port = blocked.getsockname()[1]
        fillers = [socket.socket() for _ in range(4)]
        try:
            for filler in fillers:
                filler.setblocking(False)
                filler.connect_ex(("127.0.0.1", port))
            fleet = ScriptedFleet(model(replicas=(replica("r1", f"http://127.0.0.1:{port}"),)))
            async with running(fleet, connect_timeout_s=60) as router:
                _, writer = await router.connect()
                writer.write(raw_chat())
                await until(lambda: router.router.dispatcher.in_flight)
                writer.close()
                async with asyncio.timeout(1.0):
                    await until(lambda: not router.router.active)
                await quiet(router)
        finally:
            for one in (*fillers, blocked):
                one.close()

    asyncio.run(run())


def test_while_it_sends_its_body() -> None:
    async def run() -> None:
        fleet = ScriptedFleet(model())
        async with running(fleet, sink=fleet) as router:
            _, writer = await router.connect()
            writer.write(raw_chat()[:-5])
            await until(lambda: router.router.active)
            writer.close()
            await quiet(router)
            assert fleet.leases == []

    asyncio.run(run())


def test_thirty_clients_leave_at_once_and_nothing_is_left() -> None:
    async def run() -> None:
        async with ScriptedEngine(scripts.raw(FIRST, end="hold")) as engine:
            fleet = ScriptedFleet(model(slots=30, replicas=(replica("r1", engine.url),)))
            async with running(fleet, sink=fleet) as router:
                writers = []
                for _ in range(30):
                    reader, writer = await router.connect()
                    writer.write(raw_chat(stream=True))
                    writers.append(writer)
                    await reader.readuntil(b"\r\n\r\n")
                for writer in writers:
                    writer.close()
                assert (await router.client.get("/readyz")).status_code == 200
                await quiet(router)
                await until(lambda: engine.open_connections == 0)
                assert all(seen.left_early for seen in engine.requests)

    asyncio.run(run())


def test_those_who_wait_behind_a_client_that_leaves_move_up() -> None:
    async def run() -> None:
        async with ScriptedEngine(scripts.raw(FIRST, end="hold")) as engine:
            fleet = ScriptedFleet(replace(model(), replicas=(replica("r1", engine.url),)))
            async with running(fleet, sink=fleet) as router:
                _, first = await router.connect()
                first.write(raw_chat(stream=True))
                await engine.arrived.wait()
                engine.script = scripts.answers()
                second = asyncio.ensure_future(router.chat())
                await until(lambda: sum(router.router.dispatcher.waiting.values()) == 1)
                first.close()
                assert (await second).status_code == 200

    asyncio.run(run())
