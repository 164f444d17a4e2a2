"""The whole main job as a user does it: `make up` in a clone with a home of its own, by `tools/shows.sh`."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# It installs what is missing, builds two variants, and waits for idle times.
pytestmark = [pytest.mark.heavy, pytest.mark.timeout(1800)]


def test_every_show_of_the_script_is_shown() -> None:
    # `make test-all` runs this below make; what it tells its children is not for ours.
    ours = ("FLEXINFER_", "PREFECT_", "MAKE", "MFLAGS")
    environ = {k: v for k, v in os.environ.items() if not k.startswith(ours)}
    shown = subprocess.run(
        ["bash", str(ROOT / "tools" / "shows.sh")],
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=1700,
        check=False,
    )
    assert shown.returncode == 0, shown.stdout
    lines = shown.stdout.splitlines()
    assert lines[-1] == "all shown"
    assert not [line for line in lines if line.startswith("FAIL")]
    assert len([line for line in lines if line.startswith("ok")]) >= 15
