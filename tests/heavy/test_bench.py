"""Each benchmark runs to its end in its shortest form and says its ratio. How good it is, is judged by people."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [pytest.mark.heavy, pytest.mark.timeout(900)]


def measured(name: str, *arguments: str) -> str:
    found = subprocess.run(
        [sys.executable, str(ROOT / "bench" / name), *arguments],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=840,
        check=False,
    )
    assert found.returncode == 0, found.stdout + found.stderr
    return found.stdout


def test_the_cold_start_is_told_beside_the_program_alone(engine_python: Path) -> None:
    said = measured("cold_start.py", "--python", str(engine_python), "--runs", "1", "--json")
    result = json.loads(said.splitlines()[-1])
    assert result["runs"] == 1
    assert result["over_direct"] > 0
    assert result["wake_to_process_ms"] > 0


def test_ingest_is_told_beside_cp_and_sha256sum() -> None:
    assert json.loads(measured("ingest.py", "--rounds", "1", "--max-ratio", "1000"))["ratio"] > 0


def test_a_build_is_told_beside_copying_and_unzipping() -> None:
    said = measured("build.py", "--repeat", "1")
    assert len(re.findall(r"; ratio \d+\.\d+ \((?:within|ABOVE) ", said)) == 2


def test_memory_is_told_beside_a_bare_interpreter() -> None:
    said = measured("memory.py")
    for process in ("flexinfer up", "flexinfer operator --local", "flexinfer serve"):
        assert re.search(rf"{process} +\d+\.\d +\d+\.\d +\d+\.\d$", said, re.MULTILINE), said
    assert "reference: a bare interpreter" in said
