"""`flexinfer status` while the first build runs: nobody looks at an empty list and wonders."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from typer.testing import CliRunner, Result

from flexinfer.cli import app
from flexinfer.errors import Unavailable
from flexinfer.places import Home
from flexinfer.process import Record, SingleInstance, free_port, own_record

runner = CliRunner()


def status(home: Home, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Result:
    monkeypatch.setenv("FLEXINFER_HOME", str(home.root))
    return runner.invoke(app, ["status", *arguments])


def holding(home: Home, doing: str) -> SingleInstance:
    admin = f"http://127.0.0.1:{free_port()}"
    about = {"address": "http://127.0.0.1:1/v1", "admin": admin, "folder": "/", "doing": doing}
    return SingleInstance.acquire(home.up_lock, about)


def build(home: Home, **extra: str) -> Record:
    home.build_records.mkdir()
    record = own_record("build", extra={"target": "smol/q8-0"} | extra)
    record.write(home.build_records / "1.json")
    return record


def test_a_running_build_is_shown_with_its_stage_and_share(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(home, stage="fetch", share="0.4")
    with holding(home, "building smol/q8-0"):
        said = status(home, monkeypatch).stdout
        found = json.loads(status(home, monkeypatch, "--json").stdout)
    assert "(building smol/q8-0)" in said
    assert "building smol/q8-0: fetch 40%" in said
    assert found["doing"] == "building smol/q8-0"
    (one,) = found["builds"]
    assert (one["target"], one["stage"], one["share"]) == ("smol/q8-0", "fetch", 0.4)


def test_a_build_that_was_killed_is_not_believed(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = build(home, stage="fetch")
    dead = Record(
        name=record.name, pid=record.pid, start_ticks=record.start_ticks + 1,
        boot_id=record.boot_id, extra=record.extra,
    )  # fmt: skip
    dead.write(home.build_records / "1.json")
    with holding(home, ""):
        assert json.loads(status(home, monkeypatch, "--json").stdout)["builds"] == []


def test_a_stage_that_has_not_begun_is_starting(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(home, stage="")
    with holding(home, ""):
        assert "building smol/q8-0: starting\n" in status(home, monkeypatch).stdout


def test_a_share_that_is_no_number_ends_nothing(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(home, stage="fetch", share="half")
    with holding(home, ""):
        assert "building smol/q8-0: fetch\n" in status(home, monkeypatch).stdout
        (one,) = json.loads(status(home, monkeypatch, "--json").stdout)["builds"]
    assert one["share"] is None


def test_a_holder_that_has_not_said_who_it_is_is_shown_and_not_stopped(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    with holding(home, ""):
        home.up_lock.write_bytes(b"")
        assert json.loads(status(home, monkeypatch, "--json").stdout)["pid"] is None
        assert "has not said yet who it is" in status(home, monkeypatch).stdout
        stopped = runner.invoke(app, ["down"])
        assert isinstance(stopped.exception, Unavailable)
        assert stopped.exception.code == "holder_unknown"


@contextmanager
def listing(home: Home, code: int, models: object) -> Iterator[None]:
    """A router is ready and answers *models* to who asks for them; `up` has said where it is."""

    class Router(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/readyz" else code)
            self.end_headers()
            self.wfile.write(json.dumps(models).encode())

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Router)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        with SingleInstance.acquire(home.up_lock, {"address": f"{url}/v1", "admin": url}):
            yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_models_that_only_a_key_shows_are_not_called_none(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    with listing(home, 401, {}):
        shown = status(home, monkeypatch)
    assert shown.exit_code == 0
    assert "models: the router wants a key: FLEXINFER_SERVE__API_KEYS" in shown.stdout


def test_each_model_is_shown_with_its_phase(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    data = [{"id": "smol", "phase": "Ready"}, {"id": "hub", "phase": "Failed"}]
    with listing(home, 200, {"data": data}):
        shown = status(home, monkeypatch).stdout
        found = json.loads(status(home, monkeypatch, "--json").stdout)
    assert "models: smol (Ready), hub (Failed) (more:" in shown
    assert (found["models"], found["phases"]["hub"]) == (["smol", "hub"], "Failed")
