"""The bench: engines that validators measure with, one at a time, real ones, on loopback, behind a key."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

import httpx

from flexinfer.clock import Clock
from flexinfer.engine import ENGINES, Endpoint, Engine, EngineArtifact, Resources
from flexinfer.errors import InvalidInput, ProcessFailed
from flexinfer.launching import RunningEngine, probe, start_engine
from flexinfer.machine import usable_cpus
from flexinfer.places import Home
from flexinfer.process import Progress
from flexinfer.toolenv import ToolEnvironment, ToolPython
from flexinfer_pipelines.validators import Subject

_PROBE_EVERY_S = 0.1
_LOAD_STALL_S = 60.0
_ANSWER_S = 300.0
MAX_ANSWER_BYTES = 4 * 1024 * 1024
_MAX_CONTEXT = 2048


class Session:
    """One running engine with one subject in it."""

    def __init__(
        self,
        engine: Engine,
        running: RunningEngine,
        client: httpx.AsyncClient,
        *,
        max_answer_bytes: int = MAX_ANSWER_BYTES,
    ) -> None:
        self._engine = engine
        self._client = client
        self._max_answer_bytes = max_answer_bytes
        self.running = running

    async def ask(self, endpoint: Endpoint, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return the engine's answer.

        Raises:
            ProcessFailed: codes `engine_refused`; `engine_failed`: it broke off; `engine_answer_invalid`: it answered
                with more than `max_answer_bytes`, or with something else than a JSON object.
        """
        what = f"engine {self._engine.name}: {endpoint.value}"
        try:
            async with self._client.stream(
                "POST",
                f"{self.running.url}{self._engine.path(endpoint)}",
                json=dict(body),
                headers={**self._engine.headers(self.running.key), "accept-encoding": "identity"},
            ) as answer:
                status = answer.status_code
                content = await self._bounded(answer, what)
        except httpx.HTTPError as error:
            words = " | ".join(self.running.child.tail(5))
            raise ProcessFailed(
                f"engine {self._engine.name}: broke off ({type(error).__name__}): {words}",
                code="engine_failed",
            ) from error
        if status != 200:
            said = self._engine.error(status, content).message
            raise ProcessFailed(f"{what}: HTTP {status}: {said}", code="engine_refused")
        try:
            found = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise _invalid(f"{what}: expected JSON ({error})") from error
        if not isinstance(found, dict):
            raise _invalid(f"{what}: expected a JSON object, found {type(found).__name__}")
        return found

    async def _bounded(self, answer: httpx.Response, what: str) -> bytes:
        """Return the body; what is beyond the bound is not taken."""
        content = bytearray()
        async for chunk in answer.aiter_raw():
            content += chunk
            if len(content) > self._max_answer_bytes:
                raise _invalid(
                    f"{what}: HTTP {answer.status_code} with more than {self._max_answer_bytes} bytes"
                )
        return bytes(content)

    def peak_rss_bytes(self) -> int:
        """Return the most memory that the engine's process ever had."""
        usage = self.running.child.usage()
        if usage is None:
            raise ProcessFailed(f"engine {self._engine.name}: it has ended", code="engine_failed")
        return usage.peak_rss_bytes


class Bench:
    """Starts engines for subjects. At most one runs: a second model may not fit beside the first.

    Asking for the subject that runs already, at the same context, gives the same session.
    """

    def __init__(
        self,
        *,
        home: Home,
        folder: Path,
        clock: Clock,
        nice: int,
        on_line: Callable[[str], None],
    ) -> None:
        """*on_line* hears what is installed, where the engine's tool environment is not there yet."""
        self._on_line = on_line
        self._home = home
        self._folder = folder
        self._clock = clock
        self._nice = nice
        self._engine = engine_for("gguf")
        self._tool = ToolEnvironment.named(self._engine.tool)
        self._python: ToolPython | None = None
        self._now: tuple[str, int, Session] | None = None
        self._client = httpx.AsyncClient(
            trust_env=False, timeout=httpx.Timeout(_ANSWER_S, connect=5.0)
        )

    @property
    def engine_version(self) -> str:
        """Name of the engine, and the lock that its program comes from."""
        return f"{self._engine.name} (lock {self._tool.lock_hash[:12]})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        try:
            await self._stop()
        finally:
            await self._client.aclose()

    def endpoints(self, subject: Subject) -> frozenset[Endpoint]:
        """Return what *subject* can be asked."""
        return self._engine.endpoints(_config(_MAX_CONTEXT), _artifact(subject))

    async def session(self, subject: Subject, *, context_tokens: int = _MAX_CONTEXT) -> Session:
        """Return an engine that has loaded *subject*; it lives until another is asked for.

        Raises:
            ProcessFailed: the engine ended, or made no progress; the code is the cause that its log tells.
        """
        trained = subject.header.context_length or context_tokens
        context_tokens = min(context_tokens, trained)
        if self._now is not None and self._now[:2] == (subject.digest, context_tokens):
            return self._now[2]
        await self._stop()
        if self._python is None:
            self._python = await self._tool.ensure_async(self._home, on_line=self._on_line)
        launch = self._engine.launch(
            _config(context_tokens),
            _artifact(subject),
            Resources(threads=usable_cpus(), memory_bytes=0),
        )
        self._folder.mkdir(parents=True, exist_ok=True)
        log_path = self._folder / "engine.log"
        log_path.unlink(missing_ok=True)
        running = await start_engine(
            self._engine,
            launch,
            name=f"validate-{os.getpid()}",
            run_dir=self._folder,
            python=self._python.path,
            artifact=subject.folder,
            log_path=log_path,
            nice=self._nice,
            lifeline=True,
        )
        session = Session(self._engine, running, self._client)
        self._now = (subject.digest, context_tokens, session)
        await until_ready(self._engine, running, self._client, self._clock)
        return session

    async def _stop(self) -> None:
        if self._now is not None:
            running = self._now[2].running
            self._now = None
            await running.child.stop(2.0)
            running.forget_key()


async def until_ready(
    engine: Engine,
    running: RunningEngine,
    client: httpx.AsyncClient,
    clock: Clock,
    *,
    look_every_s: float = _PROBE_EVERY_S,
) -> None:
    """Return when *running* has loaded its model.

    Raises:
        ProcessFailed: it ended (the code is the cause that its log tells), or stood still (code `load_stalled`).
    """
    progress = Progress(at_s=clock.now_s())
    while not await probe(running, running.readiness, client):
        code = running.child.returncode
        if code is not None:
            cause = engine.cause(running.child.tail(), code)
            raise ProcessFailed(
                f"engine {engine.name}: {cause.message}; {cause.remedy}", code=cause.code
            )
        usage = running.child.usage()
        if usage is not None:
            progress.uses(usage, now_s=clock.now_s())
        if clock.now_s() - progress.at_s > _LOAD_STALL_S:
            words = " | ".join(running.child.tail(5))
            raise ProcessFailed(
                f"engine {engine.name}: no progress for {_LOAD_STALL_S:g} s: {words}",
                code="load_stalled",
            )
        await asyncio.sleep(look_every_s)


def engine_for(format_name: str) -> Engine:
    """Return the first engine that loads *format_name*.

    Raises:
        InvalidInput: code `backend_unsupported`.
    """
    for name in ENGINES.names():
        kind = ENGINES.get(name)
        if format_name in kind.formats:
            return kind()
    raise InvalidInput(f"no engine here loads {format_name}", code="backend_unsupported")


def _config(context_tokens: int) -> dict[str, Any]:
    return {"contextTokens": context_tokens, "slots": 1}


def _artifact(subject: Subject) -> EngineArtifact:
    header = subject.header
    return EngineArtifact(
        digest=subject.digest,
        format="gguf",
        quantization=subject.quantization,
        architecture=header.architecture or "",
        files=(subject.file,),
        size_bytes=subject.size_bytes,
        context_length=header.context_length or 0,
        has_chat_template=bool(header.chat_templates),
    )


def _invalid(message: str) -> ProcessFailed:
    return ProcessFailed(message, code="engine_answer_invalid")
