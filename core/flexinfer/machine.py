"""What this machine lets us use."""

from __future__ import annotations

import os
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")


def usable_cpus(cgroup: Path = _CGROUP) -> int:
    """Return the processors that we may use: those of our affinity, cut by the control group's quota."""
    if hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    else:
        count = os.cpu_count() or 1
    quota, _, period = _read(cgroup / "cpu.max").partition(" ")
    if quota.isdecimal() and period.strip().isdecimal() and int(period) > 0:
        count = min(count, max(1, -(-int(quota) // int(period))))
    return max(1, count)


def usable_memory_bytes(cgroup: Path = _CGROUP) -> int:
    """Return the memory that we may use: the machine's, cut by the control group's limit."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = _read(cgroup / "memory.max").strip()
    return min(pages, int(limit)) if limit.isdecimal() else pages


def _read(path: Path) -> str:
    try:
        return path.read_text("ascii")
    except (OSError, UnicodeDecodeError):
        return ""
