"""A cluster in memory that a test drives turn by turn."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from flexinfer_operator.plan.view import Policy
from flexinfer_operator.testing.drive import Drive


@pytest.fixture
def drive() -> Drive:
    return Drive()


@pytest.fixture
def make_drive() -> Callable[[Policy], Drive]:
    return Drive
