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
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

import httpx

from flexinfer.clock import Clock
from flexinfer.errors import FlexInferError, ProcessFailed, ResourceExhausted, Unavailable
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
from flexinfer.up.ending import failure
from flexinfer_pipelines import prefect_database

log = get_logger(__name__)
HOST = "127.0.0.1"
_POLL_S = 0.25
PORTS_TRIED = 20
_HEALTH_S = 5.0
# `up` and another build start one in a few seconds; who waits no longer need not know.
_SILENT_S = 1.0
_LINES = 20


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
        prefect_database.VARIABLE: prefect_database.url(home),
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
    home: Home,
    settings: Settings,
    environ: Mapping[str, str],
    clock: Clock,
    say: Callable[[str], None] = lambda _: None,
) -> AsyncIterator[Found]:
    """Yield a Prefect API that answers. Ours is started as soon as nobody runs it, and ended with this context.

    *say* is told what is waited for, where it takes more than a moment.

    Raises:
        Unavailable: codes `prefect_unreachable`, `prefect_not_ready`.
        ProcessFailed: code `prefect_failed`, with its last words. FlexInferError: what our server refused.
    """
    found = await find(home, environ)
    if found is not None:
        yield found
        return
    wait = _Wait(home, settings, environ, clock, say, may_start=True)
    try:
        yield await wait.answer()
    finally:
        if wait.child is not None:
            await wait.child.stop(5.0)


async def wait_for(
    home: Home, settings: Settings, environ: Mapping[str, str], clock: Clock
) -> Found:
    """Return the Prefect API when it answers; nothing is started. Raises as `available`."""
    return await _Wait(home, settings, environ, clock, lambda _: None).answer()


@dataclass(slots=True)
class _Wait:
    """The way to an API that answers: another's server, or one of our own once nobody has the lock.

    Two that wait may both start one. The server that does not get the lock waits for it; its owner uses the other.
    """

    home: Home
    settings: Settings
    environ: Mapping[str, str]
    clock: Clock
    say: Callable[[str], None]
    may_start: bool = False
    child: Child | None = None
    _has_told: bool = False

    async def answer(self) -> Found:
        began_s = since_s = self.clock.now_s()
        while True:
            if (found := await find(self.home, self.environ)) is not None:
                return found
            if self.child is not None and self.child.returncode is not None:
                raise _ended(self.child, self.child.returncode, self.home, self.environ)
            now_s = self.clock.now_s()
            held = holder(self.home.prefect_lock)
            if held is None and self.child is None and self.may_start:
                await self._start()
                since_s = now_s  # it has the whole time, however long another's was waited for
            elif held is not None and self._is_anothers(held) and now_s - began_s >= _SILENT_S:
                self._tell(held)
            if now_s - since_s > self.settings.prefect.start_timeout_s:
                raise Unavailable(
                    f"Prefect's server does not answer after {self.settings.prefect.start_timeout_s:g} s; see "
                    f"{self.home.log('prefect')}, or set FLEXINFER_PREFECT__START_TIMEOUT_S",
                    code="prefect_not_ready",
                )
            await asyncio.sleep(_POLL_S)

    async def _start(self) -> None:
        spec = server_spec(self.home, self.settings.prefect.port, self.environ)
        self.child = await start(spec)
        if self._has_told:
            self.say("starting Prefect")

    def _is_anothers(self, held: Mapping[str, object]) -> bool:
        return self.child is None or held.get("pid", self.child.pid) != self.child.pid

    def _tell(self, held: Mapping[str, object]) -> None:
        if self._has_told:
            return
        self._has_told = True
        who = f"process {held['pid']}" if "pid" in held else "another process"
        log.info("prefect_awaited", holder=who, lock=str(self.home.prefect_lock))
        self.say(f"waiting for Prefect ({who})")


def _ended(child: Child, code: int, home: Home, environ: Mapping[str, str]) -> FlexInferError:
    """Return the error for our server that ended with *code* before it answered: its own, if it said one."""
    said = [line for line in child.tail(_LINES) if line.strip()]
    if said and said[-1].startswith("error["):
        return failure("Prefect's server", code=code, times=1, said=said[-1:])
    words = said[-1].strip() if said else "it said nothing"
    return ProcessFailed(
        f"Prefect's server ended with {code}: {words}; see {home.log('prefect')}; "
        f"{prefect_database.remedy(home, environ)}",
        code="prefect_failed",
    )


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
