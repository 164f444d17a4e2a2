"""What every test may use: the starter model as the package index ships it, a home of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from flexinfer.places import Home
from flexinfer.testing import starter
from flexinfer.toolenv import ToolEnvironment

ROOT = Path(__file__).resolve().parent.parent

# A loaded machine is no defect: no example is judged by the clock.
settings.register_profile("no-clock", deadline=None, suppress_health_check=[HealthCheck.too_slow])
# What `make test` uses: the same examples each time, so that it judges the change and not its luck. New examples are
# looked for by `make test-all`.
settings.register_profile(
    "steady", settings.get_profile("no-clock"), derandomize=True, database=None
)
settings.load_profile("no-clock")


def pytest_configure(config: pytest.Config) -> None:
    """Refuse an `__init__.py` that would shadow a standard-library module before tests are found."""
    for folder in ("core", "pipelines", "serving", "operator", "catalogs", "deploy", "tests"):
        for stray in [ROOT / folder / "__init__.py", *(ROOT / "tests").rglob("__init__.py")]:
            if stray.exists():
                raise pytest.UsageError(f"delete {stray}: it shadows a standard-library module")


@pytest.fixture(scope="session")
def downloads() -> Path:
    """A folder that outlives the test run, for what the package index gave once."""
    folder = starter.kept()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def starter_gguf() -> Path:
    """SmolLM2-135M-Instruct, Q4_1, 98 MB: the real small model of the tests. Read only."""
    return starter.gguf()


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    """An empty, prepared state folder."""
    yield Home(tmp_path / "home").prepare()


@pytest.fixture(scope="session")
def engine_python(downloads: Path) -> Path:
    """The interpreter of the tool environment `llamacpp`, installed once per machine."""
    shared = Home(downloads / "home").prepare()
    return ToolEnvironment.named("llamacpp").ensure(shared, on_line=print).path
