"""What `make up` says while it installs: whole words, in a terminal of any width and in a log."""

from __future__ import annotations

import fcntl
import os
import pty
import runpy
import struct
import sys
import termios
from pathlib import Path
from subprocess import DEVNULL, Popen, run

import pytest

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
