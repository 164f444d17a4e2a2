"""Files that are whole or absent, and errors of the disk with numbers in them. The one place that replaces a file."""

from __future__ import annotations

import errno
import json
import os
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from flexinfer.errors import FlexInferError, ResourceExhausted
from flexinfer.units import format_bytes

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


def is_full(error: OSError) -> bool:
    """Say whether *error* means that there is no room left."""
    return error.errno in _FULL


def disk_full(path: Path, *, needed: int, why: str = "") -> ResourceExhausted:
    """Return the error for *needed* bytes that do not fit where *path* is; *why*: what they are for."""
    return ResourceExhausted(
        f"{path}: disk full: {format_bytes(needed)} ({needed} bytes) needed{why and ' for '}{why}, "
        f"{format_bytes(free_bytes(path))} free",
        code="disk_full",
    )


def disk_error(
    error: OSError, *, path: Path, needed: int | None = None, why: str = ""
) -> FlexInferError:
    """Return the error to raise for *error*, which happened on writing *path*; *needed* is in bytes, *why* what for."""
    if error.errno in _FULL:
        need = (
            f"{format_bytes(needed)} ({needed} bytes) needed" if needed is not None else "no room"
        )
        need += f" for {why}" if why else ""
        return ResourceExhausted(
            f"{path}: disk full: {need}, {format_bytes(free_bytes(path))} free ({error.strerror})",
            code="disk_full",
        )
    return ResourceExhausted(f"{path}: cannot write: {error.strerror or error}", code="disk_error")


def read_error(error: OSError, *, path: Path) -> FlexInferError:
    """Return the error to raise for *error*, which happened on reading *path*."""
    return ResourceExhausted(f"{path}: cannot read: {error.strerror or error}", code="disk_error")


def free_bytes(path: Path) -> int:
    """Return how many bytes we may still write where *path* is, or would be."""
    for folder in (path, *path.parents):
        with suppress(OSError):
            found = os.statvfs(folder)
            return found.f_bavail * found.f_frsize
    return 0


def write_all(descriptor: int, data: bytes | bytearray | memoryview) -> None:
    """Write all of *data*: the kernel may take less at a time."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def make_folders(*folders: Path, mode: int = 0o777) -> None:
    """Make *folders*, and their parents, where they are absent.

    Raises:
        ResourceExhausted: code `disk_full` or `disk_error`.
    """
    for folder in folders:
        try:
            folder.mkdir(mode=mode, parents=True, exist_ok=True)
        except OSError as error:
            raise disk_error(error, path=folder) from error


def sync_folder(folder: Path) -> None:
    """Make the names in *folder* durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_file(
    path: Path,
    data: bytes,
    *,
    scratch: Path | None = None,
    mode: int = 0o644,
    durable: bool = True,
) -> None:
    """Let *path* hold *data*, whole or not at all.

    *scratch*: the temporary name, in the same filesystem, where a lock of the caller's makes it his own; else one
    beside *path* that no other thread uses. *durable*: it outlives a power cut; what means nothing after a restart
    of the machine need not.

    Raises:
        ResourceExhausted: code `disk_full` or `disk_error`; *path* is as it was.
    """
    if scratch is None:
        scratch = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_native_id()}")
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(scratch, flags, mode)
        try:
            write_all(descriptor, data)
            if durable:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.rename(scratch, path)
        if durable:
            sync_folder(path.parent)
    except OSError as error:
        with suppress(OSError):
            os.unlink(scratch)
        raise disk_error(error, path=path, needed=len(data)) from error


def replace_json(path: Path, tree: Mapping[str, Any], *, durable: bool = True) -> None:
    """As `replace_file`, with *tree* as JSON."""
    replace_file(path, json.dumps(tree, sort_keys=True).encode(), durable=durable)
