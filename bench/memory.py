"""What `flexinfer up` costs at rest, process by process.

    .venv/bin/python bench/memory.py            of the one that runs (FLEXINFER_HOME), else of one started for it

Resident and proportional set (the latter counts a shared page once); the ratio is to a bare interpreter
with asyncio, measured in the same run.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from flexinfer.places import Home
from flexinfer.process import holder
from flexinfer.testing.running import RunningUp


def memory_kib(pid: int) -> tuple[int, int]:
    """Return the resident and proportional set of *pid* in KiB; zeros when it is gone."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text("ascii")
    except OSError:
        return 0, 0
    fields = dict(line.split(":", 1) for line in text.splitlines()[1:])
    return int(fields["Rss"].split()[0]), int(fields["Pss"].split()[0])


def family(pid: int) -> list[int]:
    """Return *pid* and all that it started, at any depth."""
    found = [pid]
    for one in found:
        for task in Path(f"/proc/{one}/task").glob("*/children"):
            found += [int(child) for child in task.read_text("ascii").split()]
    return found


def main() -> None:
    running = holder(Home.find(os.environ).up_lock)
    if running is not None:
        show(int(str(running["pid"])))
        return
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "home").mkdir()
        one = RunningUp.at(Path(folder) / "home", prefect=True)
        one.start()
        try:
            one.wait_ready(600)
            assert one.process is not None
            show(one.process.pid)
        finally:
            one.stop()


def show(leader: int) -> None:
    """Print a row for each process of the one that *leader* leads."""
    code = "import asyncio, sys; print(flush=True); sys.stdin.read()"
    bare = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert bare.stdout is not None
    bare.stdout.readline()
    reference_kib = memory_kib(bare.pid)[0]
    total_rss = total_pss = 0
    print(f"{'process':<60} {'RSS MiB':>8} {'PSS MiB':>8} {'x bare':>7}")
    for pid in family(leader):
        rss, pss = memory_kib(pid)
        if rss == 0:
            continue
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        name = " ".join(a.decode("utf-8", "replace") for a in arguments if a)[-60:]
        print(f"{name:<60} {rss / 1024:>8.1f} {pss / 1024:>8.1f} {rss / reference_kib:>7.1f}")
        total_rss += rss
        total_pss += pss
    print(f"{'all':<60} {total_rss / 1024:>8.1f} {total_pss / 1024:>8.1f}")
    print(f"reference: a bare interpreter with asyncio, {reference_kib / 1024:.1f} MiB")
    bare.communicate(timeout=10)


if __name__ == "__main__":
    main()
