"""What a cold start costs beyond the engine itself, with the real engine and a real model, on this machine.

    python bench/cold_start.py [MODEL.gguf] [--python TOOL_PYTHON] [--runs 5] [--json]

Each run wakes a Model at zero through the operator's socket, as a router does, and waits until the router is told
that it is ready; then the same program is started directly, with the same arguments, and asked until it answers. Both
are measured from outside, alternating, in the same process. Budgets: wake → process ≤ 50 ms; what is not the engine's
own start and load ≤ 5 % of the whole.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from flexinfer import log, unixsocket
from flexinfer.artifact import ANNOTATION_FORMAT, FileEntry, ModelConfig, pack
from flexinfer.catalog import Catalog
from flexinfer.catalog.binding import wanted
from flexinfer.clock import SystemClock
from flexinfer.fleet import DemandLease, FleetModel, FleetSnapshot, lease_to_line, parse_line
from flexinfer.launching import ANNOTATION_CHAT_TEMPLATE, ANNOTATION_CONTEXT_LENGTH
from flexinfer.machine import usable_cpus
from flexinfer.places import Home
from flexinfer.resources.source import parse_source
from flexinfer.settings import LogSection, Settings
from flexinfer.store import Store
from flexinfer.testing import starter
from flexinfer.toolenv import ToolEnvironment
from flexinfer_operator.local.cluster import LocalCluster
from flexinfer_operator.reconcile import Reconciler

NAME = "bench"
LIMIT_S = 120.0


class Tool:
    """One interpreter for the engine."""

    def __init__(self, python: Path) -> None:
        self._python = python

    def ready(self, tool: str) -> Path | None:
        return self._python

    async def ensure(self, tool: str) -> Path:
        return self._python


class Router:
    """The least that a router does: speak leases, hear snapshots."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.generation = 0

    async def hear(self) -> FleetModel | None:
        said = parse_line(await self._reader.readline())
        assert isinstance(said, FleetSnapshot)
        self.generation = said.generation
        return said.find(NAME)

    def say(self, waiting: int, idle_s: float | None = None) -> None:
        lease = DemandLease(
            router="bench", model=NAME, waiting=waiting, idle_s=idle_s, generation=self.generation
        )
        self._writer.write(lease_to_line(lease))

    async def close(self) -> None:
        self._writer.close()
        await self._writer.wait_closed()


def prepare(home: Home, gguf: Path) -> None:
    """Store *gguf* as an artifact and write its Model."""
    store = Store(home.store)
    digest = store.ingest_file(gguf)
    notes = {
        ANNOTATION_FORMAT: "gguf",
        ANNOTATION_CONTEXT_LENGTH: "8192",
        ANNOTATION_CHAT_TEMPLATE: "true",
    }
    files = [FileEntry(path=gguf.name, digest=digest, size=gguf.stat().st_size)]
    config = ModelConfig(architecture="llama", format="gguf")
    descriptor = store.put_artifact(pack(files, config, notes))
    source = f"file://{gguf}"
    _, _, reference = wanted(parse_source(source), Catalog(entries={}))
    store.tag(reference, descriptor)
    model = {
        "apiVersion": "ai.flexinfer/v1alpha2",
        "kind": "Model",
        "metadata": {"name": NAME},
        "spec": {"source": source, "backend": "llamacpp", "serverless": {"idleTimeout": "100ms"}},
    }
    (home.models / f"{NAME}.yaml").write_text(json.dumps(model))


async def wake(cluster: LocalCluster, router: Router) -> dict[str, Any]:
    """Wake the Model once, let it idle out again; return seconds and the engine's command."""
    began_s = time.monotonic()
    router.say(1)
    while not (found := [r for r in cluster.engines() if r.running is not None]):
        await asyncio.sleep(0.0005)
    running = found[0].running
    assert running is not None
    spawned_s = time.monotonic()
    while True:
        model = await router.hear()
        if model is not None and any(one.phase == "ready" for one in model.replicas):
            break
    ready_s = time.monotonic()
    spec = running.child.spec
    result = {
        "spawn": spawned_s - began_s,
        "total": ready_s - began_s,
        "argv": spec.argv,
        "environment": dict(spec.environment),
        "cwd": spec.cwd,
        "port": running.ports["http"],
        "key": running.key,
        "phases": dict(found[0].phases),
    }
    router.say(0, idle_s=1.0)
    while True:
        model = await router.hear()
        if model is not None and any(one.phase == "draining" for one in model.replicas):
            router.say(0, idle_s=1.0)
        if model is not None and not model.replicas:
            break
    while cluster.engines():
        await asyncio.sleep(0.01)
    return result


def direct(run: dict[str, Any], folder: Path) -> float:
    """Start the same program by hand; return the seconds until it answers its probe."""
    key_file = folder / "key"
    key_file.touch(mode=0o600)
    key_file.write_text(run["key"] + "\n")
    argv = list(run["argv"])
    argv[argv.index("--key-file") + 1] = str(key_file)
    began_s = time.monotonic()
    with open(folder / "direct.log", "wb") as words:
        child = subprocess.Popen(
            argv,
            env=run["environment"],
            cwd=run["cwd"],
            stdin=subprocess.DEVNULL,
            stdout=words,
            stderr=words,
            start_new_session=True,
        )
    try:
        while not answers(run["port"]):
            if child.poll() is not None or time.monotonic() - began_s > LIMIT_S:
                raise SystemExit(f"the engine did not start: see {words.name}")
            time.sleep(0.005)
        return time.monotonic() - began_s
    finally:
        child.terminate()
        child.wait()


def answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as answer:
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError):
        return False


async def measure(home: Home, python: Path, runs: int) -> list[dict[str, Any]]:
    clock = SystemClock()
    found = []
    async with LocalCluster(home, Settings(), clock, tools=Tool(python)) as cluster:
        loop = asyncio.create_task(Reconciler(cluster, clock).run())
        router = Router(*await unixsocket.connect(cluster.socket))
        await router.hear()
        for number in range(runs + 1):
            run = await wake(cluster, router)
            run["direct"] = await asyncio.to_thread(direct, run, home.run)
            if number:  # the first one warms the page cache
                found.append(run)
        loop.cancel()
        await router.close()
        await asyncio.gather(loop, return_exceptions=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("model", type=Path, nargs="?", help="without one: the starter's source")
    parser.add_argument("--python", type=Path, help="of the engine's tool environment")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    log.configure(LogSection(level="warning"))
    with tempfile.TemporaryDirectory() as scratch:
        home = Home(Path(scratch) / "home").prepare()
        python = options.python
        if python is None:
            tool_home = Home.find(os.environ)
            environment = ToolEnvironment.named("llamacpp")
            python = environment.ensure(tool_home, on_line=print).path
        prepare(home, (options.model or starter.gguf()).resolve())
        runs = asyncio.run(measure(home, python, options.runs))
    report(runs, as_json=options.json)


def report(runs: list[dict[str, Any]], *, as_json: bool) -> None:
    def median(key: str) -> float:
        return float(statistics.median(run[key] for run in runs))

    overhead = [run["total"] - run["phases"]["load"] for run in runs]
    result = {
        "runs": len(runs),
        "wake_to_process_ms": round(median("spawn") * 1000, 2),
        "wake_to_process_worst_ms": round(max(run["spawn"] for run in runs) * 1000, 2),
        "cold_start_s": round(median("total"), 3),
        "verify_ms": round(statistics.median(r["phases"]["verify"] for r in runs) * 1000, 2),
        "not_the_engine_percent": round(100 * statistics.median(overhead) / median("total"), 2),
        "direct_s": round(median("direct"), 3),
        "over_direct": round(median("total") / median("direct"), 3),
        "cpus": usable_cpus(),
    }
    if as_json:
        print(json.dumps(result))
        return
    print(f"wake → engine process   {result['wake_to_process_ms']} ms (worst "
          f"{result['wake_to_process_worst_ms']} ms; budget 50 ms)")  # fmt: skip
    print(
        f"cold start, whole       {result['cold_start_s']} s (verification {result['verify_ms']} ms)"
    )
    print(f"not the engine's own    {result['not_the_engine_percent']} % (budget 5 %)")
    print(f"the program directly    {result['direct_s']} s; ratio {result['over_direct']}")


if __name__ == "__main__":
    main()
