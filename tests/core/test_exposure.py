"""Who would be let in, and who finds out before anything starts."""

from __future__ import annotations

import socket

import pytest
from typer.testing import CliRunner, Result

from flexinfer.cli import app
from flexinfer.errors import InvalidInput
from flexinfer.exposure import check, is_loopback
from flexinfer.places import Home
from flexinfer.process import free_port
from flexinfer.settings import ServeSection


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.9.9.9", "::1", "[::1]", "localhost.", "a.localhost"]
)
def test_loopback_is_this_machine_only(host: str) -> None:
    assert is_loopback(host)
    check(ServeSection(host=host))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "localhost.example", ""])
def test_anything_else_needs_keys(host: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        check(ServeSection(host=host))
    assert caught.value.code == "bind_without_keys"
    check(ServeSection.model_validate({"host": host, "api_keys": ["k"]}))


def doctor(home: Home, monkeypatch: pytest.MonkeyPatch, **more: str) -> Result:
    ports = {f"FLEXINFER_{name}": str(free_port()) for name in ("SERVE__PORT", "SERVE__ADMIN_PORT")}
    ports["FLEXINFER_PREFECT__PORT"] = str(free_port())
    for name, value in {"FLEXINFER_HOME": str(home.root), **ports, **more}.items():
        monkeypatch.setenv(name, value)
    return CliRunner().invoke(app, ["doctor"])


def test_doctor_refuses_what_up_would_refuse(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    found = doctor(home, monkeypatch, FLEXINFER_SERVE__HOST="0.0.0.0")
    assert found.exit_code == 2
    assert "problem  settings: FLEXINFER_SERVE__HOST=0.0.0.0" in found.stdout
    assert "bind_without_keys" in found.stdout


@pytest.mark.parametrize(("setting", "word"), [("PREFECT", "warning"), ("SERVE", "problem")])
def test_a_taken_port_of_prefects_is_a_warning(
    setting: str, word: str, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        found = doctor(home, monkeypatch, **{f"FLEXINFER_{setting}__PORT": port})
    assert f"{word:<8} ports: taken: {port} by " in found.stdout
