"""Run the flow in this process, against the user's Prefect API or ours; serve its deployment."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from contextlib import suppress

import httpx

from flexinfer.clock import SystemClock
from flexinfer.errors import Unavailable
from flexinfer.log import get_logger
from flexinfer.places import Home
from flexinfer.programs import BUILD, forget_unread
from flexinfer.settings import Settings
from flexinfer_pipelines import prefect_server
from flexinfer_pipelines.recorded import recorded
from flexinfer_pipelines.steps import STAGES, Progress

log = get_logger(__name__)
DEPLOYMENT = "build"
_FLUSH_S = 5.0


async def run(
    target: str,
    *,
    rebuild: bool,
    home: Home,
    settings: Settings,
    environ: Mapping[str, str],
    progress: Progress,
) -> str:
    """Run the flow for *target* and return the artifact's digest.

    Raises:
        FlexInferError: what a step raises. Unavailable, ProcessFailed: no Prefect API. Unavailable, code
            `prefect_lost`: it was there, and does not answer any more.
    """

    def say(note: str) -> None:
        progress.moved(STAGES[0], 0.0, None, note)  # what is recorded has no stage yet

    server = prefect_server.available(home, settings, environ, SystemClock(), say)
    with recorded(target, home, progress) as told:
        async with server as api:
            _tell(home, api)
            from flexinfer_pipelines.flows.build import build_flow, watcher
            from flexinfer_pipelines.flows.orphans import end_orphans

            await end_orphans(home)
            watcher.set(told)
            try:
                found: str = await build_flow(target, rebuild)
                return found
            except Exception as error:
                if is_lost(error):
                    raise Unavailable(
                        f"Prefect's server at {api.url} went away during the build of {target}; what is done is kept: "
                        "run the same command again",
                        code="prefect_lost",
                    ) from error
                raise
            finally:
                await _tell_the_rest()


def is_lost(error: BaseException) -> bool:
    """Return whether *error* is how Prefect's client says that its server does not answer any more."""
    if isinstance(error, httpx.TransportError):
        return True
    return isinstance(error, RuntimeError) and "reach API" in str(error)


async def serve(home: Home, settings: Settings, environ: Mapping[str, str]) -> None:
    """Serve the flow's deployment until told to stop: what the UI and `prefect deployment run` start."""
    api = await _api(home, settings, environ)
    _tell(home, api)
    from flexinfer_pipelines.flows.build import build_flow
    from flexinfer_pipelines.flows.orphans import watch
    from flexinfer_pipelines.flows.runner import Runner

    deployment = await build_flow.to_deployment(  # type: ignore[misc]
        name=DEPLOYMENT,
        description="Build a catalog entry (entry/variant) or any source into a verified artifact.",
        tags=["flexinfer"],
    )
    runner = Runner(limit=1)
    await runner.aadd_deployment(deployment)
    log.info("deployment_served", deployment=f"{build_flow.name}/{DEPLOYMENT}", api=api.url)
    watching = asyncio.create_task(watch(home))
    try:
        await runner.start()
    finally:
        watching.cancel()


async def _api(home: Home, settings: Settings, environ: Mapping[str, str]) -> prefect_server.Found:
    return await prefect_server.wait_for(home, settings, environ, SystemClock())


async def _tell_the_rest() -> None:
    """Send what Prefect has queued of this run, before a server that was started for it ends; then nothing more."""
    import logging

    from prefect.events.worker import EventsWorker
    from prefect.logging.handlers import APILogHandler

    with suppress(TimeoutError):
        async with asyncio.timeout(_FLUSH_S):
            await APILogHandler.aflush()
            await EventsWorker.drain_all(at_exit=False)  # type: ignore[misc]  # awaitable within a loop
    # What is logged from here on would reach no server, and be told on the terminal after our own last line.
    for name in ("", *logging.root.manager.loggerDict):
        logger = logging.getLogger(name)
        for handler in [one for one in logger.handlers if isinstance(one, APILogHandler)]:
            logger.removeHandler(handler)


def _tell(home: Home, api: prefect_server.Found) -> None:
    """Set what Prefect reads when it is imported: in this process and for the runs that it starts."""
    forget_unread(BUILD, os.environ)
    os.environ.update(prefect_server.environment(home, os.environ))
    os.environ["PREFECT_API_URL"] = api.url
