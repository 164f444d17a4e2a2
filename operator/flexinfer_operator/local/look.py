"""When the files are looked at: every moment, and at once when somebody asks."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

from flexinfer.log import get_logger

log = get_logger(__name__)

# The catalog is many files, and changes least.
_CATALOG_EVERY_LOOKS = 8


async def keep_looking(
    look: Callable[[bool], Awaitable[None]], asked: asyncio.Event, *, every_s: float
) -> None:
    """Call *look* until cancelled, with True when the catalog is due as well. One that fails is logged."""
    looks = 0
    while True:
        with suppress(TimeoutError):
            async with asyncio.timeout(every_s):
                await asked.wait()
        is_asked = asked.is_set()
        asked.clear()
        looks += 1
        try:
            await look(is_asked or looks % _CATALOG_EVERY_LOOKS == 0)
        except Exception as error:
            log.error("look_failed", exc_info=error)
