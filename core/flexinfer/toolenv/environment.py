"""One tool environment: what it is called, whether it is there, and how it comes to be."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import flexinfer
from flexinfer.errors import Conflict, NotFound
from flexinfer.places import Home
from flexinfer.plugins import nearest
from flexinfer.toolenv import making

STAMP = ".flexinfer-complete"
_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


@dataclass(frozen=True, slots=True)
class ToolPython:
    """The interpreter of a tool environment that is there and whole."""

    path: Path
    lock_hash: str


@dataclass(frozen=True)
class ToolEnvironment:
    """The environment that *lock* describes. lock: a requirements file with hashes, complete."""

    name: str
    lock: Path

    @classmethod
    def named(cls, name: str) -> ToolEnvironment:
        """Return the environment of a lock that we ship.

        Raises:
            NotFound: code `toolenv_unknown`.
        """
        return cls(name, lock_of(name))

    @cached_property
    def lock_hash(self) -> str:
        """The sha256 of the lock's bytes, in hex: the tool version of a build key.

        Raises:
            NotFound: code `toolenv_unknown`; there is no such file.
        """
        try:
            return hashlib.sha256(self.lock.read_bytes()).hexdigest()
        except OSError as error:
            raise NotFound(
                f"tool environment {self.name}: no lock {self.lock}: {error.strerror}",
                code="toolenv_unknown",
            ) from error

    def folder(self, home: Home) -> Path:
        """Return where it lies. The interpreter's version is part of it: packages are built for one."""
        return home.tools / f"{self.name}-{self.lock_hash[:12]}-{_python_tag()}"

    def ready(self, home: Home) -> ToolPython | None:
        """Return its interpreter if it is there and whole; None if `ensure` has work to do. Cheap."""
        folder = self.folder(home)
        try:
            stamp = json.loads((folder / STAMP).read_bytes())
        except (OSError, ValueError):
            return None
        python = folder / "bin" / "python"
        # A link to a Python that was removed or upgraded away leads nowhere: then it is made anew.
        if stamp != self._stamp() or not python.exists():
            return None
        return ToolPython(python, self.lock_hash)

    def ensure(self, home: Home, *, on_line: Callable[[str], None]) -> ToolPython:
        """Return its interpreter, made first where it is not there yet.

        Blocks until then; in an event loop use `ensure_async`, which can also be cancelled. One process makes
        it, others wait for it. *on_line* hears what is installed, from this thread.

        Raises:
            ProcessFailed: code `toolenv_failed`, with the last lines of the program that failed.
            Conflict: code `toolenv_changed`: its lock changed meanwhile.
            ResourceExhausted: code `disk_full`.
            Unavailable: code `toolenv_busy`; another process has been making it for an hour.
            InvalidInput: code `home_not_writable`.
        """
        return self.ready(home) or asyncio.run(self.ensure_async(home, on_line=on_line))

    async def ensure_async(self, home: Home, *, on_line: Callable[[str], None]) -> ToolPython:
        """Return what `ensure` does. Cancelled, it ends what it started and leaves nothing."""
        found = self.ready(home)
        if found is not None:
            return found
        folder = self.folder(home)
        async with making.turn(folder, name=self.name, on_line=on_line):
            found = self.ready(home)
            if found is None:
                await making.make(
                    folder, name=self.name, lock=self.lock, on_line=on_line,
                    stamp=(STAMP, json.dumps(self._stamp()).encode()),
                )  # fmt: skip
                found = self.ready(home)
        if found is None:
            raise Conflict(
                f"tool environment {self.name}: another program changed {folder} as it was made; start again",
                code="toolenv_changed",
            )
        return found

    def _stamp(self) -> dict[str, str]:
        return {"name": self.name, "lock": self.lock_hash, "python": _python_tag()}


def lock_of(name: str) -> Path:
    """Return the lock of the tool environment *name*: of this installation, or of this clone.

    Raises:
        NotFound: code `toolenv_unknown`; the message names those that there are.
    """
    package = Path(flexinfer.__file__).parent
    folders = (package / "_requirements" / "tools", package.parents[1] / "requirements" / "tools")
    if _NAME.fullmatch(name):
        for folder in folders:
            lock = folder / f"{name}.txt"
            if lock.is_file():
                return lock
    known = sorted({lock.stem for folder in folders for lock in folder.glob("*.txt")})
    raise NotFound(
        f"no tool environment {name!r} (known: {', '.join(known) or 'none'}){nearest(name, known)}",
        code="toolenv_unknown",
    )


def _python_tag() -> str:
    return f"py{sys.version_info.major}.{sys.version_info.minor}{sys.abiflags}"
