"""The router's parts, put together: what every request needs, and the state of the process."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from typing import Protocol

from flexinfer.clock import Clock, SystemClock
from flexinfer.engine import ENGINES, Engine
from flexinfer.errors import PluginError, Unavailable, UnknownPlugin
from flexinfer.fleet import FleetModel, FleetReplica
from flexinfer.metrics import Metrics
from flexinfer.settings import ServeSection
from flexinfer_serving.admission.budget import RetryBudget
from flexinfer_serving.dispatch import Dispatcher
from flexinfer_serving.explain import Decisions
from flexinfer_serving.fleet import DemandSink, FleetSource
from flexinfer_serving.forward import Forwarder, Head, PooledForwarder
from flexinfer_serving.openai.request import TokenLimits

_PROBE_TIMEOUT_S = 2.0


class Stoppable(Protocol):
    def stop(self) -> None: ...


def installed_engine(name: str) -> Engine:
    """Return the plug-in of that name. Raises what `Registry.get` raises."""
    return ENGINES.get(name)()


class Router:
    """One worker. `run` keeps it in touch with its fleet; `begin_drain` and `stop` end it."""

    def __init__(
        self,
        *,
        section: ServeSection,
        source: FleetSource,
        sink: DemandSink | None,
        lease_ttl_s: float = 10.0,
        clock: Clock | None = None,
        metrics: Metrics | None = None,
        forwarder: Forwarder | None = None,
        engine_named: Callable[[str], Engine] = installed_engine,
    ) -> None:
        self.section = section
        self.clock = clock or SystemClock()
        self.metrics = metrics or Metrics()
        self.decisions = Decisions()
        self.retries = RetryBudget()
        self.forwarder = forwarder or PooledForwarder(connect_timeout_s=section.connect_timeout_s)
        self.tokens = TokenLimits(
            default=section.default_max_tokens, maximum=section.max_max_tokens
        )
        self.active: set[Stoppable] = set()
        self.is_ending = False
        self._is_drain_wanted = False
        self._source = source
        self._engine_named = engine_named
        self._engines: dict[str, Engine] = {}
        self.dispatcher = Dispatcher(
            router=f"router-{secrets.token_hex(6)}",
            section=section,
            lease_ttl_s=lease_ttl_s,
            clock=self.clock,
            metrics=self.metrics,
            sink=sink,
            probe=self._probe,
        )
        self.metrics.set("flexinfer_fleet_connected", 0)

    @property
    def is_ready(self) -> bool:
        return not self.is_draining and self.dispatcher.snapshot is not None

    @property
    def is_draining(self) -> bool:
        """Whether no new requests are wanted: somebody said so, or the process ends."""
        return self._is_drain_wanted or self.is_ending

    def engine(self, model: FleetModel) -> Engine:
        """Return the plug-in that talks to *model*'s replicas.

        Raises:
            PluginError: code `engine_not_installed`, or what `engine_named` raises.
        """
        if model.backend not in self._engines:
            try:
                self._engines[model.backend] = self._engine_named(model.backend)
            except UnknownPlugin as error:
                raise PluginError(
                    f"model {model.name!r}: engine {model.backend!r} is not installed with this router",
                    code="engine_not_installed",
                ) from error
        return self._engines[model.backend]

    async def run(self) -> None:
        """Follow the fleet until cancelled, then let go of everything."""
        try:
            await self._source.run(self.dispatcher)
        finally:
            self.dispatcher.close()
            await self.forwarder.close()

    def begin_drain(self) -> None:
        """Say that no new requests are wanted; those that come are still served. Idempotent."""
        self._is_drain_wanted = True

    def end_drain(self) -> None:
        """Take `begin_drain` back. Idempotent.

        Raises:
            Unavailable: code `router_stopping`: the process ends, and that is not taken back.
        """
        if self.is_ending:
            raise self.stopping_error()
        self._is_drain_wanted = False

    def begin_end(self) -> None:
        """Say that the process ends: as `begin_drain`, and for good."""
        self.is_ending = True

    def stop(self) -> None:
        """End what still runs, each with an error that says so."""
        self.begin_end()
        for exchange in tuple(self.active):
            exchange.stop()

    async def settled(self) -> None:
        """Return when no request runs any more."""
        while self.active:
            await asyncio.sleep(0.02)

    def stopping_error(self) -> Unavailable:
        return Unavailable("the router is shutting down", code="router_stopping", retry_after_s=1.0)

    async def _probe(self, model: FleetModel, replica: FleetReplica) -> bool:
        return await answers(self.forwarder, self.engine(model), replica)


async def answers(forwarder: Forwarder, engine: Engine, replica: FleetReplica) -> bool:
    """Return whether *replica* answers its health probe, other than that it is not ready."""
    head = Head(method="GET", path=engine.probe_path, headers=proof(engine, replica))
    return await forwarder.answers(head, replica, timeout_s=_PROBE_TIMEOUT_S)


def proof(engine: Engine, replica: FleetReplica) -> tuple[tuple[bytes, bytes], ...]:
    """Return the headers that prove the router to *replica*; none where it has no key."""
    headers = engine.headers(replica.key) if replica.key else {}
    return tuple((n.lower().encode("latin-1"), v.encode("latin-1")) for n, v in headers.items())
