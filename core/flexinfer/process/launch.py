"""Start a program as the leader of a session of its own."""

from __future__ import annotations

import asyncio
import errno
import os
import secrets
import subprocess
from contextlib import ExitStack, suppress
from pathlib import Path

from flexinfer.errors import FlexInferError, InvalidInput, ProcessFailed, ResourceExhausted
from flexinfer.process import lifeline, logfile, procfs
from flexinfer.process.child import Child
from flexinfer.process.leader import Leader
from flexinfer.process.output import FileOutput, Output, PipeOutput
from flexinfer.process.spec import ProcessSpec

_NO_ROOM = frozenset({errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE})
_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})
_NOT_A_PROGRAM = frozenset({errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.ENOEXEC})


async def start(spec: ProcessSpec) -> Child:
    """Start *spec* in the running loop, and return when the program is running: one or two milliseconds.

    Own session and process group, standard input empty, no descriptor of ours open in it but those of `kept_open`.

    Raises:
        ProcessFailed: code `program_not_found` or `process_start_failed`; `process_log` for its log.
        ResourceExhausted: code `process_limit` or `disk_full`.
        InvalidInput: code `process_spec`; its arguments are longer than the system takes.
    """
    loop = asyncio.get_running_loop()
    mark = f"{os.getpid()}-{secrets.token_hex(8)}"
    environment = {**spec.environment, procfs.MARK_VARIABLE: mark}
    environment.pop(lifeline.VARIABLE, None)
    with ExitStack() as ours, ExitStack() as childs:
        read_end: int | None = None
        words: int | None = None
        log_start = 0
        if spec.log_path is not None:
            words, log_start = _open_log(spec, spec.log_path)
        elif not spec.inherit_output:
            read_end, words = os.pipe()
            ours.callback(os.close, read_end)
        if words is not None:
            childs.callback(os.close, words)
        line: int | None = None
        passed = spec.kept_open
        if spec.lifeline:
            end, line = os.pipe()
            ours.callback(os.close, line)
            childs.callback(os.close, end)
            environment[lifeline.VARIABLE] = str(end)
            passed = (*passed, end)
        pid = _spawn(spec, environment, words=words, passed=passed)
        ours.pop_all()
    found = procfs.stat(pid)
    started_at = found.started_at if found is not None else 0
    leader = Leader(pid, started_at=started_at, is_ours=True)
    _be_nice(pid, spec.nice)
    output: Output | None = None
    if spec.log_path is not None:
        output = _watched(spec, spec.log_path, loop, start=log_start)
    elif read_end is not None:
        output = PipeOutput(read_end, loop, spec.on_line)
    return Child(spec, leader, mark=mark, output=output, lifeline=line)


def _spawn(
    spec: ProcessSpec, environment: dict[str, str], *, words: int | None, passed: tuple[int, ...]
) -> int:
    try:
        program = subprocess.Popen(
            spec.argv, stdin=subprocess.DEVNULL, stdout=words, stderr=words, cwd=spec.cwd,
            env=environment, start_new_session=True, pass_fds=passed,
        )  # fmt: skip
    except OSError as error:
        raise _why_not(spec, error) from error
    # Only a way to spawn (vfork, where the system has it). Waiting is ours: it must not reap before the group
    # is gone, and must not warn when a child is left for adoption.
    program.returncode = 0
    return program.pid


def _why_not(spec: ProcessSpec, error: OSError) -> FlexInferError:
    what = f"process {spec.name}: cannot start {spec.argv[0]}: {error.strerror}"
    if error.errno in _NO_ROOM:
        return ResourceExhausted(
            f"{what}; this machine or this user is at a limit", code="process_limit"
        )
    if error.errno == errno.E2BIG:
        return InvalidInput(f"{what}; arguments and environment are too long", code="process_spec")
    if error.errno in _NOT_A_PROGRAM:
        if not spec.cwd.is_dir():
            what = f"process {spec.name}: its folder {spec.cwd} is not there or not a folder"
        return ProcessFailed(what, code="program_not_found")
    return ProcessFailed(what, code="process_start_failed")


def _open_log(spec: ProcessSpec, path: Path) -> tuple[int, int]:
    """Return its descriptor, and how long it is already."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        logfile.keep_small(path, max_bytes=spec.max_log_bytes)
        log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        return log, os.fstat(log).st_size
    except OSError as error:
        what = f"process {spec.name}: cannot write its log {path}: {error.strerror}"
        if error.errno in _NO_SPACE:
            raise ResourceExhausted(what, code="disk_full") from error
        raise ProcessFailed(what, code="process_log") from error


def _be_nice(pid: int, nice: int) -> None:
    if nice == 0:
        return
    # After the start, not between fork and exec: code there would cost the fast way to start. The few
    # instructions in between run at our own priority.
    with suppress(ProcessLookupError):
        ours = os.getpriority(os.PRIO_PROCESS, 0)
        os.setpriority(os.PRIO_PROCESS, pid, min(19, ours + nice))


def _watched(
    spec: ProcessSpec, path: Path, loop: asyncio.AbstractEventLoop, *, start: int
) -> FileOutput:
    output = FileOutput(path, max_bytes=spec.max_log_bytes, start=start)
    output.keep_small(loop)
    return output
