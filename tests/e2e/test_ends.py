"""However `flexinfer up` ends or is stopped: nothing that it started stays, and nothing ends that should not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flexinfer.process import Record
from flexinfer.testing.running import RunningUp, processes, wait_until

Make = Callable[..., RunningUp]


@pytest.fixture
def make(tmp_path: Path, tools: Path) -> Iterator[Make]:
    """Return what makes an `up` without Prefect and with no first build; end what the test leaves."""
    made: list[RunningUp] = []

    def one() -> RunningUp:
        home = tmp_path / "home"
        (home / "models").mkdir(parents=True)
        (home / "models" / ".starter-written").touch()
        (home / "tools").symlink_to(tools)
        made.append(RunningUp.at(home, prefect=False))
        return made[-1]

    yield one
    for up in made:
        if up.process is not None and up.process.poll() is None:
            up.stop(signal.SIGKILL)


def holders(up: RunningUp, secret: str) -> list[str]:
    """Return the names of `up`'s processes that have *secret* in their environment, and the commands of others."""
    names = {pid: name for name, pid in children(up).items()}
    assert up.process is not None
    names[up.process.pid] = "up"
    found = []
    for pid, line in processes():
        try:
            if secret.encode() in Path(f"/proc/{pid}/environ").read_bytes():
                found.append(names.get(pid, line))
        except OSError:
            continue
    return sorted(found)


def children(up: RunningUp) -> dict[str, int]:
    found = (Record.read(file) for file in (up.home / "run" / "up").glob("*.json"))
    return {record.name: record.pid for record in found if record is not None}


def test_a_terminal_that_closes_ends_everything(make: Make) -> None:
    up = make()
    up.start()
    up.wait_ready(60)
    assert up.stop(signal.SIGHUP) == 0
    assert up.everything() == []


def test_a_reader_that_leaves_ends_everything(make: Make) -> None:
    """`make up | head` must neither hang nor leave anything behind."""
    up = make()
    up.process = subprocess.Popen(
        [sys.executable, "-m", "flexinfer", "up"],
        env=up.environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=up.home.parent,
    )
    assert up.process.stdout is not None
    with up.process.stdout as reader:
        assert any(line.startswith(b"ready") for line in reader)
    up.process.wait(30)
    assert up.everything() == []


def test_one_that_was_stopped_goes_on_with_the_same_children(make: Make) -> None:
    """Ctrl-Z and `fg`; by SIGSTOP, for the kernel drops SIGTSTP where no shell of the session could continue it."""
    up = make()
    up.start()
    up.wait_ready(60)
    before = children(up)
    assert up.process is not None
    for number, state in ((signal.SIGSTOP, "T"), (signal.SIGCONT, "S")):
        up.process.send_signal(number)
        status = Path(f"/proc/{up.process.pid}/stat")
        wait_until(
            lambda status=status, state=state: status.read_text().rpartition(")")[2].split()[0] == state,  # type: ignore[misc]
            f"state {state}",
        )  # fmt: skip
    assert up.command("status").returncode == 0
    assert children(up) == before
    assert "ended with" not in up.said()
    assert up.stop() == 0
    assert up.everything() == []


def test_a_kill_in_the_middle_of_a_build_leaves_nothing(make: Make, starter_gguf: Path) -> None:
    """The operator's build and the Prefect server that it starts end by their lifelines. Neither has a key."""
    up = make()
    up.environ["FLEXINFER_SERVE__API_KEYS"] = secret = f"fxi_{up.port}_{os.getpid()}"
    model = up.home / "models" / "mine.yaml"
    model.write_text(
        "apiVersion: ai.flexinfer/v1alpha2\nkind: Model\nmetadata: {name: mine}\n"
        f"spec: {{source: 'file://{starter_gguf}', backend: llamacpp, gpu: {{vendor: cpu}}}}\n"
    )
    up.start()
    up.wait_ready(60)
    builds = up.home / "run" / "builds"
    wait_until(lambda: any(builds.glob("*.json")), "the operator builds", limit_s=60)
    wait_until(lambda: any("pipelines server" in line for line in up.everything()), "a server")
    assert holders(up, secret) == ["serve", "up"]
    up.stop(signal.SIGKILL)
    wait_until(lambda: up.everything() == [], "all notice that `up` is gone", limit_s=60)


def test_a_kill_in_the_middle_of_the_first_build_leaves_nothing(make: Make) -> None:
    """Its build is a child of `up` itself, and has a Prefect server of its own."""
    up = make()
    (up.home / "models" / ".starter-written").unlink()
    up.start()
    wait_until(lambda: any("flexinfer build" in line for line in up.everything()), "a build")
    wait_until(lambda: any("pipelines server" in line for line in up.everything()), "a server")
    assert {"operator", "serve"} <= set(children(up))
    up.stop(signal.SIGKILL)
    wait_until(lambda: up.everything() == [], "all notice that `up` is gone", limit_s=60)
    assert not (up.home / "models" / ".starter-written").exists()


def test_operator_and_up_killed_at_once_leave_nothing_but_what_the_next_adopts(make: Make) -> None:
    up = make()
    up.start()
    up.wait_ready(60)
    pids = children(up)
    assert set(pids) == {"operator", "serve"}
    up.stop(signal.SIGKILL)
    for pid in pids.values():
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    wait_until(lambda: up.everything() == [], "they are gone", limit_s=60)
    up.start()
    up.wait_ready(60)
    assert up.stop() == 0
    assert up.everything() == []
