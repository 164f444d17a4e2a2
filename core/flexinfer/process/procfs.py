"""What the kernel says of processes: who they are, who belongs together, what they use.

All of it comes from `/proc`; on other systems there is none and every answer is "unknown" (None, or nothing
found). A process may vanish between two reads: that is an answer, not an error.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
# In the environment of every child that we start; its descendants inherit it, also those that left the group.
MARK_VARIABLE = "FLEXINFER_PROCESS"
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_GONE = frozenset("ZX")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stat:
    """One line of `/proc/<pid>/stat`. `started_at` and the times are in clock ticks."""

    pid: int
    command: str
    state: str
    group: int
    session: int
    cpu_ticks: int
    started_at: int

    @property
    def is_running(self) -> bool:
        """Whether it can still do anything: a zombie cannot."""
        return self.state not in _GONE


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What a process and all that it started use now.

    cpu_s: CPU seconds, those of ended and waited-for children included.
    rss_bytes: resident memory, summed; pages that several share are counted for each.
    peak_rss_bytes: the highest that the first process alone ever had.
    read_bytes: fetched from storage. read_call_bytes: returned by read calls, from the page cache too.
    processes: how many there are.
    """

    cpu_s: float
    rss_bytes: int
    peak_rss_bytes: int
    read_bytes: int
    read_call_bytes: int
    processes: int


def parse_stat(text: str) -> Stat:
    """Return the fields of a stat line (proc_pid_stat(5)).

    The command stands in parentheses and may itself hold spaces, parentheses and newlines, so the last `)`
    ends it.

    Raises:
        ValueError: not such a line.
    """
    head, end, rest = text.rpartition(")")
    pid, begin, command = head.partition(" (")
    fields = rest.split()
    if not (end and begin) or len(fields) < 20:
        raise ValueError(f"not a stat line: {text[:80]!r}")
    # Field numbers of the manual page, less the three in front of fields[1].
    cpu = sum(int(fields[number - 3]) for number in (14, 15, 16, 17))
    return Stat(
        pid=int(pid), command=command, state=fields[0], group=int(fields[2]),
        session=int(fields[3]), cpu_ticks=cpu, started_at=int(fields[19]),
    )  # fmt: skip


def stat(pid: int) -> Stat | None:
    """Return what the kernel says of *pid*; None if there is no such process, or no `/proc`."""
    text = _read(pid, "stat")
    return parse_stat(text) if text else None


def boot_id() -> str:
    """Return the id of this boot: process ids and start times mean something only within one."""
    try:
        return (PROC / "sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def is_same(pid: int, *, started_at: int) -> bool:
    """Return whether *pid* runs and is the process that was started then, not one that got its number."""
    now = stat(pid)
    return now is not None and now.is_running and now.started_at == started_at


def members(group: int, *, mark: str, since: int) -> tuple[Stat, ...]:
    """Return the running processes of *group* and those that bear *mark*, wherever they went.

    since: start time of the eldest; what is older is not looked at. Costs a walk over all processes: a few
    milliseconds on a machine with hundreds.
    """
    return tuple(
        found for found in _younger(since) if found.group == group or _bears(found.pid, mark)
    )


def marked(mark: str, *, since: int) -> tuple[Stat, ...]:
    """Return the running processes that bear *mark*: surely ours, even when the eldest of them is gone."""
    return tuple(found for found in _younger(since) if _bears(found.pid, mark))


def usage(leader: int, *, group: int) -> Usage | None:
    """Return what all of *group* uses; None where the leader is gone or there is no `/proc`."""
    found = [member for member in _all() if member.group == group]
    if not any(member.pid == leader and member.is_running for member in found):
        return None
    counts = [_io(member.pid) for member in found]
    return Usage(
        cpu_s=sum(member.cpu_ticks for member in found) / _TICKS_PER_S,
        rss_bytes=sum(_rss_bytes(member.pid) for member in found),
        peak_rss_bytes=_peak_bytes(leader),
        read_bytes=sum(count.get("read_bytes", 0) for count in counts),
        read_call_bytes=sum(count.get("rchar", 0) for count in counts),
        processes=sum(member.is_running for member in found),
    )


def command_of(pid: int) -> tuple[str, ...]:
    """Return the argv of a running process; empty if it is gone."""
    return tuple(_read(pid, "cmdline").split("\0")[:-1])


def _all() -> Iterator[Stat]:
    try:
        names = os.listdir(PROC)
    except OSError:
        return
    for name in names:
        if name.isdigit() and (found := stat(int(name))) is not None:
            yield found


def _younger(since: int) -> Iterator[Stat]:
    return (found for found in _all() if found.is_running and found.started_at >= since)


def _bears(pid: int, mark: str) -> bool:
    if not mark or pid == os.getpid():
        return False
    try:
        with open(f"{PROC}/{pid}/environ", "rb") as file:
            environment = b"\0" + file.read()
    except OSError:  # gone, or another user's: not ours
        return False
    return f"\0{MARK_VARIABLE}={mark}\0".encode() in environment


def _rss_bytes(pid: int) -> int:
    fields = _read(pid, "statm").split()
    return int(fields[1]) * _PAGE_BYTES if fields else 0


def _peak_bytes(pid: int) -> int:
    match = re.search(r"^VmHWM:\s+(\d+) kB$", _read(pid, "status"), re.MULTILINE)
    return int(match[1]) * 1024 if match else 0


def _io(pid: int) -> dict[str, int]:
    pairs = (line.split(": ", 1) for line in _read(pid, "io").splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2}


def _read(pid: int, name: str) -> str:
    try:
        with open(f"{PROC}/{pid}/{name}", encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""
