"""TCP ports: find a free one, and say who holds one that is not."""

from __future__ import annotations

import os
import socket
from contextlib import suppress

from flexinfer.errors import ResourceExhausted
from flexinfer.process import procfs

_LISTENING = "0A"


def free_port(host: str = "127.0.0.1") -> int:
    """Return a port that nobody held a moment ago. Its user must bear that another was faster.

    Raises:
        ResourceExhausted: code `no_free_port`; *host* is not ours, or has no port left.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.bind((host, 0))
            port: int = probe.getsockname()[1]
            return port
    except OSError as error:
        raise ResourceExhausted(
            f"no port could be taken on {host}: {error.strerror}", code="no_free_port"
        ) from error


def who_listens(port: int) -> str | None:
    """Return who holds *port*, as `python (pid 123)`, for messages; None if nobody is seen.

    Best effort from `/proc`: processes of other users cannot be looked into and are named by user id.
    """
    owners = _listeners(port)
    for pid in _pids():
        if owners.keys() & _sockets(pid):
            found = procfs.stat(pid)
            return f"{found.command} (pid {pid})" if found else None
    return f"a process of user id {next(iter(owners.values()))}" if owners else None


def groups_listening(port: int) -> frozenset[int] | None:
    """Return the process groups of this user that listen on *port*; None where the system does not tell.

    Costs a walk over all processes: some milliseconds.
    """
    if not (procfs.PROC / "net" / "tcp").exists():
        return None
    inodes = _listeners(port).keys()
    found = set()
    for pid in _pids():
        if inodes & _sockets(pid):
            with suppress(ProcessLookupError):  # gone meanwhile
                found.add(os.getpgid(pid))
    return frozenset(found)


def _listeners(port: int) -> dict[str, str]:
    """Return inode → user id of the sockets that listen on *port*."""
    found = {}
    for table in ("tcp", "tcp6"):
        try:
            rows = (procfs.PROC / "net" / table).read_text().splitlines()[1:]
        except OSError:
            continue
        for row in rows:
            fields = row.split()
            local = int(fields[1].rpartition(":")[2], 16)
            if local == port and fields[3] == _LISTENING:
                found[f"socket:[{fields[9]}]"] = fields[7]
    return found


def _pids() -> list[int]:
    try:
        return [int(name) for name in os.listdir(procfs.PROC) if name.isdigit()]
    except OSError:
        return []


def _sockets(pid: int) -> set[str]:
    folder = f"{procfs.PROC}/{pid}/fd"
    found = set()
    with suppress(OSError):  # gone meanwhile, or another user's
        for name in os.listdir(folder):
            with suppress(OSError):  # closed meanwhile
                found.add(os.readlink(f"{folder}/{name}"))
    return found
