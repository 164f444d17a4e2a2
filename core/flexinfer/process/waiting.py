"""Wait in an event loop until a process has ended, without being its parent.

A process descriptor (pidfd_open(2)) becomes readable when its process ends and can never mean another process
that got the same number. Where the system has none, the process is looked at in growing steps.
"""

from __future__ import annotations

import asyncio
import os
import select
import signal
from collections.abc import Callable

_FIRST_STEP_S = 0.005
_LONGEST_STEP_S = 0.25


def open_descriptor(pid: int) -> int | None:
    """Return a descriptor of the process; None if it is gone or the system has no such thing."""
    if not hasattr(os, "pidfd_open"):
        return None
    try:
        return os.pidfd_open(pid)
    except OSError:  # no such process; or an old kernel, or a sandbox that forbids the call
        return None


def has_ended(descriptor: int) -> bool:
    """Return whether the process of *descriptor* has ended, whether or not its parent has asked."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(0))


def send(descriptor: int, number: signal.Signals) -> None:
    """Signal the process of *descriptor*; nothing happens if it has ended."""
    try:
        signal.pidfd_send_signal(descriptor, number)
    except ProcessLookupError:
        return


async def ended(descriptor: int) -> None:
    """Return when the process of *descriptor* has ended. Any number of tasks may wait."""
    loop = asyncio.get_running_loop()
    # A loop knows one callback for each descriptor: each waiter has its own.
    own = os.dup(descriptor)
    future: asyncio.Future[None] = loop.create_future()

    def readable() -> None:
        if not future.done():
            future.set_result(None)

    try:
        loop.add_reader(own, readable)
        await future
    finally:
        loop.remove_reader(own)
        os.close(own)


async def until(condition: Callable[[], bool]) -> None:
    """Return when *condition* holds, looking after 5 ms, then ever more seldom, at last 4 times a second."""
    step_s = _FIRST_STEP_S
    while not condition():
        await asyncio.sleep(step_s)
        step_s = min(step_s * 1.5, _LONGEST_STEP_S)
