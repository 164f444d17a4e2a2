"""Our Prefect server: how it is found, how it is started, how a stranger on its port is told apart. No Prefect here.

    PREFECT_API_URL set         that server is the user's own: it is used
    <home>/run/prefect.json     written by `flexinfer pipelines server`: process and address of ours
    <home>/run/prefect.lock     the kernel's lock that it holds: one server for one database

A server is ours when the process of the record runs, holds the port of the record, and answers there.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

import httpx

from flexinfer.clock import Clock
from flexinfer.errors import ProcessFailed, ResourceExhausted, Unavailable
from flexinfer.files import replace_json
from flexinfer.log import get_logger
from flexinfer.places import Home
from flexinfer.process import (
    Child,
    ProcessSpec,
    groups_listening,
    holder,
    procfs,
    start,
    who_listens,
)
from flexinfer.programs import PREFECT_SERVER, environment_for
from flexinfer.settings import Settings

log = get_logger(__name__)
HOST = "127.0.0.1"
_POLL_S = 0.25
PORTS_TRIED = 20
_HEALTH_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A Prefect API that answers."""

    url: str
    """Ends with `/api`."""
    is_users: bool = False
    """The user named it; otherwise it is ours."""


def environment(home: Home, environ: Mapping[str, str]) -> dict[str, str]:
    """Return what Prefect must be told, for its server and for what talks to it: state below the home, no
    telemetry, quiet. What the user has set stays."""
    wanted = {
        "PREFECT_HOME": str(home.prefect),
        "PREFECT_API_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{home.prefect}/prefect.db",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_LOGGING_LEVEL": "WARNING",
        "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
        "PREFECT_RUNNER_POLL_FREQUENCY": "2",
        "PREFECT_CLI_COLORS": "false",
        # Its own home holds no profile of the user's; theirs must not leak into ours.
        "PREFECT_PROFILES_PATH": str(home.prefect / "profiles.toml"),
    }
    return {name: environ.get(name, value) for name, value in wanted.items()}


def server_spec(home: Home, port: int, environ: Mapping[str, str]) -> ProcessSpec:
    """Return the process that runs our server at *port*, or at the next free one."""
    return ProcessSpec(
        name="prefect",
        argv=(sys.executable, "-P", "-m", "flexinfer", "pipelines", "server"),
        environment={
            **environment_for(PREFECT_SERVER, home.root, environ=environ),
            "FLEXINFER_PREFECT__PORT": str(port),
        },
        cwd=home.root,
        log_path=home.log("prefect"),
        nice=5,
    )


async def find(home: Home, environ: Mapping[str, str]) -> Found | None:
    """Return the Prefect API to use, if it answers now: the user's, else ours.

    Raises:
        Unavailable: code `prefect_unreachable`: the user's own does not answer.
    """
    named = environ.get("PREFECT_API_URL", "").rstrip("/")
    if named:
        if not await _answers(named, trust_env=True):
            raise Unavailable(
                f"PREFECT_API_URL {named}: expected an answer at {named}/health; start that server, or "
                "unset the variable to use our own",
                code="prefect_unreachable",
            )
        return Found(url=named, is_users=True)
    record = read_record(home)
    if record is None or not await asyncio.to_thread(record.holds_port):
        return None
    return Found(url=record.url) if await _answers(record.url, trust_env=False) else None


@asynccontextmanager
async def available(
    home: Home, settings: Settings, environ: Mapping[str, str], clock: Clock
) -> AsyncIterator[Found]:
    """Yield a Prefect API that answers. Ours is started if nobody runs it, and ended with this context.

    Raises:
        Unavailable: codes `prefect_unreachable`, `prefect_not_ready`.
        ProcessFailed: code `prefect_failed`, with its last words.
    """
    found = await find(home, environ)
    if found is not None:
        yield found
        return
    child: Child | None = None
    if holder(home.prefect_lock) is None:
        child = await start(server_spec(home, settings.prefect.port, environ))
    try:
        yield await _wait(home, settings, environ, clock, child)
    finally:
        if child is not None:
            await child.stop(5.0)


async def wait_for(
    home: Home, settings: Settings, environ: Mapping[str, str], clock: Clock
) -> Found:
    """Return the Prefect API when it answers; nothing is started. Raises as `available`."""
    return await _wait(home, settings, environ, clock, None)


async def _wait(
    home: Home, settings: Settings, environ: Mapping[str, str], clock: Clock, child: Child | None
) -> Found:
    until = clock.now_s() + settings.prefect.start_timeout_s
    while True:
        found = await find(home, environ)
        if found is not None:
            return found
        if child is not None and child.returncode is not None:
            words = " | ".join(child.tail(8))
            raise ProcessFailed(
                f"Prefect's server ended with {child.returncode}: {words}", code="prefect_failed"
            )
        if clock.now_s() > until:
            raise Unavailable(
                f"Prefect's server does not answer after {settings.prefect.start_timeout_s:g} s; see "
                f"{home.log('prefect')}, or set FLEXINFER_PREFECT__START_TIMEOUT_S",
                code="prefect_not_ready",
            )
        await asyncio.sleep(_POLL_S)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerRecord:
    """What `flexinfer pipelines server` writes of itself."""

    url: str
    port: int
    pid: int
    start_ticks: int
    boot_id: str

    def holds_port(self) -> bool:
        """Return whether that very process runs and listens there: a stranger never passes for it."""
        found = procfs.stat(self.pid)
        if found is None or found.started_at != self.start_ticks:
            return False
        if self.boot_id != procfs.boot_id() or not found.is_running:
            return False
        groups = groups_listening(self.port)
        return groups is None or found.group in groups


def write_record(home: Home, port: int) -> None:
    """Write down that this process serves at *port*."""
    found = procfs.stat(os.getpid())
    tree = {
        "url": f"http://{HOST}:{port}/api",
        "port": port,
        "pid": os.getpid(),
        "start_ticks": found.started_at if found is not None else 0,
        "boot_id": procfs.boot_id(),
    }
    replace_json(home.prefect_record, tree, durable=False)


def forget_record(home: Home) -> None:
    home.prefect_record.unlink(missing_ok=True)


def read_record(home: Home) -> ServerRecord | None:
    """Return what was written down last; None if nothing was, or nothing sensible."""
    try:
        tree = json.loads(home.prefect_record.read_text("utf-8"))
        return ServerRecord(
            url=str(tree["url"]),
            port=int(tree["port"]),
            pid=int(tree["pid"]),
            start_ticks=int(tree["start_ticks"]),
            boot_id=str(tree["boot_id"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def choose_port(wanted: int, *, tried: int = PORTS_TRIED) -> int:
    """Return *wanted*, or the next one that nobody holds; a stranger on it is named aloud. 0: any.

    Raises:
        ResourceExhausted: code `no_free_port`: *tried* ports are taken.
    """
    if wanted == 0:
        from flexinfer.process import free_port

        return free_port(HOST)
    for port in range(wanted, min(wanted + tried, 65536)):
        stranger = who_listens(port)
        if stranger is None:
            if port != wanted:
                log.warning(
                    "prefect_port_changed",
                    wanted=wanted,
                    port=port,
                    human=f"port {wanted} is taken by {who_listens(wanted)}; Prefect is at {port}",
                )
            return port
    raise ResourceExhausted(
        f"ports {wanted} to {wanted + tried - 1} are taken; choose with FLEXINFER_PREFECT__PORT",
        code="no_free_port",
    )


async def _answers(url: str, *, trust_env: bool) -> bool:
    try:
        async with httpx.AsyncClient(timeout=_HEALTH_S, trust_env=trust_env) as client:
            return (await client.get(f"{url}/health")).status_code == 200
    except httpx.HTTPError:
        return False
