"""Whether work moves."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexinfer.process import Progress, Usage

NOTHING = Usage(
    cpu_s=0, rss_bytes=0, peak_rss_bytes=0, read_bytes=0, read_call_bytes=0, processes=1
)


def usage(cpu_s: float = 0, read: int = 0, rss: int = 0) -> Usage:
    return replace(NOTHING, cpu_s=cpu_s, read_bytes=read, rss_bytes=rss)


@pytest.mark.parametrize(
    "moved", [usage(cpu_s=0.1), usage(read=1 << 20), usage(rss=1 << 20)], ids=["cpu", "read", "rss"]
)
def test_any_of_three_is_progress(moved: Usage) -> None:
    progress = Progress(at_s=0)
    assert progress.uses(moved, now_s=5) and progress.at_s == 5
    assert not progress.uses(moved, now_s=9) and progress.at_s == 5


@given(st.floats(0, 0.019), st.floats(0.05, 5))
def test_a_heartbeat_never_adds_up_to_progress(share: float, every_s: float) -> None:
    progress = Progress(at_s=0)
    assert not any(
        progress.uses(usage(cpu_s=share * every_s * n), now_s=every_s * n) for n in range(1, 200)
    )


@given(st.floats(0.021, 1), st.floats(0.5, 60))
def test_work_moves_also_where_it_gets_little_of_a_processor(share: float, stall_s: float) -> None:
    """Within the longer of the stall limit and what it takes to tell work from a heartbeat."""
    progress = Progress(at_s=0)
    now_s = max(stall_s, 0.05 / share + 0.01)
    assert progress.uses(usage(cpu_s=share * now_s), now_s=now_s)


def test_work_that_begins_late_is_soon_seen() -> None:
    progress = Progress(at_s=0)
    assert not progress.uses(usage(cpu_s=0.01), now_s=50)
    assert progress.uses(usage(cpu_s=1.1), now_s=51.1)


def test_a_log_phase_is_progress_once() -> None:
    progress = Progress(at_s=0)
    assert progress.enters("LoadingWeights", now_s=1)
    assert not progress.enters("LoadingWeights", now_s=2)
    assert progress.at_s == 1
