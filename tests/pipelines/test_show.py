"""A build on the terminal: what runs moves, what waits does not, what is passed over says so."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from flexinfer_pipelines.show import Bars, Lines
from flexinfer_pipelines.steps import STAGES

_SPINNING = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"


def rows(bars: Bars, width: int = 80) -> dict[str, str]:
    out = io.StringIO()
    Console(file=out, width=width).print(bars.display.get_renderable())
    lines = [line.rstrip() for line in out.getvalue().splitlines()]
    assert len(lines) == len(STAGES)
    return {next(stage for stage in STAGES if stage in line): line for line in lines}


def test_what_waits_neither_spins_nor_counts() -> None:
    bars = Bars(Console(file=io.StringIO(), width=80))
    bars.started("resolve")
    shown = rows(bars)
    assert any(mark in shown["resolve"] for mark in _SPINNING)
    assert {shown[stage].strip() for stage in STAGES[1:]} == set(STAGES[1:])


def test_a_stage_that_is_passed_over_is_not_needed() -> None:
    bars = Bars(Console(file=io.StringIO(), width=80))
    for stage in ("resolve", "fetch", "inspect", "validate"):
        bars.started(stage)
        bars.moved(stage, 3 * 10**8, 4 * 10**8, "a note that is longer than there is room for")
        bars.finished(stage)
    shown = rows(bars)
    assert shown["quantize"].split() == ["quantize", "–", "not", "needed"]
    assert shown["validate"].startswith("✓")
    assert shown["publish"].strip() == "publish"


def test_lines_tell_it_too_and_once(capsys: pytest.CaptureFixture[str]) -> None:
    lines = Lines()
    for stage in ("resolve", "fetch", "inspect", "validate", "publish"):
        lines.started(stage)
        lines.finished(stage)
    said = [line.split() for line in capsys.readouterr().err.splitlines()]
    assert said[3] == ["quantize", "–", "not", "needed"]
    assert [words[0] for words in said] == list(STAGES[:-1])
