"""A build whose parent was killed ends, and with it all that it started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from flexinfer.oci.durable import lock
from flexinfer.places import Home
from flexinfer.process import SingleInstance
from flexinfer.testing.running import wait_until
from flexinfer_pipelines import prefect_server

PARENT = """
import asyncio, os, sys
from pathlib import Path
from flexinfer.process import ProcessSpec, inherited_environment, start

async def main():
    home, target = Path(sys.argv[1]), sys.argv[2]
    environment = {**inherited_environment(), "FLEXINFER_HOME": str(home), "FLEXINFER_PREFECT__PORT": "0"}
    child = await start(ProcessSpec(
        name="build", argv=(sys.executable, "-P", "-m", "flexinfer", "build", target),
        environment=environment, cwd=home, log_path=home / "build.out",
    ))
    print(child.pid, flush=True)
    await child.wait()

asyncio.run(main())
"""
LIMIT_S = 30.0


def test_a_build_that_waits_ends_when_its_parent_is_killed(home: Home, tiny_file: Path) -> None:
    private = home.store / ".flexinfer"
    private.mkdir(parents=True)
    with lock(private / "index.lock"):  # it waits for this in its only thread, for a minute
        parent, build = started(home, tiny_file)
        try:
            wait_until(
                lambda: has_open(build, private / "index.lock"), "the build waits", limit_s=LIMIT_S
            )
            parent.kill()
            wait_until(lambda: not of_home(home), "all have ended", limit_s=LIMIT_S)
        finally:
            end(parent, home)


def test_a_build_says_that_it_waits_for_anothers_prefect(home: Home, tiny_file: Path) -> None:
    with SingleInstance.acquire(home.prefect_lock, {"what": "another"}):
        parent, _ = started(home, tiny_file)
        try:
            wait_until(
                lambda: (
                    f"waiting for Prefect (process {os.getpid()})"
                    in (home.root / "build.out").read_text()
                ),
                "the build says so",
                limit_s=LIMIT_S,
            )
        finally:
            end(parent, home)


def test_what_a_build_started_ends_too(tooled_home: Home, tiny_file: Path) -> None:
    parent, _ = started(tooled_home, tiny_file)
    try:
        wait_until(
            lambda: prefect_server.read_record(tooled_home) is not None,
            "the server has its record",
            limit_s=LIMIT_S,
        )
        wait_until(lambda: len(of_home(tooled_home)) >= 2, "both run", limit_s=LIMIT_S)
        parent.kill()
        wait_until(lambda: not of_home(tooled_home), "all have ended", limit_s=LIMIT_S)
    finally:
        end(parent, tooled_home)


def started(home: Home, model: Path) -> tuple[subprocess.Popen[str], int]:
    argv = [sys.executable, "-c", PARENT, str(home.root), str(model)]
    parent = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    return parent, int(parent.stdout.readline())


def end(parent: subprocess.Popen[str], home: Home) -> None:
    parent.kill()
    parent.wait()
    assert parent.stdout is not None
    parent.stdout.close()
    for pid in of_home(home):
        os.kill(pid, signal.SIGKILL)


def of_home(home: Home) -> list[int]:
    """Return the processes that live in *home*, by their environment."""
    wanted = f"FLEXINFER_HOME={home.root}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdecimal() and wanted in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def has_open(pid: int, path: Path) -> bool:
    try:
        return any(os.readlink(one) == str(path) for one in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return False
