"""A child with a lifeline ends when its parent does, however that went."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from flexinfer.process import procfs, watch_lifeline, watch_lifeline_in_thread
from flexinfer.process.lifeline import GUARD

Wait = Callable[[Callable[[], object], str], None]

PARENT = """
import asyncio, sys
from pathlib import Path
from flexinfer.process import ProcessSpec, inherited_environment, start

async def main():
    folder = Path(sys.argv[1])
    child = await start(ProcessSpec(
        name="child", argv=(sys.executable, "-c", sys.argv[2]),
        environment=inherited_environment(), cwd=folder, log_path=folder / "child.log",
    ))
    await child.wait()

asyncio.run(main())
"""
IN_LOOP = """
import asyncio, os
from flexinfer.process import watch_lifeline
async def main():
    ended = asyncio.Event()
    assert watch_lifeline(asyncio.get_running_loop(), ended.set)
    assert "FLEXINFER_LIFELINE" not in os.environ
    print("up", os.getpid(), flush=True)
    await ended.wait()
    print("parent is gone", flush=True)
asyncio.run(main())
"""
IN_THREAD = """
import os, threading
from flexinfer.process import watch_lifeline_in_thread
ended = threading.Event()
assert watch_lifeline_in_thread(ended.set)
print("up", os.getpid(), flush=True)
ended.wait()
print("parent is gone", flush=True)
"""
# A script of a tool environment, with a child of its own.
BY_ITSELF = (
    GUARD
    + """
import subprocess, sys, time
subprocess.Popen([sys.executable, "-I", "-S", "-c", "import time; time.sleep(1000)"])
print("up", os.getpid(), flush=True)
time.sleep(1000)
"""
)


@pytest.mark.parametrize("child", [IN_LOOP, IN_THREAD, BY_ITSELF], ids=["loop", "thread", "script"])
def test_a_child_ends_when_its_parent_was_killed(
    child: str, tmp_path: Path, wait_until: Wait
) -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path), child])
    log = tmp_path / "child.log"
    try:
        wait_until(lambda: log.exists() and "up " in log.read_text(), "the child is up")
    finally:
        parent.kill()
        parent.wait()
    pid = int(log.read_text().split()[1])

    def is_gone() -> bool:
        return not any(one.group == pid for one in procfs.members(pid, mark="", since=0))

    wait_until(is_gone, "the child and its children are gone")
    assert child is BY_ITSELF or log.read_text().endswith("parent is gone\n")


def test_a_process_that_is_no_child_watches_nothing() -> None:
    async def scenario() -> bool:
        return watch_lifeline(asyncio.get_running_loop(), pytest.fail, environ={})

    assert not asyncio.run(scenario())
    assert not watch_lifeline_in_thread(pytest.fail, environ={})


@pytest.mark.parametrize("value", ["", "no number", "-1", "987654", "9" * 40])
def test_a_variable_that_means_no_pipe_is_taken_for_none(value: str) -> None:
    environ = {"FLEXINFER_LIFELINE": value}
    assert not watch_lifeline_in_thread(pytest.fail, environ=environ)
    assert environ == {}


def test_a_file_that_has_the_number_by_now_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "file").open("w") as file:
        environ = {"FLEXINFER_LIFELINE": str(file.fileno())}
        assert not watch_lifeline_in_thread(pytest.fail, environ=environ)


def test_the_callback_comes_once_when_the_pipe_ends() -> None:
    reading, writing = os.pipe()
    calls: list[int] = []

    async def scenario() -> None:
        ended = asyncio.Event()

        def callback() -> None:
            calls.append(1)
            ended.set()

        environ = {"FLEXINFER_LIFELINE": str(reading)}
        assert watch_lifeline(asyncio.get_running_loop(), callback, environ=environ)
        await asyncio.sleep(0)
        assert calls == []
        os.close(writing)
        async with asyncio.timeout(20):
            await ended.wait()

    asyncio.run(scenario())
    assert calls == [1]
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL  # nothing of the process was changed
