"""Asking the engine that measures: when its load stands still, and answers that are not what they must be."""

from __future__ import annotations

import asyncio
import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import httpx
import pytest

from flexinfer.engine import Endpoint, Probe
from flexinfer.errors import ProcessFailed
from flexinfer.launching import RunningEngine
from flexinfer.process import Child, Usage, free_port
from flexinfer.testing.clock import FakeClock
from flexinfer.testing.local_engine import LocalEngine
from flexinfer_pipelines.validators.bench import Session, until_ready

MIB = 1024 * 1024


@dataclass
class Hung:
    """An engine's process that waits for something that never comes, and whose timers go on."""

    used: Usage
    beat_s: float
    returncode: int | None = None

    def usage(self) -> Usage:
        self.used = replace(self.used, cpu_s=self.used.cpu_s + self.beat_s)
        return self.used

    def tail(self, lines: int = 50) -> tuple[str, ...]:
        return ("loading",)


class Passing(FakeClock):
    """A second passes between two looks at it."""

    def now_s(self) -> float:
        self.advance(1.0)
        return super().now_s()


def running(child: object = None, *, port: int) -> RunningEngine:
    return RunningEngine(
        child=cast(Child, child),
        name="engine",
        url=f"http://127.0.0.1:{port}",
        key="key",
        key_path=Path("/nowhere"),
        ports={"http": port},
        readiness=Probe(path="/health"),
        log_path=None,
    )


def test_a_load_that_hangs_is_ended_although_its_heart_beats() -> None:
    used = Usage(
        cpu_s=1, rss_bytes=MIB, peak_rss_bytes=MIB, read_bytes=0, read_call_bytes=0, processes=1
    )
    clock = Passing()

    async def load() -> None:
        engine = running(Hung(used, beat_s=0.01), port=free_port("127.0.0.1"))
        async with httpx.AsyncClient(trust_env=False) as client, asyncio.timeout(20):
            await until_ready(LocalEngine(), engine, client, clock, look_every_s=0)

    with pytest.raises(ProcessFailed, match="no progress for 60 s: loading") as caught:
        asyncio.run(load())
    assert caught.value.code == "load_stalled"


class Body:
    """An answer of which it is counted how much was taken."""

    def __init__(self, status: int, pieces: list[bytes]) -> None:
        self.status = status
        self.pieces = pieces
        self.given = 0


@contextmanager
def engine_that_says(body: Body) -> Iterator[int]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(body.status)
            self.end_headers()
            try:
                for piece in body.pieces:
                    self.wfile.write(piece)
                    body.given += len(piece)
            except OSError:
                return

        def log_message(self, *_: object) -> None:
            return

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = False  # closing it waits for them
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def ask(body: Body, *, max_answer_bytes: int = MIB) -> dict[str, Any]:
    async def asked(port: int) -> dict[str, Any]:
        async with httpx.AsyncClient(trust_env=False, timeout=20.0) as client:
            session = Session(
                LocalEngine(), running(port=port), client, max_answer_bytes=max_answer_bytes
            )
            return await session.ask(Endpoint.CHAT, {"messages": []})

    with engine_that_says(body) as port:
        return asyncio.run(asked(port))


def test_an_answer_within_the_bound_is_read() -> None:
    assert ask(Body(200, [b'{"a": ', b"1}"])) == {"a": 1}


def test_an_answer_above_the_bound_is_not_taken_to_its_end_and_is_called_too_large() -> None:
    body = Body(200, [b" " * MIB] * 64)
    with pytest.raises(ProcessFailed, match="HTTP 200 with more than 1048576 bytes") as caught:
        ask(body)
    assert caught.value.code == "engine_answer_invalid"
    # What else was given lies in the buffers of the connection.
    assert body.given < 32 * MIB


@pytest.mark.parametrize("said", [b"", b"[1]", b"no", b"[" * 100_000])
def test_an_answer_that_is_no_object_is_said_to_be(said: bytes) -> None:
    with pytest.raises(ProcessFailed, match="scripted: chat") as caught:
        ask(Body(200, [said]))
    assert caught.value.code == "engine_answer_invalid"


def test_a_refusal_keeps_its_status() -> None:
    with pytest.raises(ProcessFailed, match="HTTP 400") as caught:
        ask(Body(400, [b'{"error": {"message": "too long"}}']))
    assert caught.value.code == "engine_refused"
