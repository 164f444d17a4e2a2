"""`flexinfer serve` and `flexinfer chat`."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Annotated

import typer

from flexinfer.fleet import FleetModel, FleetReplica
from flexinfer.log import configure
from flexinfer.places import Home
from flexinfer.settings import Settings, load, setting_files
from flexinfer_serving.chat import chat

__all__ = ["chat", "serve"]


def serve(
    fleet: Annotated[
        Path | None,
        typer.Option(
            "--fleet",
            metavar="FILE",
            help="A YAML file of Models and the addresses of their replicas; without it, this machine's operator.",
        ),
    ] = None,
) -> None:
    """Run the router: an OpenAI-compatible endpoint in front of the fleet.

    Example: flexinfer serve --fleet fleet.yaml
    """
    from flexinfer.exposure import check
    from flexinfer_serving.fleet import DemandSink, FleetSource
    from flexinfer_serving.forward import PooledForwarder
    from flexinfer_serving.router import Router, answers, installed_engine
    from flexinfer_serving.worker import run_until_signalled

    home = Home.find(os.environ)
    settings = load(Settings, os.environ, files=setting_files(home.root))
    configure(settings.log)
    check(settings.serve)
    source: FleetSource
    sink: DemandSink | None = None
    forwarder = PooledForwarder(connect_timeout_s=settings.serve.connect_timeout_s)
    if fleet is not None:
        from flexinfer_serving.fleet.static import StaticFleet

        async def probe(model: FleetModel, replica: FleetReplica) -> bool:
            return await answers(forwarder, installed_engine(model.backend), replica)

        source = static = StaticFleet(fleet, probe=probe)
        static.read()  # a bad file is refused before the port is taken
    else:
        from flexinfer_serving.fleet.local import LocalFleet

        source = sink = LocalFleet(home.operator_socket)

    async def run() -> None:
        router = Router(
            section=settings.serve,
            source=source,
            sink=sink,
            lease_ttl_s=settings.operator.lease_ttl_s,
            forwarder=forwarder,
        )
        await run_until_signalled(router)

    asyncio.run(run())
