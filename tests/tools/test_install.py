"""What `make up` says before and while it installs: whole words, in a terminal of any width and in a log."""

from __future__ import annotations

import fcntl
import os
import pty
import runpy
import shutil
import signal
import socket
import struct
import sys
import termios
from pathlib import Path
from subprocess import DEVNULL, PIPE, Popen, run

import pytest

from flexinfer.testing.running import wait_until

FILE = Path(__file__).resolve().parents[2] / "tools" / "install.py"
LINES = [
    *(f"Collecting package{n}==1.{n} (from -r /a/long/path/to/all.txt (line {n}))" for n in range(40)),
    "Requirement already satisfied: there==2.0 in ./.venv/lib (from -r all.txt (line 9))",
    "  Downloading package1-1.1-py3-none-any.whl (12 kB)",
    "Installing collected packages: a, b, c",
]  # fmt: skip
PROGRAM = "print(" + repr(chr(10).join(LINES)) + ")"
SHOW = f"""
import runpy
show = runpy.run_path({str(FILE)!r})["show"]
show([{sys.executable!r}, "-c", {PROGRAM!r}], 50)
"""


def test_a_log_gets_a_line_for_each_tenth_and_whole_names() -> None:
    found = run(
        [sys.executable, "-c", SHOW], capture_output=True, text=True, check=True, timeout=60
    )
    lines = found.stdout.splitlines()
    assert lines[0] == "installing: 1 of up to 50, package0==1.0"
    assert lines[-1] == "unpacking 3 packages; this takes a minute"
    assert len(lines) == 10


@pytest.mark.parametrize("columns", [80, 30])
def test_a_terminal_gets_one_line_that_fits(columns: int) -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environ = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")}
    with Popen([sys.executable, "-c", SHOW], stdin=DEVNULL, stdout=theirs, env=environ) as process:
        os.close(theirs)
        said = b""
        try:
            while piece := os.read(ours, 65536):
                said += piece
        except OSError:  # the other side closed: Linux says so with EIO
            pass
        os.close(ours)
        assert process.wait(60) == 0
    shown = said.decode().split("\r\x1b[K")
    assert "\n" not in "".join(shown)
    assert max(map(len, shown)) < columns
    assert any("package39" in one for one in shown) or columns < 40


def test_the_package_is_the_second_word_of_what_is_there_too() -> None:
    package_of = runpy.run_path(str(FILE))["package_of"]
    assert package_of(LINES[40]) == "there==2.0"
    assert package_of(LINES[41]) == ""


def check(tmp_path: Path, **settings: str) -> tuple[int, list[str]]:
    environ = {k: v for k, v in os.environ.items() if not k.startswith("FLEXINFER_")}
    found = run(
        [sys.executable, str(FILE), "check"],
        env={**environ, "FLEXINFER_HOME": str(tmp_path), **settings},
        cwd=tmp_path, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    return found.returncode, found.stderr.splitlines()


def test_a_taken_port_ends_with_2_and_names_who_has_it(tmp_path: Path) -> None:
    name = Path("/proc/self/comm").read_text().strip()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, said = check(tmp_path, FLEXINFER_SERVE__PORT=str(port))
    assert code == 2
    assert (
        f"error: port {port} for the router is taken by {name} (pid {os.getpid()}); "
        "choose another with FLEXINFER_SERVE__PORT"
    ) in said


def test_a_port_whose_holder_is_not_seen_is_taken_by_another_process(tmp_path: Path) -> None:
    with socket.socket() as bound:  # and never listens: the table of listeners does not have it
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
        code, said = check(tmp_path, FLEXINFER_SERVE__ADMIN_PORT=str(port))
    assert code == 2
    assert any(f"port {port} for the admin listener is taken by another" in line for line in said)


def test_a_home_that_cannot_be_ends_with_2(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    code, said = check(tmp_path, FLEXINFER_HOME=str(tmp_path / "file" / "home"))
    assert code == 2
    assert any("is not a folder that you may write to" in line for line in said)


def test_ctrl_c_is_one_line_and_no_traceback(tmp_path: Path) -> None:
    for name in ("tools/install.py", "requirements/build.txt", "requirements/dev.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(FILE.parents[1] / name, tmp_path / name)
    (tmp_path / "pyproject.toml").touch()
    process = Popen(
        [sys.executable, str(tmp_path / "tools" / "install.py"), "dev"],
        stdin=DEVNULL, stdout=PIPE, stderr=PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    with process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("making .venv")
        # Its own child is at work by then, which has a traceback of its own to show.
        wait_until((tmp_path / ".venv" / "pyvenv.cfg").exists, "the child to begin")
        os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (130, "interrupted; the same command goes on\n")
