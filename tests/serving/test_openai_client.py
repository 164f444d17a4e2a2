"""The official client library against the router: what it returns, and what it raises."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import openai
import pytest

from flexinfer.testing import engine as scripts
from flexinfer.testing.engine import Script, ScriptedEngine
from flexinfer.testing.fleet import ScriptedFleet, model, replica
from flexinfer_serving.testing import running

MESSAGES: Any = [{"role": "user", "content": "hi"}]
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
EVENT = scripts.event("a")


def with_client(
    test: Callable[[openai.AsyncOpenAI], Awaitable[None]],
    script: Script | None = None,
    **section: Any,
) -> None:
    async def run() -> None:
        async with ScriptedEngine(script or scripts.answers("hello")) as engine:
            fleet = ScriptedFleet(model(slots=4, replicas=(replica("r1", engine.url),)))
            async with running(fleet, **section) as router:
                client = openai.AsyncOpenAI(
                    base_url=f"{router.url}/v1", api_key="any", max_retries=0
                )
                async with client:
                    await test(client)

    asyncio.run(run())


def test_a_chat() -> None:
    async def test(client: openai.AsyncOpenAI) -> None:
        answer = await client.chat.completions.create(model="m", messages=MESSAGES)
        assert answer.choices[0].message.content == "hello"

    with_client(test)


def test_a_streamed_chat() -> None:
    async def test(client: openai.AsyncOpenAI) -> None:
        stream = await client.chat.completions.create(model="m", messages=MESSAGES, stream=True)
        parts = [chunk.choices[0].delta.content async for chunk in stream]
        assert parts == list("hello")

    with_client(test)


def test_embeddings() -> None:
    async def test(client: openai.AsyncOpenAI) -> None:
        answer = await client.embeddings.create(
            model="m", input=["a", "b"], encoding_format="float"
        )
        assert [one.embedding for one in answer.data] == [[0.5, 0.25]] * 2

    with_client(test)


def test_models() -> None:
    async def test(client: openai.AsyncOpenAI) -> None:
        assert [one.id async for one in client.models.list()] == ["m"]
        assert (await client.models.retrieve("m")).owned_by == "flexinfer"

    with_client(test)


def test_an_unknown_model_is_its_not_found() -> None:
    async def test(client: openai.AsyncOpenAI) -> None:
        with pytest.raises(openai.NotFoundError) as caught:
            await client.chat.completions.create(model="x", messages=MESSAGES)
        assert (caught.value.code, caught.value.param) == ("model_not_found", "model")

    with_client(test)


def test_a_value_out_of_range_is_its_bad_request() -> None:
    async def test(client: openai.AsyncOpenAI) -> None:
        with pytest.raises(openai.BadRequestError) as caught:
            await client.chat.completions.create(model="m", messages=MESSAGES, n=1000)
        assert caught.value.param == "n"

    with_client(test)


def test_a_wrong_key_is_its_authentication_error() -> None:
    async def test(client: openai.AsyncOpenAI) -> None:
        with pytest.raises(openai.AuthenticationError):
            await client.models.list()

    with_client(test, api_keys=("right",))


def test_a_stream_that_breaks_off_raises_and_never_ends_as_if_it_were_whole() -> None:
    broken = scripts.raw(
        HEAD + b"%x\r\n%s\r\n" % (len(EVENT), EVENT) + b'40\r\ndata: {"ch', end="reset"
    )

    async def test(client: openai.AsyncOpenAI) -> None:
        stream = await client.chat.completions.create(model="m", messages=MESSAGES, stream=True)
        found = []
        with pytest.raises(openai.APIError) as caught:
            async for chunk in stream:
                found.append(chunk.choices[0].delta.content)
        assert found == ["a"]
        assert caught.value.code == "upstream_disconnected"

    with_client(test, broken)
