"""What is stopped says one true sentence, or nothing, and leaves no warning behind."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from flexinfer.clock import SystemClock
from flexinfer.places import Home
from flexinfer.process import free_port, start
from flexinfer.settings import Settings
from flexinfer.testing.running import wait_until
from flexinfer_pipelines import prefect_server

WITHIN_S = 90.0


@pytest.fixture
def api(home: Home) -> Iterator[str]:
    loop = asyncio.new_event_loop()
    spec = prefect_server.server_spec(home, free_port(), dict(os.environ))
    child = loop.run_until_complete(start(spec))
    try:
        found = prefect_server.wait_for(home, Settings(), {}, SystemClock())
        yield loop.run_until_complete(found).url
    finally:
        loop.run_until_complete(child.stop(10.0))
        loop.close()


def is_still_there(process: subprocess.Popen[bytes]) -> bool:
    assert process.poll() is None
    return True


def deployments(api: str) -> Any:
    with httpx.Client(trust_env=False, timeout=20) as client:
        return client.post(f"{api}/deployments/filter", json={}).json()


def test_the_deployments_server_and_a_build_end_as_they_should(
    home: Home, api: str, tiny_file: Path
) -> None:
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    environ = {**kept, "FLEXINFER_HOME": str(home.root), "PREFECT_API_URL": api}
    command = [sys.executable, "-P", "-m", "flexinfer"]
    log = home.root / "out"
    with log.open("wb") as out:
        serving = subprocess.Popen([*command, "pipelines"], env=environ, stdout=out, stderr=out)
        try:
            # Polled for: from then on SIGTERM is Prefect's to handle, if we let it.
            wait_until(
                lambda: (
                    is_still_there(serving) and [d["status"] for d in deployments(api)] == ["READY"]
                ),
                "the deployment is served",
                limit_s=WITHIN_S,
            )
            serving.send_signal(signal.SIGTERM)
            assert serving.wait(60) == 0
        finally:
            serving.kill()
            serving.wait()
    said = log.read_text()
    assert "build/build" in said
    assert "never awaited" not in said
    assert "interrupted" not in said

    with log.open("wb") as out:
        build = subprocess.Popen(
            [*command, "build", str(tiny_file)], env=environ, stdout=out, stderr=out
        )
        try:
            wait_until(
                lambda: is_still_there(build) and b"resolve" in log.read_bytes(),
                "the build has begun",
                limit_s=WITHIN_S,
            )
            build.send_signal(signal.SIGINT)
            assert build.wait(60) == 130
        finally:
            build.kill()
            build.wait()
    assert log.read_text().endswith("interrupted; the same command goes on where it stood\n")
