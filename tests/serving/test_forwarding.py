"""What passes between a client and an engine, and what happens when an engine lies or breaks off.

The engine is a raw TCP server on a script; its own log is asked, not only the client's view.
"""

from __future__ import annotations

import asyncio
import json
import tracemalloc
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, ClassVar

import httpx
import pytest

from flexinfer.engine import Endpoint
from flexinfer.testing import engine as scripts
from flexinfer.testing.engine import PlainEngine, Script, ScriptedEngine, Seen, Wire
from flexinfer.testing.fleet import ScriptedFleet, model, replica
from flexinfer_serving.explain import opaque
from flexinfer_serving.testing import LIMIT_S, Running, raw_chat, running, until

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
EVENT = scripts.event("a")


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def one(
    script: Script, test: Callable[[Running, ScriptedEngine], Awaitable[Any]], **section: Any
) -> Any:
    """Run *test* against a router with one Model of one replica that follows *script*."""

    async def run() -> Any:
        async with ScriptedEngine(script) as engine:
            fleet = ScriptedFleet(model(slots=4, replicas=(replica("r1", engine.url),)))
            async with running(fleet, **section) as router:
                return await test(router, engine)

    return asyncio.run(run())


def stream(script: Script, **section: Any) -> tuple[httpx.Response, list[Any]]:
    """Return a streamed answer, and its events: JSON, or the text where it is none."""

    async def ask(router: Running, _: ScriptedEngine) -> httpx.Response:
        return await router.chat(stream=True)

    response: httpx.Response = one(script, ask, **section)
    found = []
    for block in response.text.split("\n\n"):
        if block.startswith("data: "):
            text = block.removeprefix("data: ")
            found.append(text if text == "[DONE]" else json.loads(text))
    return response, found


def test_a_stream_passes_byte_for_byte() -> None:
    odd = b'event: x\r\nid: 7\r\ndata: {"a":  1}\r\n\r\n: ping\n\ndata: [DONE]\n\n'
    response, _ = stream(scripts.raw(HEAD + chunk(odd[:9]) + chunk(odd[9:]) + chunk(b"")))
    assert response.content == odd
    assert response.headers["content-type"].startswith("text/event-stream")


def test_an_answer_names_its_model_replica_and_times() -> None:
    response: httpx.Response = one(scripts.answers(), lambda router, _: router.chat())
    assert response.headers["x-flexinfer-model"] == "m"
    shown = response.headers["x-flexinfer-replica"]
    assert shown == opaque("r1") and len(shown) == 12
    assert float(response.headers["x-flexinfer-cold-start"]) < 5
    assert "held;dur=" in response.headers["server-timing"]
    assert response.headers["x-flexinfer-explain"]


def test_the_engine_gets_its_own_key_and_nothing_of_the_clients() -> None:
    async def ask(router: Running, engine: ScriptedEngine) -> Seen:
        headers = {
            "authorization": "Bearer mine", "cookie": "a=b", "x-forwarded-for": "1.2.3.4", "te": "trailers",
            "x-flexinfer-secret": "x", "proxy-authorization": "Basic x", "accept-encoding": "gzip",
        }  # fmt: skip
        body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
        await router.client.post("/v1/chat/completions", json=body, headers=headers)
        return engine.requests[0]

    seen: Seen = one(scripts.answers(), ask)
    assert seen.headers.keys() == {
        "host", "authorization", "content-type", "content-length", "accept", "accept-encoding", "user-agent",
        "x-request-id",
    }  # fmt: skip
    assert seen.headers["authorization"] == "Bearer key-of-r1"
    assert seen.headers["accept-encoding"] == "identity"


@pytest.mark.parametrize(
    ("script", "code"),
    [
        (scripts.raw(HEAD + chunk(EVENT) + b"40\r\ndata: {\"choi", end="reset"), "upstream_disconnected"),
        (scripts.raw(HEAD + chunk(EVENT) + b"40\r\ndata: {\"choi"), "upstream_disconnected"),
        (scripts.raw(HEAD + chunk(EVENT) + chunk(b"")), "upstream_incomplete"),
        (scripts.raw(HEAD + chunk(EVENT) + chunk(b"data: {\"half") + chunk(b"")), "upstream_incomplete"),
        (scripts.raw(HEAD + chunk(EVENT), end="hold"), "upstream_timeout"),
        (scripts.raw(HEAD + chunk(EVENT) + chunk(b"x" * 2_000_000), end="hold"), "upstream_invalid"),
        (scripts.raw(HEAD + chunk(EVENT) + b"zz\r\n"), "upstream_disconnected"),
    ],
    ids=["reset", "half a chunk", "no DONE", "half an event", "stall", "endless event", "bad chunk"],
)  # fmt: skip
def test_a_stream_that_fails_ends_with_an_error_event_and_no_done(
    script: Script, code: str
) -> None:
    response, events = stream(script, stream_idle_timeout_s=0.5)
    assert response.status_code == 200
    assert events[0]["choices"][0]["delta"]["content"] == "a"
    assert events[-1]["error"]["code"] == code
    assert len(events) == 2
    assert "[DONE]" not in response.text


def test_after_done_a_reset_is_no_failure() -> None:
    done = scripts.raw(HEAD + chunk(EVENT) + chunk(b"data: [DONE]\n\n"), end="reset")
    _, events = stream(done)
    assert events[-1] == "[DONE]"


def test_the_engines_own_error_event_is_passed_on_and_not_doubled() -> None:
    error = b'data: {"error":{"code":500,"message":"x"}}\n\n'
    response, _ = stream(scripts.raw(HEAD + chunk(EVENT) + chunk(error) + chunk(b"")))
    assert response.content == EVENT + error


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 6\r\n\r\n<html>",
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 6\r\n\r\n<html>",
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 401 No\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n" + b"[" + b"1," * 9_000_000,
    ],
    ids=["html", "not json", "gzip", "redirect", "wrong engine key", "endless"],
)
def test_an_answer_that_is_none_is_502(answer: bytes) -> None:
    response: httpx.Response = one(scripts.raw(answer), lambda router, _: router.chat())
    assert response.status_code == 502
    assert response.json()["error"]["code"] == "upstream_invalid"
    assert response.headers["x-should-retry"] == "false"


def test_a_body_shorter_than_announced_is_502() -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 60\r\n\r\n{}"
    response: httpx.Response = one(scripts.raw(answer), lambda router, _: router.chat())
    assert response.json()["error"]["code"] == "upstream_disconnected"


def test_an_engines_refusal_is_told_in_openais_words_and_not_tried_again() -> None:
    body = b'{"error":{"code":400,"message":"exceeds the available context size"}}'

    async def ask(router: Running, engine: ScriptedEngine) -> tuple[httpx.Response, int]:
        return await router.chat(stream=True), len(engine.requests)

    response, requests = one(scripts.status(400, body), ask)
    assert (response.status_code, requests) == (400, 1)
    assert response.json()["error"]["code"] == "context_length_exceeded"


def test_no_headers_in_time_is_504_and_not_tried_again() -> None:
    async def ask(router: Running, engine: ScriptedEngine) -> tuple[httpx.Response, int]:
        response = await router.chat()
        await until(lambda: engine.requests[0].closed.is_set())
        return response, len(engine.requests)

    response, requests = one(scripts.raw(end="hold"), ask, first_byte_timeout_s=0.3)
    assert (response.status_code, requests) == (504, 1)
    assert response.json()["error"]["code"] == "upstream_timeout"


def two(
    first: Script, second: Script, test: Callable[[Running, ScriptedEngine, ScriptedEngine], Awaitable[Any]],
    **section: Any,
) -> Any:  # fmt: skip
    """As `one`, with two replicas; `r1` is asked first."""

    async def run() -> Any:
        async with ScriptedEngine(first, probe_status=503) as a, ScriptedEngine(second) as b:
            replicas = (replica("r1", a.url), replica("r2", b.url))
            fleet = ScriptedFleet(model(slots=4, replicas=replicas))
            async with running(fleet, **section) as router:
                return await test(router, a, b)

    return asyncio.run(run())


@pytest.mark.parametrize(
    "first",
    [scripts.status(503), scripts.raw(end="reset"), scripts.raw(b"HTTP/1.1 200 O", end="reset")],
    ids=["503", "reset before headers", "reset in the head"],
)
def test_before_a_first_byte_another_replica_answers(first: Script) -> None:
    async def ask(router: Running, a: ScriptedEngine, b: ScriptedEngine) -> None:
        responses = [await router.chat() for _ in range(3)]
        assert [response.status_code for response in responses] == [200, 200, 200]
        assert len(a.requests) == 1, "a replica that failed gets nothing until it answers a probe"
        assert len(b.requests) == 3
        record = (
            await router.admin.get(f"/explain/{responses[0].headers['x-flexinfer-explain']}")
        ).json()
        assert [step["what"] for step in record["steps"]] == [
            "admitted",
            "failed",
            "admitted",
            "ended",
        ]

    two(first, scripts.answers(), ask)


def test_after_a_first_byte_nothing_is_sent_again() -> None:
    async def ask(router: Running, a: ScriptedEngine, b: ScriptedEngine) -> None:
        response = await router.chat(stream=True)
        assert "upstream_disconnected" in response.text
        assert (len(a.requests), len(b.requests)) == (1, 0)

    two(scripts.raw(HEAD, end="reset"), scripts.answers(), ask)


def test_a_replica_that_refuses_connections_is_left_out_and_taken_back_when_it_answers() -> None:
    async def run() -> None:
        async with ScriptedEngine(scripts.answers()) as a, ScriptedEngine(scripts.answers()) as b:
            port = a.port
            await a.stop()
            fleet = ScriptedFleet(
                model(slots=4, replicas=(replica("r1", a.url), replica("r2", b.url)))
            )
            async with running(fleet) as router:
                assert (await router.chat()).headers["x-flexinfer-replica"] == opaque("r2")
                await a.start(port)
                await until(lambda: a.probes > 0)

                async def answers() -> str:
                    return (await router.chat()).headers["x-flexinfer-replica"]

                found = set()
                while opaque("r1") not in found:
                    found.add(await answers())
                assert (
                    await router.metric('flexinfer_retries_total{cause="connect",model="m"}') == 1
                )

    asyncio.run(run())


def test_retries_end_after_two_and_the_last_error_says_when_to_come_back() -> None:
    async def run() -> None:
        async with ScriptedEngine(scripts.status(503)) as engine:
            replicas = tuple(replica(f"r{n}", f"{engine.url}/{n}") for n in range(5))
            async with running(ScriptedFleet(model(replicas=replicas))) as router:
                response = await router.chat()
                assert response.status_code == 503
                assert int(response.headers["retry-after"]) >= 1
                assert len(engine.requests) == 3

    asyncio.run(run())


def test_retries_stay_within_their_budget() -> None:
    async def run() -> None:
        async with ScriptedEngine(scripts.status(503)) as engine:
            replicas = tuple(replica(f"r{n}", f"{engine.url}/{n}") for n in range(200))
            async with running(ScriptedFleet(model(replicas=replicas))) as router:
                for _ in range(40):
                    assert (await router.chat()).status_code == 503
                assert len(engine.requests) <= 40 * 1.2 + 10

    asyncio.run(run())


def test_a_slow_reader_holds_the_engine_back_and_costs_less_than_a_mebibyte() -> None:
    sent = 0
    is_blocked = False

    async def flood(seen: Seen, wire: Wire) -> None:
        nonlocal sent, is_blocked
        await wire.head(200, *scripts.STREAM_HEAD)
        piece = scripts.event("x" * 16_000)
        for _ in range(4000):
            is_blocked = True  # seen only while the chunk waits for its reader
            await wire.chunk(piece)
            is_blocked = False
            sent += len(piece)

    async def ask(router: Running, engine: ScriptedEngine) -> None:
        await router.chat()  # what is made once is made
        tracemalloc.start()
        before, _ = tracemalloc.get_traced_memory()
        reader, writer = await router.connect()
        writer.write(raw_chat(stream=True))
        await reader.readuntil(b"\r\n\r\n")
        writer.transport.pause_reading()  # type: ignore[attr-defined]  # asyncio's own transport has it
        seen, still = -1, 0
        # All three run in this loop: each round lets every socket that can move do so, however slow the machine is.
        while still < 40:
            still = still + 1 if is_blocked and seen == sent else 0
            seen = sent
            await asyncio.sleep(0.005)
        after, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert is_blocked and sent < 64_000_000
        assert after - before < 1024 * 1024, "router, engine and client together"
        writer.transport.abort()
        await until(lambda: engine.requests[1].closed.is_set())
        assert engine.requests[1].left_early

    async def script(seen: Seen, wire: Wire) -> None:
        await (flood if seen.json.get("stream") else scripts.answers())(seen, wire)

    one(script, ask)


def test_a_client_that_never_reads_is_given_up() -> None:
    async def flood(seen: Seen, wire: Wire) -> None:
        await wire.head(200, *scripts.STREAM_HEAD)
        while True:
            await wire.chunk(scripts.event("x" * 16_000))

    async def ask(router: Running, engine: ScriptedEngine) -> None:
        reader, writer = await router.connect()
        writer.write(raw_chat(stream=True))
        await reader.readuntil(b"\r\n\r\n")
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        await until(lambda: engine.requests[0].closed.is_set())
        assert await router.metric('flexinfer_requests_in_flight{model="m"}') == 0
        writer.close()

    one(flood, ask, write_timeout_s=0.5)


def test_a_client_that_never_reads_the_end_of_a_whole_answer_is_given_up() -> None:
    async def ask(router: Running, _: ScriptedEngine) -> None:
        reader, writer = await router.connect()
        writer.write(raw_chat().replace(b"Host:", b"Connection: close\r\nHost:"))
        await reader.readuntil(b"\r\n\r\n")
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        await until(lambda: not router.router.active)
        async with asyncio.timeout(LIMIT_S):  # the one connection that there may be is free again
            while (await router.client.get("/livez")).status_code != 200:
                continue
        writer.transport.abort()

    # More than the kernel takes for a client that does not read.
    one(scripts.answers("x" * 15_000_000), ask, write_timeout_s=0.2, max_connections=1)


class Broken(PlainEngine):
    """A plug-in with a bug."""

    def path(self, endpoint: Endpoint) -> str:
        raise RuntimeError("secret words")


@pytest.mark.parametrize("stream", [False, True])
def test_a_bug_is_500_in_openais_shape_and_keeps_its_words(stream: bool) -> None:
    async def ask(router: Running, _: ScriptedEngine) -> httpx.Response:
        response = await router.chat(stream=stream)
        assert await router.metric('flexinfer_requests_in_flight{model="m"}') == 0
        return response

    response: httpx.Response = one(scripts.answers(), ask, engine=Broken())
    assert response.status_code == 500
    assert response.json()["error"]["code"] == "internal_error"
    assert "secret" not in response.text


def test_a_replica_without_a_key_is_sent_none() -> None:
    async def run() -> None:
        async with ScriptedEngine(scripts.answers()) as engine:
            open_one = replace(replica("r1", engine.url), key="")
            async with running(ScriptedFleet(model(replicas=(open_one,)))) as router:
                assert (await router.chat()).status_code == 200
                assert "authorization" not in engine.requests[0].headers

    asyncio.run(run())


def test_a_strategy_that_is_not_there_takes_no_model_away() -> None:
    async def run() -> None:
        async with ScriptedEngine(scripts.answers()) as engine:
            replicas = (replica("r1", engine.url),)
            fleet = ScriptedFleet(
                model("a", replicas=replicas, strategy="nobody-has-it"),
                model("b", replicas=replicas),
            )
            async with running(fleet) as router:
                for name in ("a", "b"):
                    assert (await router.chat(model=name)).status_code == 200

    asyncio.run(run())


def test_a_suspected_replica_is_asked_where_its_engine_says() -> None:
    class Elsewhere(PlainEngine):
        probe_path: ClassVar[str] = "/v1/alive"

    async def ask(router: Running, engine: ScriptedEngine) -> None:
        assert (await router.chat()).status_code == 503
        await until(lambda: engine.probes)
        assert engine.probe_paths == {"/v1/alive"}

    one(scripts.status(503), ask, engine=Elsewhere())
