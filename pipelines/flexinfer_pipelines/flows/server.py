"""Our Prefect server, in this process: its own database, on loopback, gone with its parent."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
from collections.abc import Awaitable, Callable
from typing import Any

from flexinfer.errors import Conflict, ProcessFailed
from flexinfer.log import get_logger
from flexinfer.places import Home
from flexinfer.process import SingleInstance, watch_lifeline_in_thread
from flexinfer.settings import Settings
from flexinfer_pipelines import prefect_database, prefect_server

log = get_logger(__name__)
_LOOK_EVERY_S = 1.0
_LAST_WORDS_S = 1.0


def serve(home: Home, settings: Settings) -> None:
    """Run until told to stop. Where another server of this home runs, wait for its end, then take over."""
    watch_lifeline_in_thread(_end_with_parent)
    asyncio.run(_serve(home, settings))


def _end_with_parent() -> None:
    """End well if it takes no second; the database survives being killed."""
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_LAST_WORDS_S)
    os._exit(1)


async def _serve(home: Home, settings: Settings) -> None:
    lock = await _turn(home)
    with lock:
        if prefect_database.is_ours(home, os.environ):
            prefect_database.put_damaged_aside(prefect_database.file(home))
        port = prefect_server.choose_port(settings.prefect.port)
        os.environ.update(prefect_server.environment(home, os.environ))
        os.environ["PREFECT_API_URL"] = os.environ["PREFECT_UI_API_URL"] = (
            f"http://{prefect_server.HOST}:{port}/api"
        )
        # Prefect reads the environment when it is imported.
        import uvicorn
        from prefect.server.api.server import create_app

        app = _Watched(create_app(final=True))
        config = uvicorn.Config(
            app,
            host=prefect_server.HOST,
            port=port,
            log_level="warning",
            timeout_graceful_shutdown=3,
        )
        lock.update({"what": "Prefect's server", "address": f"http://{prefect_server.HOST}:{port}"})
        prefect_server.write_record(home, port)
        log.info("prefect_starting", port=port)
        # Its scheduler tells of every tick, ten a second.
        logging.getLogger("docket").setLevel(logging.WARNING)
        # The server raises the signal that ended it once more when it is done: it must not end us before our own end.
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, _ignore)
        try:
            await uvicorn.Server(config).serve()
        except SystemExit as error:
            # How it says that it could not start; the log has the traceback.
            why = app.failed or f"it ended with {error.code}; see {home.log('prefect')}"
            raise ProcessFailed(
                f"Prefect cannot start: {why}; {prefect_database.remedy(home, os.environ)}",
                code="prefect_failed",
            ) from error
        finally:
            prefect_server.forget_record(home)


class _Watched:
    """An ASGI app, and why its start failed: uvicorn only logs that."""

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self._app = app
        self.failed = ""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass on what comes."""
        try:
            await self._app(scope, receive, send)
        except Exception as error:
            if scope["type"] == "lifespan":
                # SQLAlchemy's further lines are about itself.
                words = str(error).strip().splitlines() or [type(error).__name__]
                self.failed = words[0]
            raise


def _ignore() -> None:
    """Prefect's server has ended already."""


async def _turn(home: Home) -> SingleInstance:
    told = False
    while True:
        try:
            return SingleInstance.acquire(home.prefect_lock, {"what": "Prefect's server"})
        except Conflict as error:
            if not told:
                told = True
                log.info("prefect_waited", holder=error.message)
            await asyncio.sleep(_LOOK_EVERY_S)
