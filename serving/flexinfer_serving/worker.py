"""One router process: two listeners, the fleet's news, and an orderly end.

start    bind both ports (who has a taken one is named), hear of the fleet, say `router_ready`
SIGTERM  or SIGINT, or the parent is gone: `/readyz` is 503 at once; the listener stays open for `drain_delay_s`;
         requests in flight get `drain_timeout_s`; then streams end with an error event; exit code 0
again    a second signal ends the process at once, with code 1
"""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import suppress

from flexinfer.exposure import check
from flexinfer.log import get_logger
from flexinfer.process import watch_lifeline
from flexinfer_serving.app import create_admin_app, create_app
from flexinfer_serving.listener import Listener, ListenerConfig, allow_files, bind
from flexinfer_serving.router import Router

log = get_logger(__name__)

_FAREWELL_S = 3.0
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Worker:
    """See the module. `run` binds, serves and ends; `end` begins the end from outside."""

    def __init__(self, router: Router) -> None:
        check(router.section)
        self._router = router
        self._section = router.section
        self._ending = asyncio.Event()
        self.public_port = 0
        self.admin_port = 0
        self.is_serving = asyncio.Event()

    @property
    def is_ending(self) -> bool:
        return self._ending.is_set()

    def end(self) -> None:
        """Begin an orderly end. Idempotent."""
        self._ending.set()

    async def run(self) -> None:
        """Serve until `end`, then drain.

        Raises:
            InvalidInput: codes `port_taken`, `bind_failed`.
        """
        section = self._section
        public = bind(section.host, section.port, setting="FLEXINFER_SERVE__PORT")
        try:
            admin = bind(
                section.admin_host, section.admin_port, setting="FLEXINFER_SERVE__ADMIN_PORT"
            )
        except Exception:
            public.close()
            raise
        self.public_port = public.getsockname()[1]
        self.admin_port = admin.getsockname()[1]
        servers = (
            self._listener(create_app(self._router)),
            self._listener(create_admin_app(self._router)),
        )
        tasks = [
            asyncio.ensure_future(server.serve(sockets=[bound]))
            for server, bound in zip(servers, (public, admin), strict=True)
        ]
        fleet = asyncio.ensure_future(self._router.run())
        ending = asyncio.ensure_future(self._ending.wait())
        try:
            await self._started(servers, tasks)
            await asyncio.wait([*tasks, fleet, ending], return_when=asyncio.FIRST_COMPLETED)
            await self._drain(servers)
            await asyncio.wait(tasks, timeout=_FAREWELL_S + section.drain_timeout_s)
        finally:
            for task in (*tasks, fleet, ending):
                task.cancel()
            results = await asyncio.gather(*tasks, fleet, ending, return_exceptions=True)
            public.close()
            admin.close()
        for result in results:
            if isinstance(result, Exception):
                raise result
        log.info("router_stopped")

    def _listener(self, app: object) -> Listener:
        limit_s = self._section.drain_timeout_s + _FAREWELL_S
        return Listener(ListenerConfig(app, self._section, drain_timeout_s=limit_s))

    async def _started(
        self, servers: tuple[Listener, ...], tasks: list[asyncio.Task[None]]
    ) -> None:
        while not all(server.started for server in servers):
            if any(task.done() for task in tasks):
                return
            await asyncio.sleep(0.005)
        url = f"http://{_shown(self._section.host)}:{self.public_port}/v1"
        admin = f"http://{_shown(self._section.admin_host)}:{self.admin_port}"
        self.is_serving.set()
        log.info("router_ready", url=url, admin=admin)

    async def _drain(self, servers: tuple[Listener, ...]) -> None:
        """1. not ready  2. still listening  3. finish what runs  4. end what still runs  5. close."""
        public, admin = servers
        router, section = self._router, self._section
        router.begin_end()
        log.info("router_draining", active=len(router.active))
        await asyncio.sleep(section.drain_delay_s)
        public.should_exit = True
        with suppress(TimeoutError):
            async with asyncio.timeout(section.drain_timeout_s):
                await router.settled()
        if router.active:
            log.warning("requests_cut_off", active=len(router.active))
            router.stop()
            with suppress(TimeoutError):
                async with asyncio.timeout(_FAREWELL_S):
                    await router.settled()
        admin.should_exit = True


async def run_until_signalled(router: Router) -> None:
    """Run a worker whose end is a signal, or its parent's end."""
    worker = Worker(router)
    allow_files(router.section.max_connections)
    loop = asyncio.get_running_loop()

    def signalled() -> None:
        if worker.is_ending:
            log.warning("router_killed")
            os._exit(1)
        worker.end()

    for number in _SIGNALS:
        loop.add_signal_handler(number, signalled)
    watch_lifeline(loop, worker.end)
    try:
        await worker.run()
    finally:
        for number in _SIGNALS:
            loop.remove_signal_handler(number)


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host
