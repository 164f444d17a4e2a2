"""The public surface: routes, shapes, keys, hosts, origins, and what a bad request gets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import httpx
import pytest

from flexinfer.errors import InvalidInput
from flexinfer.exposure import check
from flexinfer.settings import ServeSection
from flexinfer.testing import engine as scripts
from flexinfer.testing.engine import ScriptedEngine
from flexinfer.testing.fleet import ScriptedFleet, model, replica
from flexinfer_serving.api.openai import KNOWN_PATHS
from flexinfer_serving.listener import MAX_TOLD
from flexinfer_serving.testing import LIMIT_S, Running, chat_body, raw_chat, running, until

KEYS = {"api_keys": ("sk-one", "sk-two")}


def serving(test: Callable[[Running, ScriptedEngine], Awaitable[None]], **section: Any) -> None:
    async def run() -> None:
        async with ScriptedEngine(scripts.answers()) as engine:
            smol = model(
                "smollm2-135m-instruct",
                aliases=("smol",),
                slots=4,
                replicas=(replica("r1", engine.url),),
            )
            embedder = replace(smol, name="e", aliases=("m",), endpoints=("embeddings",))
            async with running(ScriptedFleet(smol, embedder), **section) as router:
                await test(router, engine)

    asyncio.run(run())


def assert_error(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    assert response.status_code == status, response.text
    assert response.headers["content-type"].startswith("application/json")
    assert response.headers["x-request-id"]
    tree: dict[str, Any] = response.json()
    assert tree.keys() == {"error"}
    assert tree["error"].keys() == {"message", "type", "param", "code"}
    assert tree["error"]["code"] == code
    return tree


def test_models_are_listed_and_described_by_name_and_alias() -> None:
    async def test(router: Running, _: ScriptedEngine) -> None:
        listed = (await router.client.get("/v1/models")).json()
        assert [one["id"] for one in listed["data"]] == ["e", "smollm2-135m-instruct"]
        assert (await router.client.get("/v1/models/smol")).json()["id"] == "smollm2-135m-instruct"

    serving(test)


def test_an_unknown_model_is_404_with_the_closest_name() -> None:
    async def test(router: Running, _: ScriptedEngine) -> None:
        wrong = await router.chat(model="smollm2-135m-instrct")
        tree = assert_error(wrong, 404, "model_not_found")
        assert "did you mean 'smollm2-135m-instruct'?" in tree["error"]["message"]
        assert_error(await router.client.get("/v1/models/nothing/like/it"), 404, "model_not_found")

    serving(test)


def test_an_endpoint_that_the_model_has_not_names_the_engine() -> None:
    async def test(router: Running, engine: ScriptedEngine) -> None:
        tree = assert_error(await router.chat(model="e"), 404, "unsupported_endpoint")
        assert "'plain'" in tree["error"]["message"]
        assert engine.requests == []

    serving(test)


def test_known_paths_that_no_engine_serves_name_the_engine() -> None:
    async def test(router: Running, engine: ScriptedEngine) -> None:
        for path in KNOWN_PATHS:
            plain = await router.client.post(path, json={"model": "smol"})
            tree = assert_error(plain, 404, "unsupported_endpoint")
            assert "plain" in tree["error"]["message"]
            form = await router.client.post(path, files={"image": b"x"}, data={"model": "smol"})
            assert_error(form, 404, "unsupported_endpoint")
        assert engine.connections == 0

    serving(test)


@pytest.mark.parametrize("prefix", ["", "/v1/v1"])
def test_a_base_url_without_its_end_or_with_two_is_told_the_path(prefix: str) -> None:
    async def test(router: Running, _: ScriptedEngine) -> None:
        for path in ("/chat/completions", "/models", "/embeddings"):
            tree = assert_error(await router.client.get(prefix + path), 404, "unknown_path")
            assert f"; it is at /v1{path}: a base URL" in tree["error"]["message"]
        for path in ("/nothing", "/v1/nothing", "/v1/v1/nothing"):
            tree = assert_error(await router.client.get(path), 404, "unknown_path")
            assert tree["error"]["message"] == f"there is nothing at {path}"

    serving(test)


ELSEWHERE = (
    ("GET", "/", 404, "unknown_path"),
    ("GET", "/metrics", 404, "unknown_path"),
    ("GET", "/docs", 404, "unknown_path"),
    ("GET", "/openapi.json", 404, "unknown_path"),
    ("POST", "/drain", 404, "unknown_path"),
    ("DELETE", "/drain", 404, "unknown_path"),
    ("GET", "/explain/x", 404, "unknown_path"),
    ("POST", "/v1/chat/completions/", 404, "unknown_path"),
    ("POST", "/v1/%2e%2e/slots", 404, "unknown_path"),
    ("GET", "/slots", 404, "unknown_path"),
    ("GET", "/v1/chat/completions", 405, "method_not_allowed"),
    ("DELETE", "/v1/models/smol", 405, "method_not_allowed"),
    ("PUT", "/v1/embeddings", 405, "method_not_allowed"),
)


def test_everything_else_is_refused_in_openais_shape() -> None:
    async def test(router: Running, engine: ScriptedEngine) -> None:
        for method, path, status, code in ELSEWHERE:
            assert_error(await router.client.request(method, path), status, code)
        assert engine.connections == 0

    serving(test)


BAD_BODIES = (
    (b"{", 400, "invalid_json"),
    (b"", 400, "invalid_json"),
    (b'{"messages":[]}', 400, "missing_field"),
    (b'{"model":"smol"}', 400, "missing_field"),
    (b"x" * 3000, 413, "body_too_large"),
)


def test_a_bad_body_is_refused_before_any_engine_hears_of_it() -> None:
    async def test(router: Running, engine: ScriptedEngine) -> None:
        for body, status, code in BAD_BODIES:
            response = await router.client.post("/v1/chat/completions", content=body)
            assert_error(response, status, code)
        assert engine.connections == 0

    serving(test, max_body_bytes=2048)


def test_a_body_without_a_length_is_bounded_while_it_comes() -> None:
    async def test(router: Running, _: ScriptedEngine) -> None:
        async def pieces() -> Any:
            for _ in range(100):
                yield b"x" * 1000

        response = await router.client.post("/v1/chat/completions", content=pieces())
        assert_error(response, 413, "body_too_large")

    serving(test, max_body_bytes=2048)


def test_a_request_id_of_another_form_is_replaced() -> None:
    async def test(router: Running, _: ScriptedEngine) -> None:
        for offered in (b"a" * 65, b"a b", b"a;b", b"\xe4", b""):
            headers = [(b"x-request-id", offered)]
            response = await router.client.get("/v1/models", headers=headers)
            assert response.headers["x-request-id"].startswith("req-"), offered

    serving(test)


def test_a_good_request_id_is_kept_and_reaches_the_engine() -> None:
    async def test(router: Running, engine: ScriptedEngine) -> None:
        headers = {"x-request-id": "My-id_7"}
        body = chat_body(model="smol")
        response = await router.client.post("/v1/chat/completions", json=body, headers=headers)
        assert response.headers["x-request-id"] == "My-id_7"
        assert engine.requests[0].headers["x-request-id"] == "My-id_7"
        assert (await router.admin.get("/explain/My-id_7")).json()[
            "model"
        ] == "smollm2-135m-instruct"

    serving(test)


def test_what_was_dropped_is_told() -> None:
    async def test(router: Running, _: ScriptedEngine) -> None:
        response = await router.chat(model="smol", cache_salt="x", id_slot=3)
        assert response.headers["x-flexinfer-dropped"] == "cache_salt,id_slot"

    serving(test)


# Keys ---------------------------------------------------------------------------------------------------------


def test_on_loopback_any_key_will_do() -> None:
    async def test(router: Running, _: ScriptedEngine) -> None:
        headers = {"authorization": "Bearer whatever"}
        assert (await router.client.get("/v1/models", headers=headers)).status_code == 200

    serving(test)


@pytest.mark.parametrize("key", ["sk-one", "sk-two"])
def test_each_set_key_opens(key: str) -> None:
    async def test(router: Running, _: ScriptedEngine) -> None:
        headers = {"authorization": f"Bearer {key}"}
        assert (await router.client.get("/v1/models", headers=headers)).status_code == 200

    serving(test, **KEYS)


WRONG_KEYS = (
    None, b"", b"Bearer", b"Bearer sk-on", b"bearer sk-one", b"Basic sk-one", b"sk-one", b"Bearer  sk-one",
    b"Bearer ' OR 1=1", b"Bearer " + b"x" * 4000, b"Bearer sk-\xf6ne",
)  # fmt: skip


def test_without_a_right_key_every_path_is_401() -> None:
    async def test(router: Running, _: ScriptedEngine) -> None:
        for path in ("/v1/models", "/v1/models/smol", "/nothing", "/metrics"):
            for key in WRONG_KEYS:
                headers = [] if key is None else [(b"authorization", key)]
                assert_error(await router.client.get(path, headers=headers), 401, "invalid_api_key")
        for path in (*KNOWN_PATHS, "/v1/chat/completions", "/v1/completions", "/v1/embeddings"):
            assert_error(await router.client.post(path, json={}), 401, "invalid_api_key")

    serving(test, **KEYS)


def test_two_authorization_headers_are_400() -> None:
    async def test(router: Running, _: ScriptedEngine) -> None:
        headers = [("authorization", "Bearer sk-one"), ("authorization", "Bearer sk-two")]
        assert_error(
            await router.client.get("/v1/models", headers=headers), 400, "duplicate_header"
        )

    serving(test, **KEYS)


def test_probes_need_no_key_and_no_name() -> None:
    async def test(router: Running, _: ScriptedEngine) -> None:
        for path in ("/livez", "/readyz"):
            headers = {"host": "10.1.2.3"}
            assert (await router.client.get(path, headers=headers)).status_code == 200

    serving(test, **KEYS)


@pytest.mark.parametrize("setting", ["host", "admin_host"])
def test_listening_beyond_loopback_without_keys_is_refused(setting: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        check(ServeSection(**{setting: "0.0.0.0"}))
    assert caught.value.code == "bind_without_keys"
    check(ServeSection(**{setting: "0.0.0.0", **KEYS}))


# Hosts and origins --------------------------------------------------------------------------------------------


def test_a_host_that_is_not_ours_is_421() -> None:
    async def test(router: Running, _: ScriptedEngine) -> None:
        for host in ("evil.example", "evil.example:80", "localhost.evil.example", "10.0.0.1", ""):
            response = await router.client.get("/v1/models", headers={"host": host})
            assert_error(response, 421, "host_not_allowed")

    serving(test)


def test_loopback_names_and_named_hosts_are_ours() -> None:
    async def test(router: Running, _: ScriptedEngine) -> None:
        for host in (
            "localhost",
            "LOCALHOST:1",
            "127.0.0.1:9",
            "[::1]:9",
            "a.localhost",
            "my.host:8",
        ):
            response = await router.client.get("/v1/models", headers={"host": host})
            assert response.status_code == 200, host

    serving(test, allowed_hosts=("my.host",))


def test_an_origin_that_is_no_address_is_refused_in_openais_shape() -> None:
    async def test(router: Running, engine: ScriptedEngine) -> None:
        response = await router.client.get("/v1/models", headers={"origin": "http://[evil"})
        assert_error(response, 403, "origin_not_allowed")

    serving(test)


def test_another_sites_page_is_refused() -> None:
    async def test(router: Running, engine: ScriptedEngine) -> None:
        headers = {"origin": "https://evil.example", "content-type": "text/plain"}
        body = json.dumps(chat_body(model="smol"))
        response = await router.client.post("/v1/chat/completions", content=body, headers=headers)
        assert_error(response, 403, "origin_not_allowed")
        assert "access-control-allow-origin" not in response.headers
        assert engine.connections == 0

    serving(test)


def test_an_allowed_page_is_answered_and_may_read() -> None:
    async def test(router: Running, _: ScriptedEngine) -> None:
        headers = {"origin": "http://ui.example"}
        response = await router.client.get(
            "/v1/models", headers={**headers, "authorization": "Bearer sk-one"}
        )
        assert response.headers["access-control-allow-origin"] == "http://ui.example"
        asks = {
            "access-control-request-method": "POST",
            "access-control-request-headers": "authorization,x-stainless-os",
        }
        preflight = await router.client.options("/v1/chat/completions", headers={**headers, **asks})
        assert preflight.status_code == 204
        assert preflight.headers["access-control-allow-headers"] == "authorization,x-stainless-os"
        wrong = await router.client.get("/v1/models", headers=headers)
        assert wrong.status_code == 401
        assert wrong.headers["access-control-allow-origin"] == "http://ui.example"

    serving(test, cors_origins=("http://ui.example",), **KEYS)


def test_an_allowed_page_may_read_a_stream_and_what_the_router_says_about_it() -> None:
    async def test(router: Running, _: ScriptedEngine) -> None:
        headers = {"origin": "http://ui.example", "authorization": "Bearer sk-one"}
        body = chat_body(model="smol", stream=True)
        answer = await router.client.post("/v1/chat/completions", json=body, headers=headers)
        assert answer.text.endswith("data: [DONE]\n\n")
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["access-control-allow-origin"] == "http://ui.example"
        assert "Origin" in answer.headers["vary"]
        exposed = answer.headers["access-control-expose-headers"]
        assert "x-request-id" in exposed and "x-flexinfer-model" in exposed
        for path, sent in (("/v1/chat/completions", {"model": "none"}), ("/v1/nothing", {})):
            refused = await router.client.post(path, json=sent, headers=headers)
            assert refused.status_code in (400, 404)
            assert refused.headers["access-control-allow-origin"] == "http://ui.example"

    serving(test, cors_origins=("http://ui.example",), **KEYS)


@pytest.mark.parametrize(
    "origin",
    [
        "https://ui.example", "http://ui.example:81", "http://ui.example.evil", "http://evil", "null",
        "http://UI.example", "",
    ],
)  # fmt: skip
def test_a_page_that_is_not_allowed_is_refused_before_and_at_its_request(origin: str) -> None:
    async def test(router: Running, engine: ScriptedEngine) -> None:
        headers = {"origin": origin, "authorization": "Bearer sk-one"}
        asks = {"access-control-request-method": "POST"}
        for answer in (
            await router.client.options("/v1/chat/completions", headers={**headers, **asks}),
            await router.client.post("/v1/chat/completions", json=chat_body(), headers=headers),
        ):
            assert_error(answer, 403, "origin_not_allowed")
            assert not [name for name in answer.headers if name.startswith("access-control-")]
        assert engine.connections == 0

    serving(test, cors_origins=("http://ui.example",), **KEYS)


# Framing ------------------------------------------------------------------------------------------------------


async def raw_exchange(router: Running, *pieces: bytes) -> bytes:
    """Send *pieces*, each as the router has it before the next, and return all that comes until it closes."""
    reader, writer = await router.connect()
    try:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
        return await asyncio.wait_for(reader.read(), 5)
    finally:
        writer.close()


HEADER = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
LIVEZ = b"GET /livez HTTP/1.0\r\nHost: localhost\r\n\r\n"
SMUGGLED = b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\n\r\n"


AMBIGUOUS = (
    b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n",
    b"Content-Length: 4\r\nContent-Length: 5\r\n\r\nabcd",
    b"Content-Length: +4\r\n\r\nabcd",
    b"Content-Length: -1\r\n\r\n",
    b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    b"Host: evil.example\r\nContent-Length: 0\r\n\r\n",
    b"Content-Length: 4\r\nContent-Length: 4\r\n\r\nabcd",
    b"Content-Length: 4, 4\r\n\r\nabcd",
    b"X: y\n\r\nContent-Length: 4\r\n\r\nabcd",
    b"X: y\nContent-Length: 4\r\n\r\nabcd",
    b"Content-Length: 4\n\nabcd",
    b"X: y\r\n Content-Length: 4\r\n\r\nabcd",
    b"X: y\r\n\tfolded\r\nContent-Length: 4\r\n\r\nabcd",
    b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n",
    b"Transfer-Encoding: chunked\r\n\r\n-4\r\nabcd\r\n",
    b"Transfer-Encoding: chunked\r\n\r\n0x4\r\nabcd\r\n",
    b"Transfer-Encoding: chunked\r\n\r\n" + b"f" * 21 + b"\r\nabcd\r\n",
    b"Transfer-Encoding: chunked\r\n\r\n4\r\nabcdefgh\r\n",
    b"Transfer-Encoding: chunked\r\n\r\n4\r\nabcd\r\n" + b"9" * 70_000,
)


def test_ambiguous_framing_is_400_and_the_connection_closes() -> None:
    async def test(router: Running, engine: ScriptedEngine) -> None:
        for head in AMBIGUOUS:
            answer = await raw_exchange(router, HEADER + head + SMUGGLED)
            assert answer.startswith(b"HTTP/1.1 400 "), head
            assert answer.count(b"content-type:") == 1, "what follows is not answered"
            assert b'"error"' in answer
        assert engine.connections == 0

    serving(test)


def test_a_chunked_request_is_the_last_of_its_connection() -> None:
    """A trailer's end can be read in two ways, and what follows it with it."""

    async def test(router: Running, engine: ScriptedEngine) -> None:
        body = json.dumps(chat_body(model="smol")).encode()
        chunk = b"%x\r\n%s\r\n0\r\n" % (len(body), body)
        for end in (b"\r\n", b"\n", b"T: x\n\n"):
            head = HEADER + b"Transfer-Encoding: chunked\r\n\r\n"
            answer = await raw_exchange(router, head + chunk + end + SMUGGLED)
            assert answer.startswith(b"HTTP/1.1 200 ")
            assert b"connection: close" in answer.lower()
            assert answer.count(b"HTTP/1.1 ") == 1

    serving(test)


def test_a_body_that_breaks_off_in_its_chunks_frees_its_place() -> None:
    async def test(router: Running, engine: ScriptedEngine) -> None:
        head = HEADER + b"Transfer-Encoding: chunked\r\n\r\n4\r\nabcd\r\n"
        reader, writer = await router.connect()
        writer.write(head)
        await until(lambda: router.router.active)
        writer.write(b"zzz\r\n")
        answer = await reader.read()
        writer.close()
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert b'"code": "bad_request"' in answer
        await until(lambda: not router.router.active)
        assert engine.connections == 0

    serving(test)


def head_of(size: int) -> bytes:
    start, end = (
        b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nX: ",
        b"\r\n\r\n",
    )
    return start + b"a" * (size - len(start) - len(end)) + end


HEADS = {
    "one byte more": (head_of(65_537), b"431"),
    "the limit": (head_of(65_536), b"200"),
    "one header": (head_of(70_000), b"431"),
    "five megabytes": (head_of(5_000_000), b"431"),
    "url": (b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", b"431"),
    "ten thousand": (head_of(1000)[:-2] + b"X: y\r\n" * 10_000 + b"\r\n", b"431"),
    "two hundred": (head_of(1000)[:-2] + b"X: y\r\n" * 200 + b"\r\n", b"431"),
    "tls": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 100, b"400"),
    "no host": (b"GET / HTTP/1.1\r\n\r\n", b"400"),
    "an empty line": (b"\r\n" + head_of(100), b"400"),
}


@pytest.mark.parametrize("name", HEADS)
def test_a_head_is_judged_by_its_size_however_it_comes(name: str) -> None:
    data, status = HEADS[name]

    async def test(router: Running, _: ScriptedEngine) -> None:
        half = min(len(data) // 2, 60_000)
        for pieces in ((data,), (data[:half], data[half:]), (data[:-4], data[-4:])):
            answer = await raw_exchange(router, *pieces)
            assert answer.split(b" ")[1] == status
            assert len(answer) < 2000
            if status != b"200":
                assert b'"type": "invalid_request_error"' in answer
                assert b"x-request-id: req-" in answer

    serving(test)


def test_nothing_long_is_said_back() -> None:
    async def test(router: Running, _: ScriptedEngine) -> None:
        long = "a" * 60_000
        for path in (f"/{long}", f"/v1/models/{long}", f"/v1/{long}?{long[:1000]}"):
            assert len((await router.client.get(path)).content) < 1000
        assert len((await router.admin.get(f"/explain/{long}")).content) < 1000
        huge = "b" * 1_000_000
        for body in (
            {"model": huge},
            {"model": "m" * 256},
            {"temperature": huge},
            {huge: 1},
            {"messages": [{"role": huge}]},
            {"messages": [{"role": "user", "content": [{"type": huge}]}]},
            {"n": 10**4000},
            {"stop": [huge]},
            {"encoding_format": huge},
        ):
            response = await router.chat(**{"model": "smol", **body})
            assert response.status_code in (200, 400, 404)
            assert len(response.content) < 1000, list(body)
            assert sum(len(name) + len(value) for name, value in response.headers.raw) < 1500

    serving(test)


@pytest.mark.parametrize(
    "slow", [b"GET /v1/mod", raw_chat()[:-5], b""], ids=["half a head", "half a body", "nothing"]
)
def test_a_slow_sender_is_closed_and_others_are_served_meanwhile(slow: bytes) -> None:
    async def test(router: Running, engine: ScriptedEngine) -> None:
        asks = [asyncio.ensure_future(raw_exchange(router, slow)) for _ in range(50)]
        assert (await router.chat(model="smol")).status_code == 200
        answers = await asyncio.gather(*asks)
        assert all(answer.startswith(b"HTTP/1.1 408 ") for answer in answers)
        assert len(engine.requests) == 1
        await until(lambda: not router.router.active)

    serving(test, header_timeout_s=0.5, body_timeout_s=0.5)


def test_one_byte_now_and_then_does_not_keep_a_head_open() -> None:
    async def test(router: Running, _: ScriptedEngine) -> None:
        reader, writer = await router.connect()
        answer = asyncio.ensure_future(reader.read())
        while not answer.done():
            writer.write(b"G")
            await asyncio.sleep(0.05)
        assert answer.result().startswith(b"HTTP/1.1 408 ")
        writer.close()

    serving(test, header_timeout_s=0.5)


def test_more_connections_than_the_limit_are_told_so_and_far_more_are_closed() -> None:
    async def test(router: Running, _: ScriptedEngine) -> None:
        held = [await router.connect() for _ in range(3)]
        told = [await router.connect() for _ in range(MAX_TOLD)]
        for _reader, writer in told:
            writer.write(SMUGGLED)  # what was sent meanwhile does not turn the answer into a reset
        for reader, _writer in told:
            answer = await reader.readuntil(b"}}")
            assert answer.startswith(b"HTTP/1.1 503 ")
            assert b"too_many_connections" in answer
        over = await router.connect()
        with suppress(ConnectionError):
            assert await over[0].read() == b""
        for _reader, writer in (*held, *told, over):
            writer.close()
        async with asyncio.timeout(LIMIT_S):
            while not (await raw_exchange(router, LIVEZ)).startswith(b"HTTP/1.1 200 "):
                continue

    serving(test, max_connections=3)


# Admin and metrics --------------------------------------------------------------------------------------------


def test_the_admin_listener_has_metrics_and_decisions() -> None:
    async def test(router: Running, _: ScriptedEngine) -> None:
        response = await router.chat(model="smol")
        await router.chat(model="made-up-" + "x" * 50)
        text = (await router.admin.get("/metrics")).text
        line = 'flexinfer_requests_total{code="ok",model="smollm2-135m-instruct",route="chat/completions"} 1.0'
        assert line in text
        assert "made-up" not in text, "labels are bounded"
        assert "flexinfer_fleet_connected 1.0" in text
        found = (
            await router.admin.get(f"/explain/{response.headers['x-flexinfer-explain']}")
        ).json()
        assert found["steps"][0]["replica"] == "r1"
        assert "hi" not in json.dumps(found["steps"])
        missing = await router.admin.get("/explain/none")
        assert_error(missing, 404, "explain_not_found")

    serving(test)


def test_drain_ends_readiness_and_not_service_until_it_is_taken_back() -> None:
    async def test(router: Running, _: ScriptedEngine) -> None:
        for _again in range(2):
            assert (await router.admin.post("/drain")).status_code == 200
            for one in (router.client, router.admin):
                answer = await one.get("/readyz")
                assert answer.status_code == 503
                assert answer.json() == {"status": "draining", "ending": False}
            assert (await router.chat(model="smol")).status_code == 200
        for _again in range(2):
            assert (await router.admin.delete("/drain")).status_code == 200
            assert (await router.client.get("/readyz")).status_code == 200

    serving(test)
