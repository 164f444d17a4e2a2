"""`flexinfer doctor`: what of this machine would stop or slow FlexInfer, and what to do about it."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Literal

import typer

from flexinfer.errors import FlexInferError, InvalidInput
from flexinfer.exposure import check as check_exposure
from flexinfer.places import Home
from flexinfer.printable import escaped
from flexinfer.process import holder, who_listens
from flexinfer.settings import Settings, load, setting_files
from flexinfer.toolenv import ToolEnvironment
from flexinfer.units import format_bytes

_GIB = 1024**3
# Without SHA extensions a portable implementation reaches about 70 MB/s: hashing a 70 GB model then takes
# a quarter of an hour, so it is worth a word.
_SLOW_SHA256 = 400 * 10**6


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    name: str
    verdict: Literal["ok", "warning", "problem"]
    found: str
    advice: str = ""


def doctor(as_json: bool = typer.Option(False, "--json", help="Print a JSON list.")) -> None:
    """Check this machine: Python, home, space, memory, ports, tools, speed of hashing.

    Exit code 0 unless something is a problem; 2 where settings are, 1 for others.

    Example: flexinfer doctor --json
    """
    home = Home.find(os.environ)
    findings = [check(home) for check in _CHECKS]
    if as_json:
        typer.echo(json.dumps([asdict(f) for f in findings], indent=2))
    else:
        for finding in findings:
            advice = f"\n           {finding.advice}" if finding.advice else ""
            typer.echo(f"{finding.verdict:<8} {finding.name}: {escaped(finding.found)}{advice}")
    problems = [f.name for f in findings if f.verdict == "problem"]
    if problems:
        raise typer.Exit(InvalidInput.exit_code if "settings" in problems else 1)


def _python(_: Home) -> Finding:
    return Finding(
        name="python", verdict="ok", found=f"{platform.python_version()} at {sys.executable}"
    )


def _settings(home: Home) -> Finding:
    try:
        check_exposure(load(Settings, os.environ, files=setting_files(home.root)).serve)
    except FlexInferError as error:
        found = f"{error.message} ({error.code})"
        return Finding(name="settings", verdict="problem", found=found, advice="mend them")
    return Finding(name="settings", verdict="ok", found="all understood")


def _home(home: Home) -> Finding:
    try:
        home.prepare()
    except FlexInferError as error:
        return Finding(
            name="home", verdict="problem", found=error.message, advice="set FLEXINFER_HOME"
        )
    return Finding(name="home", verdict="ok", found=str(home.root))


def _disk(home: Home) -> Finding:
    place = home.root
    while not place.is_dir():
        place = place.parent
    usage = os.statvfs(place)
    free = usage.f_bavail * usage.f_frsize
    if free < _GIB:
        return Finding(
            name="disk",
            verdict="problem",
            found=f"{format_bytes(free)} free at {place}",
            advice="a build needs the source's size twice and the variant's once",
        )
    return Finding(name="disk", verdict="ok", found=f"{format_bytes(free)} free at {place}")


def _memory(_: Home) -> Finding:
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            fields = dict(line.split(":", 1) for line in file)
        free = int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError) as error:
        return Finding(name="memory", verdict="warning", found=f"unknown here ({error})")
    few = free < _GIB
    return Finding(
        name="memory",
        verdict="warning" if few else "ok",
        found=f"{format_bytes(free)} available, {os.cpu_count()} cores",
        advice="the starter model's engine takes 0.6 GiB" if few else "",
    )


def _ports(home: Home) -> Finding:
    try:
        settings = load(Settings, os.environ, files=setting_files(home.root))
    except FlexInferError:
        return Finding(name="ports", verdict="warning", found="not checked: settings are bad")
    if holder(home.up_lock) is not None:
        return Finding(name="ports", verdict="ok", found="`flexinfer up` runs and holds them")
    wanted = (settings.serve.port, settings.serve.admin_port, settings.prefect.port)
    taken = {port: who for port in wanted if port and (who := who_listens(port))}
    found = "taken: " + "; ".join(f"{port} by {who}" for port, who in taken.items())
    if taken.keys() - {settings.prefect.port}:
        advice = "end what has it, or set FLEXINFER_SERVE__PORT, FLEXINFER_SERVE__ADMIN_PORT"
        return Finding(name="ports", verdict="problem", found=found, advice=advice)
    if taken:
        advice = "it is Prefect's: `flexinfer up` takes the next free one, and says which"
        return Finding(name="ports", verdict="warning", found=found, advice=advice)
    return Finding(
        name="ports", verdict="ok", found=", ".join(str(port) for port in wanted) + " free"
    )


def _tools(home: Home) -> Finding:
    missing = []
    for name in ("llamacpp", "gguf"):
        if ToolEnvironment.named(name).ready(home) is None:
            missing.append(name)
    if missing:
        return Finding(
            name="tools",
            verdict="warning",
            found=f"not installed yet: {', '.join(missing)}",
            advice="`flexinfer up` installs them; it needs the package index once",
        )
    return Finding(name="tools", verdict="ok", found="llamacpp and gguf are installed")


def _hashing(_: Home) -> Finding:
    block = bytes(4 * 1024 * 1024)
    digest = hashlib.sha256()
    began = time.perf_counter()
    for _round in range(16):
        digest.update(block)
    rate = 16 * len(block) / (time.perf_counter() - began)
    slow = rate < _SLOW_SHA256
    return Finding(
        name="sha256",
        verdict="warning" if slow else "ok",
        found=f"{rate / 1e9:.2f} GB/s on one core",
        advice="no SHA extensions here: hashing will take most of a transfer's time"
        if slow
        else "",
    )


_CHECKS: tuple[Callable[[Home], Finding], ...] = (
    _python,
    _settings,
    _home,
    _disk,
    _memory,
    _ports,
    _tools,
    _hashing,
)
