from __future__ import annotations

import asyncio
import json
import socket
import sys
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexinfer.artifact import Artifact, FileEntry, ModelConfig
from flexinfer.engine import (
    Cause,
    Endpoint,
    Engine,
    EngineArtifact,
    EngineError,
    Launch,
    Limits,
    Probe,
    Problem,
    Resources,
    Substage,
)
from flexinfer.errors import InvalidInput, NotFound, PluginError, ProcessFailed, ResourceExhausted
from flexinfer.launching import (
    RunningEngine,
    bind,
    engine_artifact,
    probe,
    record_of,
    start_engine,
)
from flexinfer.oci import parse_digest
from flexinfer.process import ProcessSpec, free_port

WITHIN_S = 60.0
# Says ready when the file `ready` lies in its folder; tells what it was started with.
PROGRAM = """
import http.server, json, os, pathlib, sys
port, key_file, model = int(sys.argv[1]), sys.argv[2], sys.argv[3]
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        told = {"key": open(key_file).read().strip(), "model": model, "cwd": os.getcwd()}
        body = json.dumps(told).encode()
        self.send_response(200 if pathlib.Path("ready").exists() else 503)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_): pass
http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


class Scripted(Engine):
    """An engine whose program is a page of Python: what is tested is our side."""

    name: ClassVar[str] = "scripted"
    tool: ClassVar[str] = "none"
    formats: ClassVar[frozenset[str]] = frozenset({"gguf"})

    def __init__(self, program: Path) -> None:
        self.program = program

    def problems(self, config: Mapping[str, Any]) -> tuple[Problem, ...]:
        return ()

    def limits(self, config: Mapping[str, Any], artifact: EngineArtifact | None = None) -> Limits:
        return Limits(context_tokens=1, slots=1)

    def endpoints(self, config: Mapping[str, Any], artifact: EngineArtifact) -> frozenset[Endpoint]:
        return frozenset()

    def launch(
        self, config: Mapping[str, Any], artifact: EngineArtifact, resources: Resources
    ) -> Launch:
        return launch(self.program)

    def path(self, endpoint: Endpoint) -> str:
        return "/"

    def headers(self, key: str) -> Mapping[str, str]:
        return {}

    def error(self, status: int, body: bytes, endpoint: Endpoint | None = None) -> EngineError:
        return EngineError(status=502, code="upstream_error", message="x")

    def substage(self, line: str) -> Substage | None:
        return None

    def cause(self, lines: Sequence[str], exit_code: int | None) -> Cause:
        return Cause(code="engine_failed", message="x", remedy="x", retryable=False)

    def metric_names(self) -> Mapping[str, str]:
        return {}


def launch(program: Path, **changes: Any) -> Launch:
    fields: dict[str, Any] = {
        "tool": "none",
        "program": program,
        "argv": ("{python}", "{program}", "{port:http}", "{secret:engine-key}", "{model}"),
        "readiness": Probe(path="/health"),
    }
    return Launch(**{**fields, **changes})


def bound(argv: tuple[str, ...], environment: Mapping[str, str] | None = None) -> ProcessSpec:
    return bind(
        launch(Path("/p.py"), argv=argv, environment=environment or {}),
        name="replica-1",
        model="smol",
        python=Path("/py"),
        artifact=Path("/artifact"),
        ports={"http": 4000},
        secrets={"engine-key": Path("/run/key")},
        log_path=Path("/log"),
        nice=3,
    )


def test_every_placeholder_is_bound_wherever_it_stands() -> None:
    spec = bound(
        ("{python}", "{program}", "--model={artifact}/a.gguf", "{port:http}", "{secret:engine-key}", "{model}"),
        {"WHERE": "{artifact}:{port:http}"},
    )  # fmt: skip
    assert spec.argv == ("/py", "/p.py", "--model=/artifact/a.gguf", "4000", "/run/key", "smol")
    assert spec.environment["WHERE"] == "/artifact:4000"
    assert (spec.cwd, spec.log_path, spec.nice, spec.lifeline) == (
        Path("/artifact"),
        Path("/log"),
        3,
        False,
    )


@pytest.mark.parametrize("text", ["{home}", "{port:grpc}", "{secret:token}", "{}", "{Python}"])
def test_a_placeholder_that_nobody_binds_is_the_plugins_fault(text: str) -> None:
    with pytest.raises(PluginError) as refused:
        bound(("{python}", f"--x={text}"))
    assert refused.value.code == "placeholder_unknown"
    assert text in refused.value.message
    assert "argument 1" in refused.value.message


def test_a_bound_value_is_not_bound_again() -> None:
    spec = bind(
        launch(Path("/p.py"), argv=("{model}",)), name="r", model="{secret:engine-key}",
        python=Path("/py"), artifact=Path("/a"), ports={}, secrets={"engine-key": Path("/run/key")},
        log_path=None,
    )  # fmt: skip
    assert spec.argv == ("{secret:engine-key}",)


def test_an_engine_inherits_no_token_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_1")
    monkeypatch.setenv("FLEXINFER_SERVE__API_KEYS", "k")
    monkeypatch.setenv("LD_PRELOAD", "/x.so")
    assert (
        not {"HF_TOKEN", "FLEXINFER_SERVE__API_KEYS", "LD_PRELOAD"}
        & bound(("x",)).environment.keys()
    )


NAMES = st.sampled_from(
    ["python", "program", "artifact", "model", "port:http", "secret:engine-key"]
)


@given(st.lists(st.one_of(NAMES.map(lambda n: "{" + n + "}"), st.text("ab-=/ ", max_size=4))))
def test_what_is_no_placeholder_stays_as_it_is(parts: list[str]) -> None:
    values = {
        "{python}": "/py", "{program}": "/p.py", "{artifact}": "/artifact", "{model}": "smol",
        "{port:http}": "4000", "{secret:engine-key}": "/run/key",
    }  # fmt: skip
    (text,) = bound(("x", "".join(parts))).argv[1:]
    assert text == "".join(values.get(part, part) for part in parts)


DIGEST = parse_digest("sha256:" + "c" * 64)


def model(annotations: dict[str, str]) -> Artifact:
    return Artifact(
        files=(FileEntry(path="a.gguf", digest=DIGEST, size=7),),
        config=ModelConfig(architecture="llama", format="gguf", quantization="Q4_0"),
        annotations=annotations,
    )


def test_an_engine_hears_what_the_artifact_says_of_itself() -> None:
    notes = {"ai.flexinfer.context-length": "8192", "ai.flexinfer.chat-template": "true"}
    assert engine_artifact(model(notes), DIGEST) == EngineArtifact(
        digest=DIGEST, format="gguf", quantization="Q4_0", architecture="llama", files=("a.gguf",),
        size_bytes=7, context_length=8192, has_chat_template=True,
    )  # fmt: skip


def test_an_artifact_of_others_says_less() -> None:
    found = engine_artifact(model({}), DIGEST)
    assert (found.context_length, found.has_chat_template) == (0, False)


@pytest.mark.parametrize(
    "notes",
    [
        {"ai.flexinfer.context-length": "-1"},
        {"ai.flexinfer.context-length": "١٢"},
        {"ai.flexinfer.context-length": "9" * 10},
        {"ai.flexinfer.chat-template": "maybe"},
    ],
)
def test_an_annotation_with_something_else_in_it_is_refused(notes: dict[str, str]) -> None:
    with pytest.raises(InvalidInput) as refused:
        engine_artifact(model(notes), DIGEST)
    assert refused.value.code == "artifact_annotation"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "artifact").mkdir()
    (tmp_path / "artifact" / "ready").touch()
    return tmp_path


async def begin(place: Path, name: str = "replica-1") -> RunningEngine:
    engine = Scripted(place / "program.py")
    return await start_engine(
        engine, launch(engine.program), name=name, model="smol", run_dir=place / "run",
        python=Path(sys.executable), artifact=place / "artifact", log_path=place / "log",
    )  # fmt: skip


def with_engine(
    place: Path, act: Callable[[RunningEngine, httpx.AsyncClient], Awaitable[Any]]
) -> Any:
    """Return what *act* gives for an engine that runs, which is ended afterwards."""

    async def scenario() -> Any:
        running = await begin(place)
        try:
            async with httpx.AsyncClient(trust_env=False) as client:
                return await act(running, client)
        finally:
            await running.child.stop()

    return asyncio.run(scenario())


async def listening(running: RunningEngine, client: httpx.AsyncClient) -> None:
    async with asyncio.timeout(WITHIN_S):
        while True:
            try:
                await client.get(running.url)
                return
            except httpx.TransportError:
                assert running.child.returncode is None, running.child.tail()
                await asyncio.sleep(0.02)


async def ready(running: RunningEngine, client: httpx.AsyncClient) -> None:
    await listening(running, client)
    assert await probe(running, running.readiness, client)


def test_the_program_gets_its_port_its_key_and_its_folder(place: Path) -> None:
    async def act(running: RunningEngine, client: httpx.AsyncClient) -> None:
        await ready(running, client)
        told = (await client.get(running.url)).json()
        assert told == {
            "key": running.key,
            "model": "smol",
            "cwd": str((place / "artifact").resolve()),
        }

    with_engine(place, act)


def test_the_key_is_new_for_each_launch_and_only_its_owner_can_read_it(place: Path) -> None:
    async def act(running: RunningEngine, client: httpx.AsyncClient) -> tuple[str, int, int]:
        path = running.key_path
        assert running.key not in repr(running)
        return running.key, path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777

    first, second = with_engine(place, act), with_engine(place, act)
    assert first[1:] == second[1:] == (0o600, 0o700)
    assert first[0] != second[0]
    assert len(first[0]) >= 43  # 32 bytes in base64


def test_an_answer_other_than_200_is_not_ready(place: Path) -> None:
    (place / "artifact" / "ready").unlink()

    async def act(running: RunningEngine, client: httpx.AsyncClient) -> None:
        await listening(running, client)
        assert not await probe(running, running.readiness, client)
        (place / "artifact" / "ready").touch()
        assert await probe(running, running.readiness, client)
        assert await probe(running.url + "/", running.readiness, client)

    with_engine(place, act)


def test_what_does_not_listen_is_not_ready() -> None:
    async def scenario() -> bool:
        async with httpx.AsyncClient(trust_env=False) as client:
            return await probe(f"http://127.0.0.1:{free_port()}", Probe(path="/"), client)

    assert asyncio.run(scenario()) is False


def test_a_stranger_on_the_port_is_never_ready(place: Path) -> None:
    """It answers 200 and is another process than the engine: here, the test itself."""
    with socket.create_server(("127.0.0.1", 0)) as stranger:

        def answer() -> None:
            connection, _ = stranger.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(
                    b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
                )

        async def act(running: RunningEngine, client: httpx.AsyncClient) -> bool:
            await ready(running, client)
            port = stranger.getsockname()[1]
            taken = RunningEngine(
                child=running.child, name=running.name, url=f"http://127.0.0.1:{port}",
                key=running.key, key_path=running.key_path, ports={"http": port},
                readiness=running.readiness, log_path=None,
            )  # fmt: skip
            return await probe(taken, taken.readiness, client)

        thread = threading.Thread(target=answer)
        thread.start()
        assert with_engine(place, act) is False
        thread.join(WITHIN_S)
        assert not thread.is_alive()


def test_a_record_finds_it_again_and_does_not_hold_the_key(place: Path) -> None:
    async def act(running: RunningEngine, client: httpx.AsyncClient) -> None:
        await ready(running, client)
        record = record_of(running, {"digest": "sha256:x", "url": "http://overwritten"})
        assert running.key not in json.dumps(dict(record.extra))
        again = RunningEngine.from_record(record)
        assert (again.name, again.url, again.key, again.ports, again.readiness, again.log_path) == (
            running.name, running.url, running.key, running.ports, running.readiness, running.log_path,
        )  # fmt: skip
        assert await probe(again, again.readiness, client)
        again.child.detach()
        assert record.extra["digest"] == "sha256:x"

    with_engine(place, act)


def test_a_record_of_one_that_ended_is_told_so(place: Path) -> None:
    async def act(running: RunningEngine, client: httpx.AsyncClient) -> None:
        record = record_of(running)
        await running.child.stop()
        with pytest.raises(NotFound):
            RunningEngine.from_record(record)
        running.forget_key()
        running.forget_key()
        with pytest.raises(InvalidInput) as refused:
            RunningEngine.from_record(record)
        assert refused.value.code == "engine_record"

    with_engine(place, act)


@pytest.mark.parametrize("name", ["", "../up", "a/b", "A", "a" * 129, ".hidden"])
def test_a_name_that_cannot_name_a_file_is_refused(place: Path, name: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        asyncio.run(begin(place, name))
    assert refused.value.code == "engine_name"


def test_a_launch_without_a_key_is_the_plugins_fault(place: Path) -> None:
    engine = Scripted(place / "program.py")
    keyless = launch(engine.program, secrets=())
    start = start_engine(
        engine, keyless, name="r", run_dir=place, python=Path(sys.executable), artifact=place,
        log_path=None,
    )  # fmt: skip
    with pytest.raises(PluginError, match="engine-key"):
        asyncio.run(start)


def test_a_program_that_cannot_be_started_leaves_no_key(place: Path) -> None:
    engine = Scripted(place / "program.py")
    start = start_engine(
        engine, launch(engine.program), name="r", run_dir=place / "run",
        python=place / "no-such-python", artifact=place / "artifact", log_path=None,
    )  # fmt: skip
    with pytest.raises(ProcessFailed):
        asyncio.run(start)
    assert list((place / "run" / "secrets").iterdir()) == []


def test_a_key_that_cannot_be_written_starts_nothing(place: Path) -> None:
    (place / "run").write_text("a file where a folder should be")
    with pytest.raises(ResourceExhausted, match="engine key"):
        asyncio.run(begin(place))
    assert not (place / "log").exists()
