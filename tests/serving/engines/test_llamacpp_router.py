"""The router in front of the real engine: what a field that is let through does, and what leaving frees."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from flexinfer.engine import Resources
from flexinfer.fleet import FleetReplica
from flexinfer.launching import RunningEngine, probe, start_engine
from flexinfer.testing.fleet import ScriptedFleet, model
from flexinfer.testing.starter import ARTIFACT
from flexinfer_serving.engines.llamacpp import LlamaCpp
from flexinfer_serving.testing import Running, raw_chat, running

CONFIG = {"contextTokens": 2048, "slots": 2, "cacheRamMiB": 16}
READY_WITHIN_S = 120.0
MESSAGES: Any = [{"role": "user", "content": "Name one colour."}]


@dataclass(frozen=True)
class Stack:
    """A router, the official client at it, and the engine behind it."""

    router: Running
    client: openai.AsyncOpenAI
    engine: httpx.AsyncClient

    async def gauge(self, name: str) -> float:
        text = (await self.engine.get("/metrics")).text
        found = re.search(rf"^llamacpp:{name} (\S+)$", text, re.MULTILINE)
        assert found, text
        return float(found[1])


@asynccontextmanager
async def engine_of(python: Path, gguf: Path, folder: Path) -> AsyncIterator[RunningEngine]:
    artifact = folder / "artifact"
    artifact.mkdir()
    try:
        os.link(gguf, artifact / "model.gguf")
    except OSError:
        (artifact / "model.gguf").symlink_to(gguf)
    launch = LlamaCpp().launch(CONFIG, ARTIFACT, Resources(threads=1, memory_bytes=4 << 30))
    engine = await start_engine(
        LlamaCpp(), launch, name="m-1", run_dir=folder, python=python, artifact=artifact,
        log_path=folder / "m-1.log", model="m",
    )  # fmt: skip
    try:
        async with asyncio.timeout(READY_WITHIN_S), httpx.AsyncClient(trust_env=False) as client:
            while not await probe(engine, engine.readiness, client):
                assert engine.child.returncode is None, engine.child.tail()
                await asyncio.sleep(0.05)
        yield engine
    finally:
        await engine.child.stop()


@pytest.fixture(scope="module")
def stack(engine_python: Path, starter_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return what runs a test against one engine of this module."""
    folder = tmp_path_factory.mktemp("engine")
    with asyncio.Runner() as runner:
        context = engine_of(engine_python, starter_gguf, folder)
        engine = runner.run(context.__aenter__())

        async def run(test: Callable[[Stack], Awaitable[None]]) -> None:
            one = FleetReplica(id="r1", url=engine.url, phase="ready", key=engine.key)
            fleet = ScriptedFleet(
                model(slots=2, context_tokens=2048, backend="llamacpp", replicas=(one,))
            )
            headers = dict(LlamaCpp().headers(engine.key))
            async with (
                running(fleet, engine=LlamaCpp()) as router,
                openai.AsyncOpenAI(
                    base_url=f"{router.url}/v1", api_key="any", max_retries=0
                ) as client,
                httpx.AsyncClient(base_url=engine.url, headers=headers, trust_env=False) as direct,
            ):
                await test(Stack(router, client, direct))

        try:
            yield lambda test: runner.run(run(test))
        finally:
            runner.run(context.__aexit__(None, None, None))


Run = Callable[[Callable[[Stack], Awaitable[None]]], None]


def test_base64_holds_the_same_numbers_and_is_what_the_client_asks_for(stack: Run) -> None:
    async def test(at: Stack) -> None:
        plain = await at.client.embeddings.create(model="m", input="hello", encoding_format="float")
        packed = await at.router.client.post(
            "/v1/embeddings", json={"model": "m", "input": "hello", "encoding_format": "base64"}
        )
        data = base64.b64decode(packed.json()["data"][0]["embedding"])
        assert len(data) == 4 * len(plain.data[0].embedding)
        found = struct.unpack(f"<{len(data) // 4}f", data)
        assert found == pytest.approx(plain.data[0].embedding, abs=1e-6)
        default = await at.client.embeddings.create(model="m", input=["hello", "x"])
        assert default.data[0].embedding == pytest.approx(plain.data[0].embedding, abs=1e-4)

    stack(test)


def test_n_gives_as_many_choices_with_best_of_equal_to_it(stack: Run) -> None:
    async def test(at: Stack) -> None:
        chat = await at.client.chat.completions.create(
            model="m", messages=MESSAGES, n=2, max_tokens=2
        )
        assert [one.index for one in chat.choices] == [0, 1]
        text = await at.client.completions.create(
            model="m", prompt=["a", "b"], n=2, best_of=2, max_tokens=2
        )
        assert len(text.choices) == 4

    stack(test)


def test_logprobs_are_those_of_the_tokens(stack: Run) -> None:
    async def test(at: Stack) -> None:
        chat = await at.client.chat.completions.create(
            model="m", messages=MESSAGES, max_tokens=2, temperature=0, logprobs=True, top_logprobs=2
        )
        logprobs = chat.choices[0].logprobs
        assert logprobs is not None and logprobs.content is not None
        for token in logprobs.content:
            assert len(token.top_logprobs) == 2
            assert token.logprob == max(one.logprob for one in token.top_logprobs)

    stack(test)


def test_a_response_format_binds_the_answer(stack: Run) -> None:
    schema = {
        "type": "object",
        "properties": {"colour": {"enum": ["blue", "red"]}},
        "required": ["colour"],
        "additionalProperties": False,
    }

    async def test(at: Stack) -> None:
        chat = await at.client.chat.completions.create(
            model="m", messages=MESSAGES, temperature=0, max_tokens=60,
            response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
        )  # fmt: skip
        assert json.loads(chat.choices[0].message.content or "")["colour"] in ("blue", "red")

    stack(test)


def test_a_bias_and_a_stop_change_the_text(stack: Run) -> None:
    async def test(at: Stack) -> None:
        async def text(**more: Any) -> str:
            answer = await at.client.completions.create(
                model="m", prompt="The sky is", max_tokens=6, temperature=0, logprobs=1, **more
            )
            return str(answer.choices[0].text)

        plain = await at.router.client.post(
            "/v1/completions",
            json={"model": "m", "prompt": "The sky is", "max_tokens": 1, "temperature": 0, "logprobs": 1},
        )  # fmt: skip
        first = plain.json()["choices"][0]["logprobs"]["content"][0]["id"]
        free = await text()
        assert await text(logit_bias={str(first): -100}) != free
        assert await text(stop=[free[3:5]]) == free[:3]
        assert await text(seed=7) == free

    stack(test)


def test_a_client_that_leaves_a_stream_frees_the_engines_slot(stack: Run) -> None:
    async def test(at: Stack) -> None:
        before = await at.gauge("tokens_predicted_total")
        reader, writer = await at.router.connect()
        long = [{"role": "user", "content": "Count from 1 to 1000, in words."}]
        writer.write(raw_chat(stream=True, max_tokens=1500, messages=long, logit_bias={"2": -100}))
        await reader.readuntil(b"data: ")
        assert await at.gauge("requests_processing") == 1
        writer.close()
        async with asyncio.timeout(READY_WITHIN_S):
            while await at.gauge("requests_processing"):
                await asyncio.sleep(0.05)
        assert await at.gauge("tokens_predicted_total") - before < 1000, "it did not go on alone"

    stack(test)
