"""Watch an engine's process: its load until it answers, then whether it goes on answering, and its end."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

from flexinfer.engine import Substage
from flexinfer.launching import RunningEngine, probe
from flexinfer.process import Progress
from flexinfer_operator.local.hearing import Hearing

if TYPE_CHECKING:
    from flexinfer_operator.local.replica import Replica

# How often a loading engine's log is read: the load's end is noticed this much late.
_TICK_S = 0.015
_SLOW_TICK_S = 0.05
_SLOW_AFTER_S = 10.0
_PROBE_EVERY_S = 0.25
_USAGE_EVERY_S = 0.5
_PROBE_LISTENING_S = 0.03


async def watch(
    replica: Replica, running: RunningEngine, *, started_s: float | None = None
) -> None:
    """Watch the load until it is ready, then whether it answers, and return when the process has ended."""
    ending = asyncio.ensure_future(running.child.wait())
    watching = asyncio.ensure_future(_watched(replica, running, started_s, ending))
    try:
        await asyncio.wait({ending, watching}, return_when=asyncio.FIRST_COMPLETED)
        if watching.done() and not ending.done():
            watching.result()  # a bug: it never ends by itself
        await ending
    finally:
        for task in (watching, ending):
            task.cancel()
        await asyncio.gather(watching, ending, return_exceptions=True)


async def _watched(
    replica: Replica, running: RunningEngine, started_s: float | None, ending: asyncio.Future[int]
) -> None:
    await _loaded(replica, running)
    if ending.done():
        return
    if started_s is not None:
        replica.phases["load"] = replica.means.clock.now_s() - started_s
    replica.become_ready()
    await _keep_asking(replica, running)


async def _loaded(replica: Replica, running: RunningEngine) -> None:
    """Return when the engine answers its probe; note every sign of progress meanwhile."""
    clock = replica.means.clock
    began_s = clock.now_s()
    reader = running.child.reader()
    next_probe_s = began_s + _PROBE_EVERY_S if not replica.is_adopted else began_s
    next_usage_s = began_s + _USAGE_EVERY_S
    probe_every_s = _PROBE_EVERY_S
    while True:
        now_s = clock.now_s()
        for line in reader.read() if reader is not None else ():
            stage = replica.engine.substage(line)
            if stage is not None:
                replica.enter(stage)
                if stage is Substage.HEALTH_CHECK_PENDING:
                    probe_every_s, next_probe_s = _PROBE_LISTENING_S, now_s
        if now_s >= next_probe_s:
            next_probe_s = now_s + probe_every_s
            if await probe(running, running.readiness, replica.means.client):
                return
        if now_s >= next_usage_s:
            next_usage_s = now_s + _USAGE_EVERY_S
            usage = await asyncio.to_thread(running.child.usage)
            if usage is not None:
                replica.progress.uses(usage, now_s=clock.now_s())
        await asyncio.sleep(_SLOW_TICK_S if now_s - began_s > _SLOW_AFTER_S else _TICK_S)


async def _keep_asking(replica: Replica, running: RunningEngine) -> None:
    """Ask a ready engine again and again whether it lives: at its pace, and when a router suspects it."""
    clock, pace = replica.means.clock, replica.means.pace
    hearing = Hearing(pace=pace)
    work = Progress(at_s=clock.now_s())
    while True:
        await _pause(replica, hearing)
        began_s = clock.now_s()
        is_first = hearing.silence is None
        asking = asyncio.create_task(
            probe(
                running,
                replace(running.readiness, timeout_s=pace.timeout_s),
                replica.means.client,
            )
        )
        try:
            await asyncio.wait({asking}, timeout=pace.quick_s)
            is_slow = not asking.done()
            # A first sample has nothing to be compared with.
            moved = is_slow and await _moves(running, work) and not is_first
            answered = await asking
        finally:
            if not asking.done():
                asking.cancel()
                await asyncio.wait({asking})
        if answered:
            hearing.answered()
        else:
            moved = (await _moves(running, work) and (is_slow or not is_first)) or moved
            hearing.unanswered(began_s=began_s, ended_s=clock.now_s(), moved=moved)
        replica.hear(hearing.silence)


async def _pause(replica: Replica, hearing: Hearing) -> None:
    clock, pace = replica.means.clock, hearing.pace
    began_s = clock.now_s()
    planned_s = hearing.pause_s()
    least_s = min(pace.again_s, planned_s)
    await asyncio.sleep(least_s)
    if planned_s > least_s:
        try:
            async with asyncio.timeout(planned_s - least_s):
                await replica.suspected.wait()
        except TimeoutError:
            pass
    replica.suspected.clear()
    hearing.paused(planned_s=planned_s, took_s=clock.now_s() - began_s)


async def _moves(running: RunningEngine, work: Progress) -> bool:
    """Return whether the engine used processor time since the last call. What the system does not tell counts as
    used: only the longer limit replaces it then."""
    usage = await asyncio.to_thread(running.child.usage)
    return usage is None or work.computes(usage)
