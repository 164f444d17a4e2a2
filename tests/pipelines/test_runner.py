"""A command runs as a process: progress, results, refusals, stalls, cancellation."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flexinfer.clock import SystemClock
from flexinfer.errors import (
    FlexInferError,
    InvalidInput,
    PluginError,
    ProcessFailed,
    ResourceExhausted,
)
from flexinfer.oci import digest_of
from flexinfer.process import procfs
from flexinfer_pipelines.command import Command, bind
from flexinfer_pipelines.runner import run_command

Run = Callable[..., Any]


def command(program: Path, *, outputs: tuple[str, ...] = (), stall_s: float = 60.0) -> Command:
    return Command(
        tool="gguf",
        lock="",
        program=program,
        argv=("{python}", "{program}", "{input:weights}", "{output}"),
        inputs={"weights": digest_of(b"")},
        outputs=outputs,
        memory_bytes=300 << 20,
        stall_s=stall_s,
    )


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """`run(source of a program, …)`: its result, in the folder `output`."""

    def start(source: str, *, progress: Any = None, **more: Any) -> Any:
        program = tmp_path / "program.py"
        program.write_text(f"import json, sys, os, time\n{source}\n")
        weights = tmp_path / "weights"
        weights.write_bytes(b"w")
        return run_command(
            command(program, **more),
            name="quantize test",
            python=Path(sys.executable),
            inputs={"weights": weights},
            output=tmp_path / "output",
            nice=0,
            clock=SystemClock(),
            on_progress=progress or (lambda done, total: None),
        )

    return start


def failure(work: Any) -> FlexInferError:
    with pytest.raises(FlexInferError) as caught:
        asyncio.run(work)
    return caught.value


def test_progress_and_result_are_read_from_its_lines(run: Run) -> None:
    seen: list[tuple[int, int]] = []
    source = """
print('loading')
print(json.dumps({'done': 1, 'total': 2})); print(json.dumps({'done': 2, 'total': 2}))
open(sys.argv[2] + '/out', 'w').write(open(sys.argv[1]).read())
print(json.dumps({'result': {'bytes': 1}}))"""
    work = run(source, outputs=("out",), progress=lambda done, total: seen.append((done, total)))
    assert asyncio.run(work) == {"bytes": 1}
    assert seen == [(1, 2), (2, 2)]


def test_the_output_folder_is_empty_before(run: Run, tmp_path: Path) -> None:
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / "old").write_text("x")
    found = asyncio.run(run("print(json.dumps({'result': {'files': os.listdir(sys.argv[2])}}))"))
    assert found == {"files": []}


def test_last_words_are_in_the_error(run: Run) -> None:
    error = failure(run("print('no such tensor', file=sys.stderr); sys.exit(3)"))
    assert isinstance(error, ProcessFailed)
    assert "ended with 3" in error.message
    assert "no such tensor" in error.message


@pytest.mark.parametrize(
    ("code", "kind"),
    [("gguf", InvalidInput), ("disk_full", ResourceExhausted), ("io_error", ProcessFailed)],
)
def test_a_refusal_keeps_its_code(run: Run, code: str, kind: type[FlexInferError]) -> None:
    said = {"error": {"code": code, "message": "because"}}
    error = failure(run(f"print(json.dumps({said})); sys.exit(1)"))
    assert isinstance(error, kind)
    assert error.code == code
    assert "because" in error.message


def test_a_kill_is_taken_for_a_lack_of_memory(run: Run) -> None:
    error = failure(run("os.kill(os.getpid(), 9)"))
    assert isinstance(error, ResourceExhausted)
    assert error.code == "memory_exhausted"
    assert "300.0 MiB" in error.message


def test_an_end_without_a_result_is_a_failure(run: Run) -> None:
    assert isinstance(failure(run("print('done')")), ProcessFailed)


def test_a_promised_file_that_is_not_there_is_a_failure(run: Run) -> None:
    error = failure(run("print(json.dumps({'result': {}}))", outputs=("model.gguf",)))
    assert "model.gguf" in error.message


def test_a_program_that_stands_still_is_ended(run: Run) -> None:
    error = failure(run("time.sleep(600)", stall_s=0.5))
    assert error.code == "quantize_stalled"


def test_a_program_that_says_the_same_for_ever_stands_still(run: Run) -> None:
    heartbeat = (
        "while True: print(json.dumps({'done': 1, 'total': 2}), flush=True); time.sleep(0.1)"
    )
    assert failure(run(heartbeat, stall_s=1.5)).code == "quantize_stalled"


def test_a_program_that_computes_in_silence_is_not(run: Run) -> None:
    source = """
end = time.process_time() + 2.2
while time.process_time() < end: pass
print(json.dumps({'result': {}}))"""
    assert asyncio.run(run(source, stall_s=1.5)) == {}


def test_cancelling_ends_the_whole_group(run: Run, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    source = f"""
import subprocess
child = subprocess.Popen(['sleep', '600'])
open({str(pids)!r} + '.new', 'w').write(f'{{os.getpid()}} {{child.pid}}')
os.rename({str(pids)!r} + '.new', {str(pids)!r})
time.sleep(600)"""

    async def cancelled() -> list[int]:
        task = asyncio.ensure_future(run(source))
        async with asyncio.timeout(20):
            while not pids.exists():
                await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return [int(pid) for pid in pids.read_text().split()]

    for pid in asyncio.run(cancelled()):
        found = procfs.stat(pid)
        assert found is None or not found.is_running


def test_an_unknown_placeholder_is_the_plugins_fault(tmp_path: Path) -> None:
    wrong = command(tmp_path / "p.py")
    with pytest.raises(PluginError, match="input:weights"):
        bind(wrong, python=tmp_path, inputs={}, output=tmp_path)
