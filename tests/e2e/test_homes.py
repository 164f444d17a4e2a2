"""A home may lie anywhere: deep, behind a link, with blanks and letters of any script in its name."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from flexinfer.testing.running import RunningUp


@pytest.fixture(params=["deep, with ümläuts and 模型", "relative and a link"])
def up(request: pytest.FixtureRequest, tmp_path: Path, tools: Path) -> Iterator[RunningUp]:
    """An `up` without Prefect and with no first build, in a home of that kind."""
    home = tmp_path / request.param
    if request.param.startswith("deep"):  # beyond what a unix socket's address holds
        home = home / ("d" * 120) / ("e" * 120)
    else:
        (tmp_path / "target").mkdir()
        home.symlink_to(tmp_path / "target")
    (home / "models").mkdir(parents=True)
    (home / "models" / ".starter-written").touch()
    (home / "tools").symlink_to(tools)
    one = RunningUp.at(home, prefect=False)
    if home.is_symlink():
        one.environ["FLEXINFER_HOME"] = os.path.relpath(home, home.parent)
    one.start()
    yield one
    if one.process is not None and one.process.poll() is None:
        one.stop(signal.SIGKILL)


def test_it_starts_is_seen_and_ends_there(up: RunningUp) -> None:
    up.wait_ready(60)
    found = json.loads(up.command("status", "--json").stdout)
    assert found["answers"]
    assert Path(found["home"]) == up.home
    (up.home / "models" / "bad.yaml").write_text("kind: Nonsense\n")
    assert "bad.yaml" in up.command("model", "ls").stderr
    assert up.command("logs", "operator").returncode == 0
    assert up.command("down").returncode == 0
    assert up.process is not None
    assert up.process.wait(30) == 0
    assert up.everything() == []
