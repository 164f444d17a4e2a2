"""What the router of this machine answers: whether it is ready, and which Models it lists."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from contextlib import suppress

import httpx

from flexinfer.errors import Unavailable
from flexinfer.settings import ServeSection

READY_WITHIN_S = 60.0
LISTED_WITHIN_S = 60.0
_LOOK_EVERY_S = 0.1
_ANSWER_S = 5.0


async def until_served(serve: ServeSection, model: str) -> None:
    """Return when the router is ready and, where a *model* is named, lists it.

    Raises:
        Unavailable: as `until_ready` and `until_listed`.
    """
    await until_ready(serve)
    if model:
        await until_listed(model, serve.base_url, serve.authorization)


async def until_ready(serve: ServeSection, *, wait_s: float = READY_WITHIN_S) -> None:
    """Return when the admin listener says that the router is ready.

    Raises:
        Unavailable: code `router_not_ready`: not within *wait_s*.
    """
    deadline = time.monotonic() + wait_s
    url = serve.admin_address
    async with _client() as client:
        while True:
            # Asked once more behind the deadline: Ctrl-Z stops us and not the clock.
            is_late = time.monotonic() >= deadline
            with suppress(httpx.HTTPError):
                if (await client.get(f"{url}/readyz")).status_code == 200:
                    return
            if is_late:
                break
            await asyncio.sleep(_LOOK_EVERY_S)
    raise Unavailable(
        f"the router did not become ready at {url}/readyz within {wait_s:.0f} s; "
        "see `flexinfer logs serve`",
        code="router_not_ready",
    )


async def until_listed(
    name: str, url: str, headers: Mapping[str, str], *, wait_s: float = LISTED_WITHIN_S
) -> None:
    """Return when the router at *url* (`…/v1`) lists the Model *name*: its file is seen a moment after it is written.

    Raises:
        Unavailable: code `model_not_listed`: not within *wait_s*.
    """
    deadline = time.monotonic() + wait_s
    while True:
        is_late = time.monotonic() >= deadline
        seen = await models(url, headers)
        if name in seen:
            return
        if is_late:
            break
        await asyncio.sleep(_LOOK_EVERY_S)
    raise Unavailable(
        f"{url}/models does not list {name!r} after {wait_s:g} s (it lists: {', '.join(seen) or 'none'}); "
        "see `flexinfer logs operator`",
        code="model_not_listed",
    )


async def models(url: str, headers: Mapping[str, str]) -> tuple[str, ...]:
    """Return the Models that the router at *url* (`…/v1`) lists, the newest first; none where it does not answer."""
    async with _client() as client:
        with suppress(httpx.HTTPError, ValueError, KeyError, TypeError):
            answer = await client.get(f"{url}/models", headers=dict(headers))
            listed = sorted(answer.json()["data"], key=lambda model: -model.get("created", 0))
            return tuple(str(model["id"]) for model in listed)
    return ()


def _client() -> httpx.AsyncClient:
    # Loopback: the user's proxy has nothing to do with it.
    return httpx.AsyncClient(timeout=_ANSWER_S, trust_env=False)
