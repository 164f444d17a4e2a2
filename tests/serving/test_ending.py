"""How the router begins and ends: signals, draining, a port that is taken, a parent that is gone."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from flexinfer.errors import InvalidInput
from flexinfer.testing import engine as scripts
from flexinfer.testing.engine import ScriptedEngine, Seen, Wire
from flexinfer.testing.fleet import ScriptedFleet, model, replica
from flexinfer_serving.listener import allow_files, bind
from flexinfer_serving.testing import chat_body, running, until

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
EVENT = scripts.event("a")
FIRST = HEAD + b"%x\r\n%s\r\n" % (len(EVENT), EVENT)


def one(engine: ScriptedEngine) -> ScriptedFleet:
    return ScriptedFleet(model(slots=4, replicas=(replica("r1", engine.url),)))


def test_a_request_in_flight_is_finished_before_the_end() -> None:
    async def run() -> None:
        release = asyncio.Event()

        async def slow(seen: Seen, wire: Wire) -> None:
            await release.wait()
            await scripts.answers()(seen, wire)

        async with ScriptedEngine(slow) as engine:
            async with running(one(engine), drain_timeout_s=30) as router:
                ask = asyncio.ensure_future(router.chat())
                await engine.arrived.wait()
                router.worker.end()
                await until(lambda: router.router.is_draining)
                answer = await router.admin.get("/readyz")
                assert answer.status_code == 503
                assert answer.json() == {"status": "draining", "ending": True}
                refused = await router.admin.delete("/drain")
                assert refused.status_code == 503
                assert refused.json()["error"]["code"] == "router_stopping"
                assert (await router.admin.get("/readyz")).status_code == 503
                release.set()
                assert (await ask).status_code == 200
                await asyncio.wait_for(asyncio.shield(router.task), 5)

    asyncio.run(run())


def test_new_connections_are_taken_during_the_drain_delay() -> None:
    async def run() -> None:
        async with ScriptedEngine(scripts.answers()) as engine:
            async with running(one(engine), drain_delay_s=1.0) as router:
                router.worker.end()
                await until(lambda: router.router.is_draining)
                async with httpx.AsyncClient(base_url=router.url, trust_env=False) as fresh:
                    assert (await fresh.get("/readyz")).status_code == 503
                    answer = await fresh.post("/v1/chat/completions", json=chat_body())
                    assert answer.status_code == 200

    asyncio.run(run())


def test_a_stalled_stream_is_ended_with_an_error_event_at_the_drain_timeout() -> None:
    async def run() -> None:
        async with ScriptedEngine(scripts.raw(FIRST, end="hold")) as engine:
            async with running(one(engine), drain_timeout_s=0.3) as router:
                ask = asyncio.ensure_future(router.chat(stream=True))
                await engine.arrived.wait()
                router.worker.end()
                text = (await ask).text
                assert json.loads(text.split("data: ")[-1])["error"]["code"] == "router_stopping"
                assert "[DONE]" not in text
                await asyncio.wait_for(asyncio.shield(router.task), 5)
                assert engine.requests[0].left_early

    asyncio.run(run())


def test_those_who_wait_are_told_at_the_drain_timeout() -> None:
    async def run() -> None:
        fleet = ScriptedFleet(model())
        async with running(fleet, sink=fleet, drain_timeout_s=0.2) as router:
            ask = asyncio.ensure_future(router.chat())
            await until(lambda: fleet.leases)
            router.worker.end()
            response = await ask
            assert response.status_code == 503
            assert response.json()["error"]["code"] == "router_stopping"

    asyncio.run(run())


@pytest.mark.parametrize("setting", ["port", "admin_port"])
def test_a_taken_port_is_named_with_its_holder(setting: str) -> None:
    async def run() -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            with pytest.raises(InvalidInput) as caught:
                async with running(ScriptedFleet(model()), **{setting: port}):
                    pass
        assert caught.value.code == "port_taken"
        assert f"pid {os.getpid()}" in caught.value.message
        assert f"FLEXINFER_SERVE__{setting.upper()}" in caught.value.message

    asyncio.run(run())


def test_an_answer_does_not_wait_for_acknowledgements() -> None:
    with bind("127.0.0.1", 0, setting="X") as listening:
        with socket.create_connection(listening.getsockname()):
            listening.setblocking(True)
            accepted, _ = listening.accept()
            with accepted:
                assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


# The command --------------------------------------------------------------------------------------------------


def environment(home: Path, **more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FLEXINFER_")}
    return {
        **kept,
        "FLEXINFER_HOME": str(home),
        "FLEXINFER_SERVE__PORT": "0",
        "FLEXINFER_SERVE__ADMIN_PORT": "0",
        **more,
    }


@asynccontextmanager
async def command(
    home: Path, *arguments: str, **more: str
) -> AsyncIterator[tuple[asyncio.subprocess.Process, dict[str, Any]]]:
    """Run `flexinfer serve` until it says `router_ready`; yield it and that event."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "flexinfer", "serve", *arguments,
        env=environment(home, **more),
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stderr is not None
    try:
        async with asyncio.timeout(60):
            while line := await process.stderr.readline():
                event = json.loads(line)
                if event["event"] == "router_ready":
                    break
            else:
                raise AssertionError("it ended before it was ready")
        yield process, event
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


def fleet_file(folder: Path, url: str) -> Path:
    file = folder / "fleet.yaml"
    file.write_text(f"models: [{{name: m, backend: llamacpp, replicas: [{{url: '{url}'}}]}}]")
    return file


def test_serve_answers_from_a_file_and_ends_with_0_on_sigterm(tmp_path: Path) -> None:
    async def run() -> None:
        async with ScriptedEngine(scripts.answers()) as engine:
            file = fleet_file(tmp_path, engine.url)
            async with command(tmp_path, "--fleet", str(file)) as (process, event):
                async with httpx.AsyncClient(trust_env=False, timeout=20) as client:
                    url = f"{event['url']}/chat/completions"
                    await until_served(client, url)
                process.send_signal(signal.SIGTERM)
                assert await asyncio.wait_for(process.wait(), 20) == 0

    asyncio.run(run())


async def until_served(client: httpx.AsyncClient, url: str) -> None:
    async with asyncio.timeout(20):
        while (await client.post(url, json=chat_body())).status_code != 200:
            await asyncio.sleep(0.02)


def test_a_second_signal_ends_it_at_once_and_not_with_0(tmp_path: Path) -> None:
    async def run() -> None:
        async with ScriptedEngine(scripts.raw(FIRST, end="hold")) as engine:
            file = fleet_file(tmp_path, engine.url)
            wait = {"FLEXINFER_SERVE__DRAIN_TIMEOUT_S": "60"}
            async with command(tmp_path, "--fleet", str(file), **wait) as (process, event):
                async with httpx.AsyncClient(trust_env=False, timeout=20) as client:
                    url = f"{event['url']}/chat/completions"
                    async with client.stream("POST", url, json=chat_body(stream=True)) as answer:
                        await anext(answer.aiter_raw())
                        process.send_signal(signal.SIGTERM)
                        ready = f"{event['admin']}/readyz"
                        async with asyncio.timeout(20):
                            while (await client.get(ready)).status_code != 503:
                                await asyncio.sleep(0.02)
                        process.send_signal(signal.SIGINT)
                        assert await asyncio.wait_for(process.wait(), 20) == 1

    asyncio.run(run())


def test_it_ends_when_its_parent_is_gone(tmp_path: Path) -> None:
    async def run() -> None:
        ours, theirs = os.pipe()[::-1]
        os.set_inheritable(theirs, True)
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "flexinfer", "serve",
            env=environment(tmp_path, FLEXINFER_LIFELINE=str(theirs)),
            stderr=asyncio.subprocess.PIPE,
            pass_fds=(theirs,),
        )  # fmt: skip
        os.close(theirs)
        assert process.stderr is not None
        try:
            async with asyncio.timeout(60):
                while b"router_ready" not in await process.stderr.readline():
                    continue
            os.close(ours)
            _, _ = await asyncio.wait_for(process.communicate(), 20)
            assert process.returncode == 0
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()

    asyncio.run(run())


@pytest.mark.parametrize(
    ("arguments", "more", "code", "exit_code"),
    [
        ((), {"FLEXINFER_SERVE__HOST": "0.0.0.0"}, "bind_without_keys", 2),
        (("--fleet", "/nonexistent/fleet.yaml"), {}, "fleet_file_unreadable", 2),
        ((), {"FLEXINFER_SERVE__PORTT": "1"}, "bad_settings", 2),
    ],
)
def test_a_start_that_cannot_be_says_why(
    tmp_path: Path, arguments: tuple[str, ...], more: dict[str, str], code: str, exit_code: int
) -> None:
    found = subprocess.run(
        [sys.executable, "-m", "flexinfer", "serve", *arguments],
        env=environment(tmp_path, **more),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert f"error[{code}]" in found.stderr
    assert found.returncode == exit_code


def test_the_limit_of_files_rises_with_the_limit_of_connections() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (512, before[1]))
        allowed = allow_files(300)
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == allowed >= 600
        assert allow_files(10) <= allowed
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == allowed, "it is never lowered"
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_an_accepted_connection_is_asked_whether_its_peer_is_there() -> None:
    with bind("127.0.0.1", 0, setting="X") as listening:
        listening.setblocking(True)
        with (
            socket.create_connection(listening.getsockname()),
            contextlib.closing(listening.accept()[0]) as accepted,
        ):
            assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            if sys.platform == "linux":
                assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 30
                assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 60_000
