"""Which Prefect server is ours: proven by process, port and answer. Who waits for one gets one, or is told why not."""

from __future__ import annotations

import asyncio
import http.server
import json
import os
import socket
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from structlog.testing import capture_logs

from flexinfer.clock import SystemClock
from flexinfer.errors import FlexInferError, ProcessFailed, ResourceExhausted, Unavailable
from flexinfer.places import Home
from flexinfer.process import ProcessSpec, SingleInstance
from flexinfer.settings import PrefectSection, Settings
from flexinfer_pipelines import prefect_database, prefect_server
from flexinfer_pipelines.flows.local import is_lost
from flexinfer_pipelines.prefect_server import choose_port, find, read_record, write_record


class Healthy(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("content-length", "4")
        self.end_headers()
        self.wfile.write(b"true")

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def healthy() -> Iterator[int]:
    """A server in this very process that answers every request."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Healthy)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()
    thread.join()


def test_ours_is_found_by_its_record(home: Home, healthy: int) -> None:
    write_record(home, healthy)
    found = asyncio.run(find(home, {}))
    assert found is not None
    assert found.url == f"http://127.0.0.1:{healthy}/api"
    assert not found.is_users


def test_a_stranger_at_our_port_is_not_ours(home: Home, healthy: int) -> None:
    write_record(home, healthy)
    path = home.prefect_record
    tree = json.loads(path.read_text())
    for change in ({"start_ticks": 1}, {"boot_id": "another"}, {"pid": 1}):
        path.write_text(json.dumps({**tree, **change}))
        assert asyncio.run(find(home, {})) is None


def test_our_process_at_another_port_is_not_ours(home: Home, healthy: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        free = other.getsockname()[1]
    write_record(home, free)
    assert asyncio.run(find(home, {})) is None


@pytest.mark.parametrize("text", ["", "[]", "{", '{"url": 1}'])
def test_a_record_without_sense_is_none(home: Home, text: str) -> None:
    (home.prefect_record).write_text(text)
    assert read_record(home) is None


def test_the_users_own_server_is_used(home: Home, healthy: int) -> None:
    url = f"http://127.0.0.1:{healthy}/api"
    found = asyncio.run(find(home, {"PREFECT_API_URL": url}))
    assert found == prefect_server.Found(url=url, is_users=True)


def test_the_users_own_server_that_is_down_is_said_to_be(home: Home) -> None:
    with pytest.raises(Unavailable, match="PREFECT_API_URL") as caught:
        asyncio.run(find(home, {"PREFECT_API_URL": "http://127.0.0.1:9/api"}))
    assert caught.value.code == "prefect_unreachable"


def test_a_stranger_on_the_port_moves_us_to_the_next(healthy: int) -> None:
    with capture_logs() as logs:
        port = choose_port(healthy)
    assert healthy < port < healthy + 20
    socket.create_server(("127.0.0.1", port)).close()  # nobody holds it
    (said,) = logs
    assert f"port {healthy} is taken by" in said["human"]
    assert f"(pid {os.getpid()})" in said["human"]


def test_no_free_port_names_the_setting(healthy: int) -> None:
    with pytest.raises(ResourceExhausted, match="FLEXINFER_PREFECT__PORT"):
        choose_port(healthy, tried=1)


def test_state_lies_below_the_home_and_nothing_is_told_to_others(home: Home) -> None:
    found = prefect_server.environment(home, {})
    assert str(home.prefect) in found["PREFECT_API_DATABASE_CONNECTION_URL"]
    assert found["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"
    assert prefect_server.environment(home, {"PREFECT_HOME": "/mine"})["PREFECT_HOME"] == "/mine"


def test_the_spec_runs_us_with_the_home_it_is_for(home: Home) -> None:
    environ = {**os.environ, "FLEXINFER_SERVE__API_KEYS": "fxi_secret"}
    spec = prefect_server.server_spec(home, 4300, environ)
    assert "FLEXINFER_SERVE__API_KEYS" not in spec.environment
    assert spec.argv[0] == sys.executable
    assert spec.environment["FLEXINFER_HOME"] == str(home.root)
    assert spec.environment["FLEXINFER_PREFECT__PORT"] == "4300"
    assert spec.lifeline
    assert Path(spec.cwd) == home.root


ANY_PORT = Settings(prefect=PrefectSection(port=0))


@dataclass(frozen=True, slots=True)
class Waited:
    """What two saw that asked for an API at once, while another held the lock of a server that never answers."""

    said: tuple[list[str], list[str]]
    urls: tuple[str, str]
    names: set[str]
    """Of the files in Prefect's folder, which held a database that is none."""


@pytest.fixture(scope="module")
def waited(tmp_path_factory: pytest.TempPathFactory) -> Waited:
    """One start of a real server, for several tests."""
    home = Home(tmp_path_factory.mktemp("waited")).prepare()
    prefect_database.file(home).write_bytes(b"no database" * 300)
    lock = SingleInstance.acquire(home.prefect_lock, {"what": "another"})
    said: tuple[list[str], list[str]] = ([], [])
    both_have = asyncio.Barrier(2)

    async def one(words: list[str]) -> str:
        def say(text: str) -> None:
            words.append(text)
            if all(said):
                lock.release()

        async with prefect_server.available(
            home, ANY_PORT, dict(os.environ), SystemClock(), say
        ) as found:
            await both_have.wait()  # the server of one ends with it
            async with httpx.AsyncClient(trust_env=False, timeout=30) as client:
                assert (await client.get(f"{found.url}/health")).status_code == 200
            await both_have.wait()
            return found.url

    async def both() -> tuple[str, str]:
        async with asyncio.timeout(150):
            return await asyncio.gather(one(said[0]), one(said[1]))

    try:
        urls = asyncio.run(both())
    finally:
        lock.release()
    return Waited(said, urls, {path.name for path in home.prefect.iterdir()})


def test_who_waits_says_for_whom_and_starts_a_server_once_nobody_has_the_lock(
    waited: Waited,
) -> None:
    for said in waited.said:
        assert said[0] == f"waiting for Prefect (process {os.getpid()})"
        assert len(said[0]) <= 40  # what the bars show
    assert ["starting Prefect"] in [said[1:] for said in waited.said]


def test_two_that_wait_come_to_use_one_server(waited: Waited) -> None:
    first, second = waited.urls
    assert first == second


def test_a_database_that_is_none_is_put_aside_before_the_server_starts(waited: Waited) -> None:
    assert {"prefect.db", "prefect.db.broken"} <= waited.names


def fail(home: Home) -> FlexInferError:
    """Return why a server cannot be had."""

    async def wait() -> None:
        server = prefect_server.available(home, ANY_PORT, dict(os.environ), SystemClock())
        async with asyncio.timeout(150), server:
            pass

    with pytest.raises(FlexInferError) as caught:
        asyncio.run(wait())
    return caught.value


def test_a_server_that_cannot_start_says_why_where_and_what_to_do(home: Home) -> None:
    prefect_database.file(home).mkdir()
    why = fail(home)
    assert why.code == "prefect_failed"
    assert "unable to open database file; its database is " in why.message
    assert str(prefect_database.file(home)) in why.message
    assert f"delete the folder {home.prefect}; only the history of runs is lost" in why.message
    assert "\n" not in why.message and "^" not in why.message


def instead(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    def spec(home: Home, *_: object) -> ProcessSpec:
        argv = (sys.executable, "-c", program)
        return ProcessSpec(
            name="prefect", argv=argv, environment={}, cwd=home.root, log_path=home.log("prefect")
        )

    monkeypatch.setattr(prefect_server, "server_spec", spec)


def test_what_our_server_refuses_keeps_its_code(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusal = "error[no_free_port]: ports 1 to 20 are taken"
    instead(monkeypatch, f"import sys; print('a log line'); print({refusal!r}); sys.exit(1)")
    why = fail(home)
    assert (why.code, why.message) == (
        "no_free_port",
        "Prefect's server ended: ports 1 to 20 are taken",
    )


def test_of_any_other_end_the_last_line_is_told(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = (
        "import sys; print('File x\\n   ^^^', file=sys.stderr); raise SystemExit('ImportError: y')"
    )
    instead(monkeypatch, code)
    why = fail(home)
    assert isinstance(why, ProcessFailed)
    assert why.message.startswith(
        f"Prefect's server ended with 1: ImportError: y; see {home.log('prefect')}; its database is "
    )


def test_a_server_that_goes_away_in_a_build_is_known_by_what_its_client_raises() -> None:
    """Both were seen when the server of a running build was killed, with Prefect 3.8.8."""
    assert is_lost(httpx.ConnectError("All connection attempts failed"))
    assert is_lost(RuntimeError("Failed to reach API at http://127.0.0.1:4200/api/"))
    assert not is_lost(RuntimeError("something of our own"))
    assert not is_lost(Unavailable("a step's", code="fetch_failed"))
