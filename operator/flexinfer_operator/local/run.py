"""The operator of one machine as a process: one per home, until a signal comes or its parent is gone."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable

from flexinfer.clock import Clock, SystemClock
from flexinfer.log import get_logger
from flexinfer.places import Home
from flexinfer.process import SingleInstance, watch_lifeline
from flexinfer.settings import Settings
from flexinfer_operator.local.cluster import LocalCluster
from flexinfer_operator.reconcile import Reconciler

log = get_logger(__name__)

# Whoever stops us waits a little longer than this before it kills.
STOP_LIMIT_S = 7.5
_MAX_GRACE_S = 6.0


async def run_local(
    home: Home,
    settings: Settings,
    *,
    make: Callable[[Home, Settings, Clock], LocalCluster] = LocalCluster,
) -> None:
    """Run until SIGTERM, SIGINT or the end of the parent; then end every engine and return.

    Raises:
        Conflict: code `already_running`: an operator of this home runs.
    """
    grace_s = min(settings.operator.stop_grace_s, _MAX_GRACE_S)
    section = settings.operator.model_copy(update={"stop_grace_s": grace_s})
    settings = settings.model_copy(update={"operator": section})
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    watch_lifeline(loop, stop.set)
    about = {"what": "flexinfer operator", "address": str(home.operator_socket)}
    clock = SystemClock()
    with SingleInstance.acquire(home.operator_lock, about):
        cluster = make(home, settings, clock)
        await cluster.open()
        log.info("operator_started", home=str(home.root))
        work = asyncio.create_task(Reconciler(cluster, clock).run(), name="reconcile")
        stopping = asyncio.create_task(stop.wait(), name="stop")
        try:
            await asyncio.wait({work, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                work.result()  # a bug: it never ends by itself
        finally:
            await _end(cluster, work, stopping)
    log.info("operator_stopped")


async def _end(cluster: LocalCluster, *tasks: asyncio.Task[object]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    try:
        async with asyncio.timeout(STOP_LIMIT_S):
            await cluster.close()
    except TimeoutError:
        log.error("operator_stop_timed_out", limit_s=STOP_LIMIT_S)
        cluster.kill()
        # A thread may be at a lock or a slow disk; it holds nothing that the kernel does not free.
        os._exit(1)
