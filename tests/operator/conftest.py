"""A cluster in memory that a test drives turn by turn, and one of real processes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from flexinfer.places import Home
from flexinfer_operator.plan.view import Policy
from flexinfer_operator.testing.drive import Drive
from flexinfer_operator.testing.world import LocalWorld


@pytest.fixture
def drive() -> Drive:
    return Drive()


@pytest.fixture
def make_drive() -> Callable[[Policy], Drive]:
    return Drive


@pytest.fixture
def play(home: Home) -> Callable[..., None]:
    """Run a scene with the loop on this machine."""

    def run(scene: Callable[[LocalWorld], Awaitable[None]], **options: Any) -> None:
        async def whole() -> None:
            async with LocalWorld(home, loop=True, **options) as world:
                await scene(world)

        asyncio.run(whole())

    return run
