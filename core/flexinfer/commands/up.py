"""`flexinfer up`, `status`, `logs` and `down`: everything on one machine."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import typer

from flexinfer.builds import RunningBuild, running_builds
from flexinfer.errors import Conflict, NotFound, ResourceExhausted, Unavailable
from flexinfer.exposure import check as check_exposure
from flexinfer.places import Home
from flexinfer.printable import escaped
from flexinfer.process import SingleInstance, living, procfs
from flexinfer.process import holder as holder_of
from flexinfer.settings import Settings, load, setting_files
from flexinfer.units import format_bytes, format_duration
from flexinfer.up.reading import Said
from flexinfer.up.services import drain_s

_STOP_S = 20.0
_POLL_S = 0.1
_MAX_SAID = 64


def up() -> None:
    """Start everything on this machine and stay in the foreground.

    The first time it also builds the starter model. Ctrl-C ends all that it started.

    Example: FLEXINFER_SERVE__PORT=9090 flexinfer up
    """
    from flexinfer.up.session import Session
    from flexinfer.up.terminal import Terminal

    home = Home.find(os.environ)
    settings = load(Settings, os.environ, files=setting_files(home.root))
    check_exposure(settings.serve)
    home.prepare()
    about = {
        "what": "flexinfer up",
        "address": settings.serve.base_url,
        "admin": settings.serve.admin_address,
        "folder": str(Path.cwd()),
        "drainSeconds": drain_s(settings),
    }
    try:
        lock = SingleInstance.acquire(home.up_lock, about)
    except Conflict as error:
        raise Conflict(
            f"{error.message}; home {home.root}. See `flexinfer status`, stop it with `flexinfer down`",
            code=error.code,
        ) from error

    def note(doing: str) -> None:
        # Only told: who holds the lock stays true on a full disk.
        with suppress(ResourceExhausted):
            lock.update({**about, "doing": doing})

    terminal = Terminal()
    with lock:
        asyncio.run(Session(home, settings, os.environ, terminal, note).run())
    terminal.say("stopped")


def status(
    as_json: bool = typer.Option(False, "--json", help="Print one JSON object."),
) -> None:
    """Show what runs, where it answers and what it costs.

    Exit code 0 when it runs and answers, also while it drains; 6 when not.

    Example: flexinfer status --json
    """
    home = Home.find(os.environ)
    found = _status(home)
    if as_json:
        typer.echo(json.dumps(found, indent=2))
    else:
        _show_status(found)
    if not found["answers"]:
        raise typer.Exit(Unavailable.exit_code)


def logs(
    name: str = typer.Argument("", help="A log or a Model; all logs when left out."),
    lines: int = typer.Option(50, "--lines", "-n", min=1, max=10_000, help="How many, all in all."),
    follow: bool = typer.Option(False, "--follow", "-f", help="Go on with what comes."),
    everything: bool = typer.Option(
        False, "--all", help="Also what Prefect says of itself, and again of what failed."
    ),
    raw: bool = typer.Option(False, "--raw", help="The lines as they were written."),
) -> None:
    """Show the logs of what `up` started, in the order of time; of a Model: those of its engines.

    Of a log that is very long its last 256 KiB are looked at.

    Example: flexinfer logs operator -f
    """
    from flexinfer.up.shown import ShownLogs

    home = Home.find(os.environ)
    shown = ShownLogs(home, name, is_routine_shown=everything or raw)
    for line in shown.last(lines):
        _print_line(line, raw=raw)
    while follow:
        for line in shown.new():
            _print_line(line, raw=raw)
        time.sleep(_POLL_S)


def down() -> None:
    """Stop what `up` started, and wait until it has ended.

    Example: flexinfer down
    """
    home = Home.find(os.environ)
    holder = holder_of(home.up_lock)
    if holder is None:
        raise NotFound(
            f"nothing to stop: no `flexinfer up` runs with home {home.root}", code="not_running"
        )
    pid = holder.get("pid")
    if not isinstance(pid, int):
        raise Unavailable(
            f"{home.up_lock}: somebody holds it and has not said yet who; try again",
            code="holder_unknown",
        )
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    limit_s = _STOP_S + float(str(holder.get("drainSeconds", 0.0)))
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        if holder_of(home.up_lock) is None:
            say(f"stopped (was process {pid})")
            return
        time.sleep(_POLL_S)
    raise Unavailable(f"process {pid} did not end within {limit_s:.0f} s", code="stop_timeout")


def say(line: str) -> None:
    """Print one line for people, at once."""
    print(escaped(line, keep="\n"), flush=True)


def _status(home: Home) -> dict[str, Any]:
    holder = holder_of(home.up_lock)
    found: dict[str, Any] = {
        "home": str(home.root),
        "running": holder is not None,
        "answers": False,
        "draining": False,
        "processes": [],
        "models": [],
        "phases": {},
        "builds": [],
    }
    if holder is None:
        return found
    found |= {
        "pid": holder.get("pid"),
        "url": holder.get("address"),
        "folder": holder.get("folder"),
    }
    found["admin"] = holder.get("admin")
    found["doing"] = holder.get("doing") or ""
    found["processes"] = _processes(home)
    found["builds"] = [one.as_tree() | {"pid": one.pid} for one in running_builds(home)]
    found["prefect"] = _prefect(home)
    headers = load(Settings, os.environ, files=setting_files(home.root)).serve.authorization
    with httpx.Client(timeout=2.0, trust_env=False) as client:
        try:
            found |= _readiness(client.get(f"{holder.get('admin')}/readyz"))
            if found["answers"]:
                listed = client.get(f"{holder.get('address')}/models", headers=headers)
                if listed.status_code == 401:
                    found["modelsUnknown"] = "the router wants a key: FLEXINFER_SERVE__API_KEYS"
                else:
                    listed.raise_for_status()
                    data = listed.json()["data"]
                    found["models"] = [model["id"] for model in data]
                    found["phases"] = {model["id"]: model.get("phase", "") for model in data}
        except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
            found["problem"] = str(error)
    return found


def _readiness(answer: httpx.Response) -> dict[str, Any]:
    """Return whether the router answers requests: it does so too while it only drains."""
    if answer.status_code == 200:
        return {"answers": True}
    said = answer.json()
    status = said.get("status") if isinstance(said, dict) else None
    if status != "draining":
        return {"problem": str(status or "not ready")[:_MAX_SAID]}
    if said.get("ending"):
        return {"problem": "it is ending"}
    return {"answers": True, "draining": True}


def _processes(home: Home) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for record in (*living(home.up_records), *living(home.replica_records)):
        usage = procfs.usage(record.pid, group=record.pid)
        found.append(
            {
                "name": record.name,
                "pid": record.pid,
                "rssBytes": usage.rss_bytes if usage else None,
                "cpuSeconds": round(usage.cpu_s, 2) if usage else None,
            }
        )
    return found


def _prefect(home: Home) -> str | None:
    try:
        url = json.loads(home.prefect_record.read_text("utf-8"))["url"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return str(url).removesuffix("/api")


def _show_status(found: dict[str, Any]) -> None:
    if not found["running"]:
        say(f"not running (home {found['home']}); start it with `flexinfer up`")
        return
    if found["pid"] is None:
        say(f"starting or ending: who holds {found['home']} has not said yet who it is; ask again")
        return
    state = "answers"
    if found["draining"]:
        state = (
            "draining: POST /drain was called; requests are answered, but /readyz is 503 until "
            f"`curl -X DELETE {found['admin']}/drain`"
        )
    elif not found["answers"]:
        state = f"does not answer: {found.get('problem', 'not ready')}"
    say(f"process {found['pid']}, started in {found['folder']}, home {found['home']}")
    say(f"{found['url']} {state}{' (' + found['doing'] + ')' if found['doing'] else ''}")
    if found.get("prefect"):
        say(f"Prefect {found['prefect']}")
    for process in found["processes"]:
        rss = format_bytes(process["rssBytes"]) if process["rssBytes"] is not None else "?"
        cpu = format_duration(process["cpuSeconds"] or 0)
        say(f"  {process['name']:<28} pid {process['pid']:<8} {rss:>10}  cpu {cpu}")
    for build in found["builds"]:
        say(RunningBuild(**build).words)
    phases = found["phases"]
    named = (f"{name} ({phases[name]})" if phases[name] else name for name in found["models"])
    models = found.get("modelsUnknown") or ", ".join(named) or "none"
    say(f"models: {models} (more: `flexinfer model ls`)")


def _print_line(line: Said, *, raw: bool) -> None:
    for text in (line.raw,) if raw else line.shown:
        typer.echo(text)
