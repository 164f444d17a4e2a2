"""The interpreter that an engine runs with: its tool environment, made when it is not there yet."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Protocol

from flexinfer.log import get_logger
from flexinfer.places import Home
from flexinfer.toolenv import ToolEnvironment

log = get_logger(__name__)


class Tools(Protocol):
    def ready(self, tool: str) -> Path | None:
        """Return the interpreter of *tool* if it is there; None if `ensure` has work to do. Cheap."""
        ...

    async def ensure(self, tool: str) -> Path:
        """Return the interpreter, made first where needed. Raises as `ToolEnvironment.ensure`."""
        ...


class HomeTools:
    """The tool environments under one home."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._known: dict[str, ToolEnvironment] = {}

    def ready(self, tool: str) -> Path | None:
        found = self._environment(tool).ready(self._home)
        return None if found is None else found.path

    async def ensure(self, tool: str) -> Path:
        environment = await asyncio.to_thread(self._environment, tool)
        log.info("tool_environment_making", tool=tool, human=f"installing the engine {tool}")
        found = await environment.ensure_async(
            self._home, on_line=lambda line: log.debug("tool_environment_output", line=line)
        )
        return found.path

    def _environment(self, tool: str) -> ToolEnvironment:
        if tool not in self._known:
            self._known[tool] = ToolEnvironment.named(tool)
        return self._known[tool]
