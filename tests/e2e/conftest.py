"""A real `flexinfer up`: Prefect's server, a real build, a real engine; started once for this folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from flexinfer.places import Home
from flexinfer.testing.running import RunningUp
from flexinfer.toolenv import ToolEnvironment


@pytest.fixture(scope="session")
def tools(downloads: Path) -> Path:
    """Tool environments, installed once per machine and shared by the homes of these tests."""
    shared = Home(downloads / "home").prepare()
    for name in ("llamacpp", "gguf"):
        ToolEnvironment.named(name).ensure(shared, on_line=print)
    return shared.tools


@pytest.fixture(scope="session")
def up(tmp_path_factory: pytest.TempPathFactory, tools: Path) -> Iterator[RunningUp]:
    """A running one, with Prefect, after its first build."""
    home = tmp_path_factory.mktemp("up") / "home"
    home.mkdir()
    (home / "tools").symlink_to(tools)
    one = RunningUp.at(home, prefect=True)
    one.start()
    try:
        one.wait_ready()
        yield one
    finally:
        if one.process is not None and one.process.poll() is None:
            one.stop()
