"""What `flexinfer up` refuses before anything is started or written."""

from __future__ import annotations

import socket
from pathlib import Path

from flexinfer.testing.running import RunningUp


def test_a_home_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")  # root writes through modes, but not through a file
    one = RunningUp.at(tmp_path / "file" / "home", prefect=False)
    one.home = tmp_path / "x"
    refused = one.command("up")
    assert refused.returncode == 2
    assert "error[home_not_writable]" in refused.stderr
    assert str(tmp_path / "file" / "home") in refused.stderr


def test_a_taken_port_names_who_has_it_and_keys_that_others_can_read_are_told(
    tmp_path: Path,
) -> None:
    one = RunningUp.at(tmp_path / "home", prefect=False)
    keys = tmp_path / "flexinfer.toml"
    keys.write_text("[serve]\napi_keys = ['fxi_secret']\n")
    keys.chmod(0o644)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", one.port))
        taken.listen()
        refused = one.command("up")
    assert refused.returncode == 2
    assert "error[port_taken]" in refused.stderr
    assert str(one.port) in refused.stderr
    assert "FLEXINFER_SERVE__PORT" in refused.stderr
    assert f"chmod 600 {keys}" in refused.stdout
    assert "fxi_secret" not in refused.stdout + refused.stderr


def test_bad_settings_are_all_named_at_once(tmp_path: Path) -> None:
    one = RunningUp.at(tmp_path / "home", prefect=False)
    one.environ |= {"FLEXINFER_LOG__LEVL": "x", "FLEXINFER_SERVE__MAX_BODY_BYTES": "-1"}
    refused = one.command("up")
    assert refused.returncode == 2
    assert "FLEXINFER_LOG__LEVL" in refused.stderr
    assert "FLEXINFER_SERVE__MAX_BODY_BYTES" in refused.stderr
    assert not (tmp_path / "home").exists()


def test_status_and_down_say_that_nothing_runs(tmp_path: Path) -> None:
    one = RunningUp.at(tmp_path / "home", prefect=False)
    assert one.command("status").returncode == 6
    down = one.command("down")
    assert down.returncode == 4
    assert "error[not_running]" in down.stderr


def test_listening_to_the_world_without_keys_is_refused_in_one_line(tmp_path: Path) -> None:
    one = RunningUp.at(tmp_path / "home", prefect=False)
    one.environ["FLEXINFER_SERVE__HOST"] = "0.0.0.0"
    refused = one.command("up")
    assert refused.returncode == 2
    assert refused.stderr.startswith("error[bind_without_keys]: ")
    assert "FLEXINFER_SERVE__API_KEYS" in refused.stderr
    assert (refused.stdout, refused.stderr.count("\n")) == ("", 1)
    assert not (tmp_path / "home").exists()
