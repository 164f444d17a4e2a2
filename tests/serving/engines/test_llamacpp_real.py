"""The real engine with the real starter model."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import time
import venv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from flexinfer.engine import Cause, Endpoint, Resources
from flexinfer.launching import RunningEngine, bind, probe, record_of, start_engine
from flexinfer.process import Child, Record, free_port, start
from flexinfer.testing.starter import ARTIFACT as STARTER
from flexinfer_serving.engines.llamacpp import LlamaCpp

CONFIG = {"contextTokens": 512, "slots": 2, "cacheRamMiB": 16}
ONE_THREAD = Resources(threads=1, memory_bytes=4 << 30)
READY_WITHIN_S = 120.0


@dataclass(frozen=True)
class Served:
    """An engine that is ready, a client with its key, and one that has none."""

    running: RunningEngine
    client: httpx.Client
    stranger: httpx.Client
    log: Path


def folder_with(model: Path, folder: Path) -> Path:
    """Return *folder* with *model* in it as the artifact's only file."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        os.link(model, folder / "model.gguf")
    except OSError:
        (folder / "model.gguf").symlink_to(model)
    return folder


async def started(
    python: Path, artifact: Path, run_dir: Path, name: str = "starter-1"
) -> RunningEngine:
    engine = LlamaCpp()
    launch = engine.launch(CONFIG, STARTER, ONE_THREAD)
    return await start_engine(
        engine, launch, name=name, run_dir=run_dir, python=python, artifact=artifact,
        log_path=run_dir / f"{name}.log", model="starter",
    )  # fmt: skip


async def until_ready(running: RunningEngine) -> None:
    """Wait until it answers.

    Raises:
        AssertionError: it ended, or takes longer than any machine needs.
    """
    limit = time.monotonic() + READY_WITHIN_S
    async with httpx.AsyncClient(trust_env=False) as client:
        while not await probe(running, running.readiness, client):
            assert running.child.returncode is None, running.child.tail()
            assert time.monotonic() < limit, running.child.tail()
            await asyncio.sleep(0.05)


async def ended(child: Child) -> int:
    """Return how it ended by itself."""
    async with asyncio.timeout(READY_WITHIN_S):
        return await child.wait()


@pytest.fixture(scope="session")
def served(
    engine_python: Path, starter_gguf: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    """The starter model, served by the real engine."""
    folder = tmp_path_factory.mktemp("engine")
    artifact = folder_with(starter_gguf, folder / "artifact")
    with asyncio.Runner() as runner:
        running = runner.run(started(engine_python, artifact, folder))
        try:
            runner.run(until_ready(running))
            headers = dict(LlamaCpp().headers(running.key))
            with (
                httpx.Client(
                    base_url=running.url, headers=headers, timeout=120, trust_env=False
                ) as client,
                httpx.Client(base_url=running.url, timeout=120, trust_env=False) as stranger,
            ):
                yield Served(running, client, stranger, folder / "starter-1.log")
        finally:
            runner.run(running.child.stop())


ENGINE = LlamaCpp()
QUESTION = [{"role": "user", "content": "What is the capital of France? Answer briefly."}]
SECRET_WORD = "XYLOPHONEPROMPT"


def post(served: Served, endpoint: Endpoint, body: dict[str, Any]) -> httpx.Response:
    return served.client.post(ENGINE.path(endpoint), json=body)


def refusal(
    served: Served, endpoint: Endpoint, body: dict[str, Any]
) -> tuple[int, str, str | None]:
    """Return status, code and param that a client would get."""
    answer = post(served, endpoint, body)
    assert answer.status_code >= 400, answer.text
    error = ENGINE.error(answer.status_code, answer.content, endpoint)
    return error.status, error.code, error.param


def test_chat_completions_and_embeddings_come_from_one_process(served: Served) -> None:
    chat = post(served, Endpoint.CHAT, {"messages": QUESTION, "max_tokens": 16, "temperature": 0})
    assert "Paris" in chat.json()["choices"][0]["message"]["content"]
    text = post(served, Endpoint.COMPLETIONS, {"prompt": "Once upon a", "max_tokens": 4})
    assert text.json()["usage"]["completion_tokens"] == 4
    vectors = post(served, Endpoint.EMBEDDINGS, {"input": ["one", "two"]}).json()["data"]
    assert [len(vector["embedding"]) for vector in vectors] == [576, 576]


def test_answers_name_the_model_as_we_call_it_and_no_path(served: Served) -> None:
    answer = post(served, Endpoint.CHAT, {"messages": QUESTION, "max_tokens": 1})
    assert answer.json()["model"] == "starter"
    assert "gguf" not in answer.text


def test_a_stream_ends_with_done(served: Served) -> None:
    body = {"messages": QUESTION, "max_tokens": 4, "stream": True}
    assert post(served, Endpoint.CHAT, body).text.endswith("data: [DONE]\n\n")


def test_one_request_may_use_the_whole_context(served: Served) -> None:
    text = post(served, Endpoint.COMPLETIONS, {"prompt": [5] * 500, "max_tokens": 4})
    assert text.json()["usage"]["total_tokens"] == 504
    assert post(served, Endpoint.EMBEDDINGS, {"input": [5] * 500}).status_code == 200


@pytest.mark.parametrize("endpoint", Endpoint)
def test_an_input_beyond_the_context_is_the_clients_mistake(
    served: Served, endpoint: Endpoint
) -> None:
    long = "word " * 600
    bodies: dict[Endpoint, dict[str, Any]] = {
        Endpoint.CHAT: {"messages": [{"role": "user", "content": long}]},
        Endpoint.COMPLETIONS: {"prompt": long},
        Endpoint.EMBEDDINGS: {"input": ["short", long]},
    }
    status, code, _ = refusal(served, endpoint, bodies[endpoint])
    assert (status, code) == (400, "context_length_exceeded")


@pytest.mark.parametrize(
    ("endpoint", "body", "code", "param"),
    [
        (Endpoint.CHAT, {"messages": [{"content": "x"}]}, "invalid_request", "messages"),
        (Endpoint.CHAT, {"messages": QUESTION, "tools": "x"}, "invalid_request", "tools"),
        (Endpoint.CHAT, {"messages": QUESTION, "temperature": "x"}, "invalid_request", "temperature"),
        (Endpoint.CHAT, {"messages": QUESTION, "n": 3}, "invalid_request", "n"),
        (
            Endpoint.CHAT,
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]}]},
            "unsupported_content",
            "messages",
        ),
        (Endpoint.EMBEDDINGS, {"input": []}, "invalid_request", None),
        (Endpoint.EMBEDDINGS, {"input": [-5]}, "invalid_request", None),
        (Endpoint.COMPLETIONS, {"prompt": None}, "invalid_request", None),
    ],
)  # fmt: skip
def test_a_malformed_request_is_the_clients_mistake_and_the_engine_lives(
    served: Served, endpoint: Endpoint, body: dict[str, Any], code: str, param: str | None
) -> None:
    assert refusal(served, endpoint, body) == (400, code, param)
    assert served.client.get("/health").status_code == 200


@pytest.mark.parametrize(
    "path", ["/v1/models", "/props", "/slots", "/metrics", "/lora-adapters", "/tokenize", "/tools"]
)
def test_without_the_key_nothing_answers(served: Served, path: str) -> None:
    assert served.stranger.get(path).status_code in (401, 404)
    assert served.stranger.post(path, json={}).status_code in (401, 404)


def test_what_is_not_for_clients_is_off_even_with_the_key(served: Served) -> None:
    assert served.client.get("/slots").status_code == 501
    assert served.client.post("/slots/0?action=save", json={"filename": "x"}).status_code == 501
    assert served.client.get("/tools").status_code == 403
    assert served.client.post("/props", json={}).status_code == 501
    assert served.client.get("/").status_code == 404


def test_no_web_page_may_read_an_answer(served: Served) -> None:
    origin = {"origin": "http://evil.example", "access-control-request-method": "POST"}
    answers = (
        served.client.get("/health", headers=origin),
        served.stranger.options("/v1/chat/completions", headers=origin),
    )
    for answer in answers:
        # Empty is no origin's name, so a browser refuses; a star or an echo would let every page in.
        assert answer.headers.get("access-control-allow-origin", "") == ""
        assert answer.headers.get("access-control-allow-credentials", "false") == "false"
        assert answer.headers.get("access-control-allow-headers", "") == ""


def test_it_listens_on_the_loopback_interface_only(served: Served) -> None:
    port = served.running.ports["http"]
    tables = [Path("/proc/net/tcp"), Path("/proc/net/tcp6")]
    rows = [row.split() for table in tables for row in table.read_text().splitlines()[1:]]
    listening = [row[1] for row in rows if row[3] == "0A" and row[1].endswith(f":{port:04X}")]
    assert listening == [f"0100007F:{port:04X}"]


def test_the_metrics_that_it_names_are_there(served: Served) -> None:
    text = served.client.get("/metrics").text
    for metric in ENGINE.metric_names().values():
        assert f"\n{metric} " in text


def test_the_log_holds_no_prompt_and_no_key(served: Served) -> None:
    asked = [{"role": "user", "content": SECRET_WORD}]
    post(served, Endpoint.CHAT, {"messages": asked, "max_tokens": 1})
    post(served, Endpoint.CHAT, {"messages": [{"content": SECRET_WORD}]})
    post(served, Endpoint.CHAT, {"messages": asked, "tools": SECRET_WORD})
    post(served, Endpoint.EMBEDDINGS, {"input": f"{SECRET_WORD} " * 300})
    served.client.post("/v1/chat/completions", content=f'{{"messages": "{SECRET_WORD}'.encode())
    log = served.log.read_text("utf-8")
    assert "flexinfer: serving on" in log
    assert SECRET_WORD not in log
    assert served.running.key not in log


def test_neither_arguments_nor_environment_hold_the_key(served: Served) -> None:
    folder = Path(f"/proc/{served.running.child.pid}")
    for name in ("cmdline", "environ"):
        assert served.running.key.encode() not in (folder / name).read_bytes()
    assert served.running.key_path.stat().st_mode & 0o077 == 0


def test_it_writes_no_core_and_goes_first_when_memory_ends(served: Served) -> None:
    folder = Path(f"/proc/{served.running.child.pid}")
    limits = folder.joinpath("limits").read_text()
    core = next(line.split() for line in limits.splitlines() if line.startswith("Max core"))
    assert core[4:6] == ["0", "0"]
    assert int(folder.joinpath("oom_score_adj").read_text()) > 0


def test_an_adopted_engine_is_asked_with_the_same_key(served: Served) -> None:
    record = Record.from_json(record_of(served.running, {"model": "starter"}).to_json())
    assert record.extra["model"] == "starter"
    assert served.running.key not in record.to_json()
    again = RunningEngine.from_record(record)
    assert (again.url, again.key, again.ports) == (
        served.running.url,
        served.running.key,
        served.running.ports,
    )
    again.child.detach()


def test_a_signal_ends_it_in_the_middle_of_an_answer(
    engine_python: Path, starter_gguf: Path, tmp_path: Path
) -> None:
    artifact = folder_with(starter_gguf, tmp_path / "artifact")

    async def scenario() -> int:
        running = await started(engine_python, artifact, tmp_path)
        await until_ready(running)
        body = {"prompt": "Once", "max_tokens": 200, "ignore_eos": True, "stream": True}
        async with (
            httpx.AsyncClient(timeout=60, trust_env=False) as client,
            client.stream(
                "POST", f"{running.url}/v1/completions", json=body,
                headers=dict(ENGINE.headers(running.key)),
            ) as answer,
        ):  # fmt: skip
            await anext(aiter(answer.aiter_bytes()))
            # Without a grace time for anything: SIGKILL would show in the code.
            return await running.child.stop(grace_s=60)

    assert asyncio.run(scenario()) == -signal.SIGTERM


async def last_words(python: Path, artifact: Path, folder: Path, port: int | None = None) -> Cause:
    """Return the cause of a start that fails by itself."""
    launch = ENGINE.launch(CONFIG, STARTER, ONE_THREAD)
    key = folder / "key"
    key.write_text("k" * 32)
    spec = bind(
        launch, name="failing", python=python, artifact=artifact,
        ports={"http": port or free_port()}, secrets={"engine-key": key}, log_path=folder / "log",
    )  # fmt: skip
    child = await start(spec)
    code = await ended(child)
    return ENGINE.cause(child.tail(), code)


def test_a_port_that_another_holds_is_told(
    engine_python: Path, starter_gguf: Path, tmp_path: Path
) -> None:
    artifact = folder_with(starter_gguf, tmp_path / "artifact")
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        port = stranger.getsockname()[1]
        cause = asyncio.run(last_words(engine_python, artifact, tmp_path, port))
    assert (cause.code, cause.retryable) == ("port_taken", True)
    assert str(port) in cause.message


def test_without_room_for_its_log_it_serves(
    engine_python: Path, starter_gguf: Path, tmp_path: Path
) -> None:
    artifact = folder_with(starter_gguf, tmp_path / "artifact")
    (tmp_path / "key").write_text("k" * 32)
    spec = bind(
        ENGINE.launch(CONFIG, STARTER, ONE_THREAD), name="no-room", python=engine_python,
        artifact=artifact, ports={"http": free_port()}, secrets={"engine-key": tmp_path / "key"},
        log_path=tmp_path / "log",
    )  # fmt: skip
    with (
        open("/dev/full", "wb") as full,
        subprocess.Popen(spec.argv, stdin=subprocess.DEVNULL, stdout=full, stderr=full) as child,
    ):
        try:
            limit = time.monotonic() + READY_WITHIN_S
            port = spec.argv[spec.argv.index("--port") + 1]
            while not is_healthy(f"http://127.0.0.1:{port}/health"):
                assert child.poll() is None
                assert time.monotonic() < limit
                time.sleep(0.05)
        finally:
            child.kill()


def is_healthy(url: str) -> bool:
    try:
        return httpx.get(url, trust_env=False).is_success
    except httpx.TransportError:
        return False


def test_a_model_that_was_cut_short_is_told(
    engine_python: Path, starter_gguf: Path, tmp_path: Path
) -> None:
    with starter_gguf.open("rb") as file:
        (tmp_path / "model.gguf").write_bytes(file.read(8_000_000))
    cause = asyncio.run(last_words(engine_python, tmp_path, tmp_path))
    assert (cause.code, cause.retryable) == ("model_corrupt", False)


def test_an_architecture_that_it_does_not_know_is_told(
    engine_python: Path, starter_gguf: Path, tmp_path: Path
) -> None:
    data = bytearray(starter_gguf.read_bytes())
    place = data.index(b"llama", data.index(b"general.architecture"))
    data[place : place + 5] = b"llamx"
    (tmp_path / "model.gguf").write_bytes(data)
    cause = asyncio.run(last_words(engine_python, tmp_path, tmp_path))
    assert cause.code == "architecture_unsupported"
    assert "llamx" in cause.message


def test_a_tool_environment_without_the_package_is_told(tmp_path: Path) -> None:
    venv.create(tmp_path / "empty", with_pip=False)
    python = tmp_path / "empty" / "bin" / "python"
    cause = asyncio.run(last_words(python, tmp_path, tmp_path))
    assert cause.code == "engine_missing"


def test_an_engine_killed_during_its_load_is_told(
    engine_python: Path, starter_gguf: Path, tmp_path: Path
) -> None:
    artifact = folder_with(starter_gguf, tmp_path / "artifact")

    async def scenario() -> Cause:
        running = await started(engine_python, artifact, tmp_path)
        async with asyncio.timeout(READY_WITHIN_S):
            while not any("loading weights" in line for line in running.child.tail()):
                await asyncio.sleep(0.01)
        running.child.kill()
        code = await running.child.wait()
        return ENGINE.cause(running.child.tail(), code)

    assert asyncio.run(scenario()).code == "engine_killed"


def test_an_engine_that_loads_is_not_ready(
    engine_python: Path, starter_gguf: Path, tmp_path: Path
) -> None:
    artifact = folder_with(starter_gguf, tmp_path / "artifact")

    async def scenario() -> bool:
        running = await started(engine_python, artifact, tmp_path)
        try:
            async with httpx.AsyncClient(trust_env=False) as client:
                return await probe(running, running.readiness, client)
        finally:
            await running.child.stop()

    assert asyncio.run(scenario()) is False
