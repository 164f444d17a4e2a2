"""What the kernel says of processes is read right, whatever they are called."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexinfer.process import procfs

# Field by field as proc_pid_stat(5) numbers them, from the third on: state, ppid, pgrp, session …
REST = (
    "S 1 77 78 0 -1 4194304 100 0 0 0 11 12 13 14 20 0 1 0 99887766 1000 200 18446744073709551615"
)


@given(st.text(max_size=16))
def test_a_command_may_be_called_anything(command: str) -> None:
    found = procfs.parse_stat(f"42 ({command}) {REST}\n")
    assert (found.pid, found.command, found.group, found.session) == (42, command, 77, 78)
    assert (found.cpu_ticks, found.started_at) == (11 + 12 + 13 + 14, 99887766)


@pytest.mark.parametrize("text", ["", "42", "42 (a) S 1", "(a) S", "x (a) " + REST])
def test_what_is_no_stat_line_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        procfs.parse_stat(text)


def test_we_are_the_same_as_a_moment_ago() -> None:
    found = procfs.stat(os.getpid())
    assert found is not None
    assert procfs.is_same(os.getpid(), started_at=found.started_at)
    assert not procfs.is_same(os.getpid(), started_at=found.started_at + 1)
    assert found.group == os.getpgid(0)


def test_a_process_that_is_gone_is_none() -> None:
    child = subprocess.Popen(["true"])
    child.wait()
    assert procfs.stat(child.pid) is None
    assert procfs.usage(child.pid, group=child.pid) is None
    assert procfs.command_of(child.pid) == ()


def test_the_mark_must_be_whole() -> None:
    code = "print('up', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-I", "-S", "-c", code],
        env={"FLEXINFER_PROCESS": "1-abc"}, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as child:  # fmt: skip
        assert child.stdout is not None and child.stdout.readline() == b"up\n"
        assert [one.pid for one in procfs.marked("1-abc", since=0)] == [child.pid]
        for other in ("1-ab", "1-abcd", "-abc", ""):
            assert procfs.marked(other, since=0) == ()
        child.communicate(b"\n")
