"""What this machine lets us use."""

from __future__ import annotations

import os
from pathlib import Path

from flexinfer.machine import usable_cpus, usable_memory_bytes


def test_a_control_groups_limits_are_ours(tmp_path: Path) -> None:
    (tmp_path / "cpu.max").write_text("100000 100000\n")
    (tmp_path / "memory.max").write_text("4096\n")
    assert (usable_cpus(tmp_path), usable_memory_bytes(tmp_path)) == (1, 4096)
    (tmp_path / "cpu.max").write_text("max 100000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert usable_cpus(tmp_path) == len(os.sched_getaffinity(0))
    assert usable_memory_bytes(tmp_path) > 4096
