"""One run of `flexinfer up`, from the first check to the last child's end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from flexinfer.errors import FlexInferError, InvalidInput, ProcessFailed
from flexinfer.places import Home
from flexinfer.process import (
    Child,
    LogReader,
    ProcessSpec,
    Record,
    end,
    is_alive,
    start,
    who_listens,
)
from flexinfer.programs import BUILD, DRAWS, environment_for
from flexinfer.settings import Settings, exposed_keys, setting_files
from flexinfer.toolenv import ToolEnvironment
from flexinfer.up import router, starter
from flexinfer.up.ending import failure
from flexinfer.up.example import KEY_VARIABLE, curl
from flexinfer.up.services import Service, command, drain_s, restart_delay_s, services
from flexinfer.up.signals import Signals
from flexinfer.up.terminal import Follower, Terminal, installing, last_lines, own_name

TOOLS = ("llamacpp", "gguf")
_POLL_S = 0.1
_QUIET_STOP_S = 1.5
_HELD_S = 3.0
_QUESTION = "What is the capital of France? Answer briefly."


@dataclass(slots=True)
class _Running:
    service: Service
    child: Child | None = None
    said: LogReader | None = None
    """What it wrote since its last start."""
    exits_s: list[float] = field(default_factory=list)
    gave_up: bool = False
    not_started: FlexInferError | None = None
    """Why the last try to start it again failed."""


@dataclass(slots=True)
class Session:
    """Holds the home's lock while it lives (the caller acquires it)."""

    home: Home
    settings: Settings
    environ: Mapping[str, str]
    terminal: Terminal
    note: Callable[[str], None] = lambda _: None
    """Told what it is at, for `flexinfer status`; empty: it is ready."""
    delay_s: Callable[..., float | None] = restart_delay_s
    _running: dict[str, _Running] = field(default_factory=dict)
    _followers: list[Follower] = field(default_factory=list)
    _build: Child | None = None
    """The first one, while it runs."""
    _quiet: bool = False
    """What children say is not shown."""
    _is_held: bool = False
    """What children say is shown later."""
    _stop: asyncio.Event = field(default_factory=asyncio.Event)
    _failure: FlexInferError | None = None
    _bug: BaseException | None = None

    async def run(self) -> None:
        """Start everything, say `ready`, and return when it was told to stop and all has ended.

        Raises:
            InvalidInput: code `port_taken`.
            ProcessFailed: an essential child cannot be kept running, or the first build failed.
        """
        with Signals(self._stop, self._kill_all):
            try:
                await self._end_orphans()
                self._warn_of_exposed_keys()
                self._check_ports()
                await self._until_stopped(self._start_all())
                if not self._stop.is_set():
                    await self._stop.wait()
            finally:
                await self._stop_all()
        if (error := self._failure or self._bug) is not None:
            raise error

    async def _start_all(self) -> None:
        self.note("installing the tools")
        await self._prepare_tools()
        self.note("starting")
        for service in services(self.settings, self.environ):
            await self._start(service)
        watchers = [asyncio.create_task(self._watch(r)) for r in self._running.values()]
        watchers.append(asyncio.create_task(self._follow()))
        for watcher in watchers:
            watcher.add_done_callback(self._watcher_ended)
        try:
            await router.until_served(self.settings.serve, await self._first_build())
            self.note("")
            await self._say_ready(await self._a_model())
            await self._stop.wait()
        finally:
            for watcher in watchers:
                watcher.cancel()
            await asyncio.gather(*watchers, return_exceptions=True)

    async def _until_stopped(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        stopped = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait({task, stopped}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in (task, stopped):
                one.cancel()
            results = await asyncio.gather(task, stopped, return_exceptions=True)
        if isinstance(results[0], Exception):
            raise results[0]

    # -- before anything starts

    async def _end_orphans(self) -> None:
        """End what an earlier `up` left behind when it was killed. Engines are the operator's to adopt."""
        folder = self.home.up_records
        folder.mkdir(mode=0o700, exist_ok=True)
        left = []
        for file in sorted(folder.glob("*.json")):
            with suppress(InvalidInput):  # half written when its writer was killed
                record = Record.read(file)
                if record is not None:
                    left.append(record)
        if running := [record.name for record in left if is_alive(record)]:
            self.terminal.say(f"ending what was left running: {', '.join(running)}")
        await asyncio.gather(*(end(record, grace_s=5.0) for record in left))
        for file in folder.glob("*.json"):
            file.unlink(missing_ok=True)

    def _check_ports(self) -> None:
        wanted = (
            ("router", self.settings.serve.port, "FLEXINFER_SERVE__PORT"),
            ("admin listener", self.settings.serve.admin_port, "FLEXINFER_SERVE__ADMIN_PORT"),
        )
        for what, port, variable in wanted:
            if port and (holder := who_listens(port)) is not None:
                raise InvalidInput(
                    f"port {port} for the {what} is taken by {holder}; "
                    f"end it or choose another with {variable}",
                    code="port_taken",
                )

    def _warn_of_exposed_keys(self) -> None:
        for file in exposed_keys(setting_files(self.home.root)):
            self.terminal.say(
                f"{file} holds API keys and others can read it; make it yours alone: chmod 600 {file}"
            )

    async def _prepare_tools(self) -> None:
        for name in TOOLS:
            environment = ToolEnvironment.named(name)
            last = [0.0]

            def progress(line: str, name: str = name, last: list[float] = last) -> None:
                said = installing(line)
                if said and time.monotonic() - last[0] > 1:
                    last[0] = time.monotonic()
                    self.terminal.say(f"tools {name}: {said}")

            await environment.ensure_async(self.home, on_line=progress)

    # -- children

    async def _start(self, service: Service) -> None:
        running = self._running.setdefault(service.name, _Running(service))
        log_path = self.home.log(service.name)
        self._followers = [f for f in self._followers if f.name != service.name]
        self._followers.append(Follower.at_end(service.name, log_path))
        running.said = LogReader(log_path, at_end=True)
        spec = ProcessSpec(
            name=service.name,
            argv=command(service),
            environment=self._environment(service),
            cwd=Path.cwd(),
            log_path=log_path,
            grace_s=service.grace_s,
        )
        running.child = await start(spec)
        Record.of(running.child).write(self.home.up_records / f"{service.name}.json")

    def _environment(self, service: Service, *names: str) -> dict[str, str]:
        found = environment_for(service.reads, self.home.root, *names, environ=self.environ)
        # What we tell on the terminal is read from their logs.
        return {**found, "FLEXINFER_LOG__FORMAT": "json", "PYTHONUNBUFFERED": "1"}

    async def _watch(self, running: _Running) -> None:
        """Start a child again that ended by itself, later each time, and not for ever."""
        while not self._stop.is_set():
            assert running.child is not None
            code = await running.child.wait()
            if self._stop.is_set():
                return
            now_s = time.monotonic()
            running.exits_s = [*running.exits_s, now_s][-16:]
            delay_s = self.delay_s(running.exits_s, now_s=now_s, code=code)
            name = running.service.name
            if delay_s is None:
                self._give_up(running, code)
                return
            self.terminal.say(f"{name} ended with {code}; starting it again in {delay_s:.1f} s")
            await asyncio.sleep(delay_s)
            try:
                running.not_started = None
                await self._start(running.service)
            except FlexInferError as error:
                # The end that it had counts once more; where it did start, this goes on with the new one.
                running.not_started = error
                self.terminal.say(f"{name} cannot be started again: {error.message}")

    def _watcher_ended(self, watcher: asyncio.Task[None]) -> None:
        """Nobody would see what it no longer watches: its error is the end of all."""
        if not watcher.cancelled() and (error := watcher.exception()) is not None:
            self._bug = self._bug or error
            self._stop.set()

    def _give_up(self, running: _Running, code: int) -> None:
        running.gave_up = True
        name, said = running.service.name, last_lines(running.said)
        why = running.not_started or failure(name, code=code, times=len(running.exits_s), said=said)
        if running.service.is_essential:
            self._failure = why
            self._stop.set()
        else:
            self.terminal.say(f"{why.message}\ngoing on without it; see `flexinfer logs {name}`")

    async def _follow(self) -> None:
        while True:
            if self.terminal.look():
                self._stop.set()
            for follower in () if self._is_held else self._followers:
                with suppress(OSError):  # what cannot be read now is read later
                    for line in follower.new_lines():
                        if not self._quiet:
                            self.terminal.say(line)
            await asyncio.sleep(_POLL_S)

    # -- the first model, and `ready`

    async def _first_build(self) -> str:
        """Build the starter and write its Model, where it is wanted; return the Model, empty: it was not."""
        if not starter.is_wanted(self.home):
            return ""
        self.note(f"building {starter.TARGET}")
        self._quiet = True  # the build draws on the terminal
        service = Service(
            name="build",
            argv=("build", starter.TARGET),
            is_essential=True,
            reads=BUILD,
        )
        child = self._build = await start(
            ProcessSpec(
                name=service.name,
                argv=command(service),
                environment=self._environment(service, *DRAWS),
                cwd=Path.cwd(),
                inherit_output=True,
            )
        )
        try:
            code = await child.wait()
        finally:
            self._quiet = False
            await child.stop()
            self._build = None
            self.note("starting")
        if code != 0:
            raise ProcessFailed(
                f"building {starter.TARGET} ended with {code}; "
                "mend what it says above and start again: it goes on where it stood",
                code="starter_failed",
            )
        starter.write(self.home)
        return starter.MODEL

    async def _a_model(self) -> str:
        """Return a Model that can be tried: the starter, else the newest that the router lists; empty: none."""
        listed = await router.models(
            self.settings.serve.base_url, self.settings.serve.authorization
        )
        return starter.MODEL if starter.MODEL in listed else next(iter(listed), "")

    async def _say_ready(self, model: str) -> None:
        """Say what to do now. The lines of children wait, so that they do not stand between it and Prefect's."""
        async with asyncio.TaskGroup() as group:
            prefect = group.create_task(self._prefect_line())
            self._is_held = True
            self._say_how_to_try(model)
            await asyncio.wait([prefect], timeout=_HELD_S)
            self._is_held = prefect.done()
            if line := await prefect:
                self.terminal.say(line)
            self._is_held = False

    def _say_how_to_try(self, model: str) -> None:
        url = self.settings.serve.base_url
        has_keys = bool(self.settings.serve.api_keys)
        ask = curl(url, model, _QUESTION, is_key_wanted=has_keys)
        keys = "any string (on this machine none is needed)"
        if has_keys:
            keys = f"one of FLEXINFER_SERVE__API_KEYS; above it is ${KEY_VARIABLE}"
        how = f"  try it    {ask}\n  or        {own_name()} chat {model}\n"
        if not model:
            how = f"  models    none yet: write one in {self.home.models} (docs/model.md)\n"
        self.terminal.say(
            f"\nready {url}\n\n"
            f"{how}"
            f"  API key   {keys}\n"
            f"  stop      Ctrl-C here, or `{own_name()} down` in another terminal"
        )

    async def _prefect_line(self) -> str:
        """Return where Prefect answers, once it does; empty: it is not wanted."""
        if not self.settings.prefect.enabled:
            return ""
        users = self.environ.get("PREFECT_API_URL")
        file = self.home.prefect_record
        deadline = time.monotonic() + self.settings.prefect.start_timeout_s
        async with _client() as client:
            while time.monotonic() < deadline:
                ours = self._running.get("prefect")
                if ours is not None and ours.gave_up:
                    return "  Prefect   ended; each build tries to start it: see `flexinfer logs prefect`"
                url = users or _recorded_url(file)
                if url is not None:
                    with suppress(httpx.HTTPError):
                        if (await client.get(f"{url.rstrip('/')}/health")).status_code == 200:
                            return f"  Prefect   {url.removesuffix('/api')} (builds and their runs)"
                await asyncio.sleep(0.5)
        if users:
            return f"  Prefect   {users} does not answer; builds fail until it does"
        return "  Prefect   does not answer; builds wait for it: see `flexinfer logs prefect`"

    # -- the end

    async def _stop_all(self) -> None:
        self._stop.set()
        for is_last in (False, True):
            stops = {
                asyncio.create_task(running.child.stop(), name=running.service.name)
                for running in self._running.values()
                if running.child is not None and running.service.is_last_to_end is is_last
            }
            if not stops:
                continue
            _, late = await asyncio.wait(stops, timeout=_QUIET_STOP_S)
            if any(stop.get_name() == "serve" for stop in late):
                self.terminal.say(
                    f"stopping: running answers have up to {drain_s(self.settings):.0f} s; "
                    "Ctrl-C again ends everything now"
                )
            await asyncio.gather(*stops, return_exceptions=True)
        for file in self.home.up_records.glob("*.json"):
            file.unlink(missing_ok=True)

    def _kill_all(self) -> None:
        for child in (self._build, *(running.child for running in self._running.values())):
            if child is not None:
                child.kill()


@asynccontextmanager
async def _client() -> AsyncIterator[httpx.AsyncClient]:
    # Loopback: the user's proxy has nothing to do with it.
    async with httpx.AsyncClient(timeout=2.0, trust_env=False) as client:
        yield client


def _recorded_url(file: Path) -> str | None:
    import json

    try:
        url = json.loads(file.read_text("utf-8")).get("url")
    except (OSError, ValueError):
        return None
    return str(url) if url else None
