"""Whatever call a crash or an error hits, nothing wrong is visible and a second run completes."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

SWEEP = Path(__file__).with_name("crash_sweep.py")
# In memory where there is such a place: the sweep is about the order of calls, not about the disk.
FAST = Path("/dev/shm")

LIMITED = """
import resource, sys
from pathlib import Path
from flexinfer.errors import ResourceExhausted
from flexinfer.store import Store
work = Path(sys.argv[1])
store = Store(work / "store")
kept = store.put_bytes(b"kept")
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
try:
    store.ingest_file(work / "large.bin")
except ResourceExhausted as error:
    print(error.code, error.message)
left = list((work / "store/.flexinfer/partials").glob("*.partial"))
print(left, store.open(kept).read())
"""


@pytest.mark.parametrize("mode", ["kill", "error"])
def test_every_call_may_be_the_last(mode: str, tmp_path: Path) -> None:
    base = FAST if FAST.is_dir() else tmp_path
    with tempfile.TemporaryDirectory(dir=base) as work:
        done = subprocess.run(
            [sys.executable, str(SWEEP), mode, work],
            capture_output=True, text=True, timeout=240, check=True,
        )  # fmt: skip
    report = json.loads(done.stdout)
    assert report["problems"] == []
    assert report["calls"] > 100


def test_a_full_disk_is_named_with_path_and_bytes_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "large.bin").write_bytes(bytes(3 << 20))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LIMITED, str(tmp_path)],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    failure, left = done.stdout.splitlines()
    assert failure.startswith("disk_full ")
    assert str(tmp_path / "store") in failure
    assert left == "[] b'kept'"
