"""Make a virtual environment from a lock: under a kernel lock, aside, and renamed when it is whole."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import fcntl
import importlib.metadata
import os
import secrets
import shutil
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from flexinfer.errors import (
    FlexInferError,
    InvalidInput,
    ProcessFailed,
    ResourceExhausted,
    Unavailable,
)
from flexinfer.process import ProcessSpec, inherited_environment, run
from flexinfer.process.lifeline import GUARD
from flexinfer.units import format_bytes

_TURN_STEP_S = 0.2
_LONGEST_TURN_S = 3600.0
_LONGEST_STEP_S = 3600.0
_LAST_LINES = 8
_PIP = (
    GUARD + "import runpy, sys\nsys.argv[0] = 'pip'\nrunpy.run_module('pip', run_name='__main__')\n"
)
_VENV = (
    GUARD
    + "import runpy, sys\nsys.argv[0] = 'venv'\nrunpy.run_module('venv', run_name='__main__')\n"
)
PipCommand = Callable[[Path, Path, bool], tuple[str, ...]]
"""An environment, a lock, whether our own pip may do it → the program that installs the lock there."""
# The first pip that installs into another environment (`--python`).
_PIP_FOR_OTHERS = (22, 3)


@asynccontextmanager
async def turn(folder: Path, *, name: str, on_line: Callable[[str], None]) -> AsyncIterator[None]:
    """Be the only one to make *folder*; wait while another process does.

    Raises:
        InvalidInput: code `home_not_writable`.
        Unavailable: code `toolenv_busy`, after an hour.
    """
    path = folder.parent / f".{folder.name}.lock"
    try:
        folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise InvalidInput(
            f"tool environment {name}: cannot write to {folder.parent}: {error.strerror}",
            code="home_not_writable",
        ) from error
    try:
        if not _try_lock(descriptor):
            on_line(f"tool environment {name}: another process is making it, waiting")
            await _wait_for(descriptor, name)
        yield
    finally:
        os.close(descriptor)


async def make(
    folder: Path,
    *,
    name: str,
    lock: Path,
    stamp: tuple[str, bytes],
    on_line: Callable[[str], None],
    pip_command: PipCommand | None = None,
) -> None:
    """Make *folder* with the packages of *lock*. Only in one's `turn`.

    stamp: name and bytes of the file that says that it is whole, written last.
    pip_command: what installs *lock* into the environment; by default pip.

    Raises:
        ProcessFailed: code `toolenv_failed`.
        ResourceExhausted: code `disk_full`.
    """
    for stale in folder.parent.glob(f".making-{folder.name}-*"):
        shutil.rmtree(stale, ignore_errors=True)  # of one that was killed
    installing = pip_command or _pip_command
    partial = folder.parent / f".making-{folder.name}-{secrets.token_hex(4)}"
    on_line(f"tool environment {name}: making it with Python {sys.version.split()[0]}")
    try:
        has_pip = _own_pip_serves_others()
        await _step(name, partial, _venv_command(name, partial, with_pip=not has_pip), on_line)
        await _step(name, partial, installing(partial, lock, has_pip), on_line)
        _rename_inside(partial, folder)
        await asyncio.to_thread(_sync, partial)
        _settle(partial, folder, stamp)
    except OSError as error:
        raise _why(name, folder, error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    on_line(f"tool environment {name}: ready")


def _venv_command(name: str, partial: Path, *, with_pip: bool) -> tuple[str, ...]:
    # The base interpreter: an environment made from an environment would die with it.
    base = getattr(sys, "_base_executable", None) or sys.executable
    options = () if with_pip else ("--without-pip",)
    return (base, "-I", "-c", _VENV, "--prompt", name, *options, str(partial))


def _pip_command(partial: Path, lock: Path, is_our_pip: bool) -> tuple[str, ...]:
    python = str(partial / "bin" / "python")
    command = (
        (sys.executable, "-I", "-c", _PIP, "--python", python)
        if is_our_pip
        else (python, "-I", "-c", _PIP)
    )
    # Wheels only: code of a source package would run here, and a missing wheel shall be said, not compiled.
    return (
        *command, "install", "--require-hashes", "--no-deps", "--only-binary", ":all:",
        "--progress-bar", "off", "--no-input", "-r", str(lock),
    )  # fmt: skip


def _own_pip_serves_others() -> bool:
    """Return whether our own environment has a pip that can do it: saves installing another, seconds."""
    try:
        first, second, *_ = importlib.metadata.version("pip").split(".")
        return (int(first), int(second)) >= _PIP_FOR_OTHERS
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return False


async def _step(
    name: str, partial: Path, argv: tuple[str, ...], on_line: Callable[[str], None]
) -> None:
    spec = ProcessSpec(
        name=f"tool environment {name}",
        argv=argv,
        # The user's pip settings, a home for ~/.netrc; what would send the files elsewhere is switched off.
        environment={
            **inherited_environment("PIP_*"),
            "PIP_USER": "0", "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PYTHONUNBUFFERED": "1",
        },
        cwd=partial.parent,
        on_line=on_line,
        grace_s=5.0,
    )  # fmt: skip
    finished = await run(spec, timeout_s=_LONGEST_STEP_S)
    if finished.returncode == 0:
        return
    words = [line for line in finished.lines if line.strip()][-_LAST_LINES:]
    last = "\n  ".join(words) or "it said nothing"
    if any(os.strerror(errno.ENOSPC) in line for line in words):
        raise _disk_full(name, partial.parent, last)
    raise ProcessFailed(
        f"tool environment {name}: {_what(argv)} ended with {finished.returncode}:\n  {last}",
        code="toolenv_failed",
    )


def _what(argv: tuple[str, ...]) -> str:
    return "pip" if _PIP in argv else "venv"


def _rename_inside(partial: Path, folder: Path) -> None:
    """Write the last name into scripts and settings, which hold the path that they were made at."""
    old, new = str(partial).encode(), str(folder).encode()
    for script in (partial / "pyvenv.cfg", *(partial / "bin").iterdir()):
        if script.is_symlink() or not script.is_file():
            continue
        text = script.read_bytes()
        if old in text and b"\0" not in text:  # a program that was compiled is left alone
            script.write_bytes(text.replace(old, new))


def _settle(partial: Path, folder: Path, stamp: tuple[str, bytes]) -> None:
    """Say that it is whole, which its files on disk already are, and give it its name."""
    with (partial / stamp[0]).open("wb") as file:
        file.write(stamp[1])
        file.flush()
        os.fsync(file.fileno())
    if folder.exists():  # not whole: its Python is gone, or somebody deleted in it
        shutil.rmtree(folder)
    partial.rename(folder)


def _sync(folder: Path) -> None:
    """Put all of the file system of *folder* on disk: one call instead of one for each of a thousand files."""
    syncfs = getattr(ctypes.CDLL(None), "syncfs", None)
    if syncfs is None:
        os.sync()
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        syncfs(descriptor)
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


async def _wait_for(descriptor: int, name: str) -> None:
    try:
        async with asyncio.timeout(_LONGEST_TURN_S):
            while not _try_lock(descriptor):
                await asyncio.sleep(_TURN_STEP_S)
    except TimeoutError as error:
        raise Unavailable(
            f"tool environment {name}: another process has been making it for an hour",
            code="toolenv_busy",
            retry_after_s=60.0,
        ) from error


def _why(name: str, folder: Path, error: OSError) -> FlexInferError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return _disk_full(name, folder.parent, str(error))
    return ProcessFailed(
        f"tool environment {name}: cannot make {folder}: {error}", code="toolenv_failed"
    )


def _disk_full(name: str, folder: Path, words: str) -> ResourceExhausted:
    free = format_bytes(shutil.disk_usage(folder).free)
    return ResourceExhausted(
        f"tool environment {name}: {folder} is full ({free} free):\n  {words}", code="disk_full"
    )
