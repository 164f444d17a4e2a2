"""The files of a catalog: found and read within bounds, never outside the folder that was named."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from flexinfer.errors import FlexInferError, InvalidInput, ResourceExhausted
from flexinfer.resources.located import MAX_BYTES

MAX_FILES = 10_000
MAX_DEPTH = 8
# Of all names looked at, entries or not: a folder that is no catalog is left soon.
MAX_NAMES = 100_000
_SUFFIXES = (".yaml", ".yml")


def entry_files(
    paths: Sequence[Path], *, max_files: int = MAX_FILES, max_names: int = MAX_NAMES
) -> tuple[tuple[Path, ...], tuple[FlexInferError, ...]]:
    """Return the entry files below *paths* in a fixed order, and what could not be looked at.

    Hidden names and linked folders are passed over. A linked file must lead to one below the same path.
    """
    walk = _Walk(max_files, max_names)
    for path in paths:
        walk.path(path)
    return tuple(walk.files), tuple(walk.problems)


def read_entry_file(file: Path) -> str:
    """Return the text of *file*.

    Raises:
        InvalidInput: code `catalog_unreadable`: not a regular file, too large, not UTF-8, or not readable.
    """
    try:
        # O_NONBLOCK: a pipe that nobody writes to must not hold us; it is refused below.
        descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as stream:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise _unreadable(file, "it is not a regular file")
            data = stream.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise _unreadable(file, f"it has more than {MAX_BYTES} bytes")
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _unreadable(file, f"byte {error.start} is not UTF-8") from error
    except OSError as error:
        raise _unreadable(file, error.strerror or str(error)) from error


def real(path: Path) -> Path:
    """Return *path* without links. Unlike `Path.resolve` it does not raise for a link to itself."""
    return Path(os.path.realpath(path))


class _Walk:
    def __init__(self, max_files: int, max_names: int) -> None:
        self.files: list[Path] = []
        self.problems: list[FlexInferError] = []
        self._files_left = max_files
        self._names_left = max_names
        self._is_full = False
        self._seen: set[Path] = set()

    def path(self, path: Path) -> None:
        try:
            is_folder = stat.S_ISDIR(path.stat().st_mode)
        except OSError as error:
            self.problems.append(_unreadable(path, error.strerror or str(error)))
            return
        if is_folder:
            self._folder(path, real(path), depth=0)
        else:
            self._take(path, real(path))

    def _folder(self, folder: Path, root: Path, *, depth: int) -> None:
        if depth > MAX_DEPTH:
            self.problems.append(_unreadable(folder, f"it is more than {MAX_DEPTH} folders down"))
            return
        try:
            with os.scandir(folder) as found:
                names = sorted(self._bounded(found), key=lambda one: one.name)
        except OSError as error:
            self.problems.append(_unreadable(folder, error.strerror or str(error)))
            return
        for one in names:
            if self._is_full:
                return
            if one.is_dir(follow_symlinks=False):
                self._folder(Path(one.path), root, depth=depth + 1)
            elif one.name.lower().endswith(_SUFFIXES):
                self._file(Path(one.path), root, is_link=one.is_symlink())

    def _bounded(self, found: Iterator[os.DirEntry[str]]) -> list[os.DirEntry[str]]:
        kept = []
        for one in found:
            self._names_left -= 1
            if self._names_left < 0:
                self._full()
                break
            if not one.name.startswith("."):
                kept.append(one)
        return kept

    def _file(self, file: Path, root: Path, *, is_link: bool) -> None:
        # Kubernetes mounts a ConfigMap as links to a hidden folder beside them: that is inside.
        target = real(file) if is_link else real(file.parent) / file.name
        if not target.is_relative_to(root):
            self.problems.append(_unreadable(file, f"it links to a file outside {root}"))
            return
        self._take(file, target)

    def _take(self, file: Path, target: Path) -> None:
        if target in self._seen:
            return  # two paths, or two links, that lead to one file
        if self._files_left == 0:
            self._full()
            return
        self._files_left -= 1
        self._seen.add(target)
        self.files.append(file)

    def _full(self) -> None:
        if not self._is_full:
            self._is_full = True
            self.problems.append(
                ResourceExhausted(
                    "catalog folders hold too many files: the rest is not looked at; "
                    "name fewer in FLEXINFER_CATALOG__PATHS",
                    code="catalog_too_large",
                )
            )


def _unreadable(path: Path, why: str) -> InvalidInput:
    return InvalidInput(f"{path}:1:1: cannot be used: {why}", code="catalog_unreadable")
