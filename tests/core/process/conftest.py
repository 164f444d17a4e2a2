"""Real children for the tests of supervision: small Python programs, and ways to wait for facts."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from flexinfer.process import ProcessSpec, inherited_environment

LIMIT_S = 20.0


@pytest.fixture
def make_spec(tmp_path: Path) -> Callable[..., ProcessSpec]:
    """Make a spec that runs a piece of Python in `tmp_path`."""

    def make(code: str, **fields: Any) -> ProcessSpec:
        given: dict[str, Any] = {
            "name": "sample", "argv": (sys.executable, "-I", "-S", "-u", "-c", code),
            "environment": inherited_environment(), "cwd": tmp_path, **fields,
        }  # fmt: skip
        return ProcessSpec(**given)

    return make


@pytest.fixture
def wait_until() -> Callable[[Callable[[], object], str], None]:
    """Return when a condition holds; fail after 20 s."""

    def wait(condition: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + LIMIT_S
        while not condition():
            assert time.monotonic() < deadline, f"never: {what}"
            time.sleep(0.01)

    return wait


@pytest.fixture
def until() -> Callable[[Callable[[], object], str], Awaitable[None]]:
    """Return when a condition holds, the event loop running meanwhile; fail after 20 s."""

    async def wait(condition: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + LIMIT_S
        while not condition():
            assert time.monotonic() < deadline, f"never: {what}"
            await asyncio.sleep(0.01)

    return wait
