"""Run a program to its end, within a time."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from flexinfer.errors import ProcessFailed
from flexinfer.process.launch import start
from flexinfer.process.spec import ProcessSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """How a program ended, and the last lines that it wrote."""

    returncode: int
    lines: tuple[str, ...]


async def run(spec: ProcessSpec, *, timeout_s: float) -> Finished:
    """Start *spec*, wait for its end and return it, whatever its exit status. Cancelled, it stops the group.

    Raises:
        ProcessFailed: code `process_timeout`, after the group was stopped; and what `start` raises.
    """
    child = await start(spec)
    try:
        async with asyncio.timeout(timeout_s):
            returncode = await child.wait()
    except TimeoutError as error:
        await child.stop()
        raise ProcessFailed(
            f"process {spec.name}: still running after {timeout_s:g} s, stopped",
            code="process_timeout",
        ) from error
    except asyncio.CancelledError:
        await child.stop()
        raise
    return Finished(returncode=returncode, lines=child.tail(100))
