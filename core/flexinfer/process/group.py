"""All that came from one start: found by process group and by mark, ended for certain.

A program may leave its group (setsid) but keeps its environment, which holds the mark; it may lose its parent but
keeps its group. What has neither is not found, and had to try.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterable
from contextlib import suppress

from flexinfer.errors import ProcessFailed
from flexinfer.process import procfs, waiting
from flexinfer.process.procfs import Stat

# What was killed goes within milliseconds, unless the kernel holds it in a driver or on a dead file system.
KILL_WAIT_S = 10.0
_STEP_S = 0.01


async def clear(
    find: Callable[[], tuple[Stat, ...]], *, name: str, is_settled: Callable[[], bool]
) -> None:
    """Kill what *find* finds until it finds nothing, or *is_settled* says that somebody else did.

    Raises:
        ProcessFailed: code `process_unkillable`; something survives SIGKILL for 10 s.
    """
    deadline_s = time.monotonic() + KILL_WAIT_S
    while True:
        found = await asyncio.to_thread(find)
        if not found or is_settled():
            return
        kill(found)
        if time.monotonic() > deadline_s:
            raise unkillable(name, found)
        await asyncio.sleep(_STEP_S)


def kill(found: Iterable[Stat]) -> None:
    """Kill these processes, each only if it still is the one that was seen."""
    for member in found:
        descriptor = waiting.open_descriptor(member.pid)
        try:
            if not procfs.is_same(member.pid, started_at=member.started_at):
                continue
            with suppress(ProcessLookupError, PermissionError):
                if descriptor is not None:
                    waiting.send(descriptor, signal.SIGKILL)
                else:
                    os.kill(member.pid, signal.SIGKILL)
        finally:
            if descriptor is not None:
                os.close(descriptor)


def unkillable(name: str, found: Iterable[Stat]) -> ProcessFailed:
    """Return the error for what SIGKILL does not end: names each process and its state."""
    seen = ", ".join(f"{one.command} (pid {one.pid}, state {one.state})" for one in found)
    return ProcessFailed(
        f"process {name}: still there {KILL_WAIT_S:.0f} s after SIGKILL: {seen or 'its leader'}",
        code="process_unkillable",
    )
