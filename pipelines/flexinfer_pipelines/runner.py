"""Runs a `Command` as a process of its own: input blobs by their paths, progress by its lines, ended when it stalls."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from flexinfer.clock import Clock
from flexinfer.errors import (
    FlexInferError,
    InvalidInput,
    ProcessFailed,
    ResourceExhausted,
)
from flexinfer.process import Child, ProcessSpec, Progress, inherited_environment, start
from flexinfer.units import format_bytes
from flexinfer_pipelines.command import Command, bind

_LOOK_EVERY_S = 1.0
_GRACE_S = 5.0
_TAIL = 15
_SIGKILL = -9
# Codes with which a program says that its input is at fault, not itself.
_INPUT_CODES = frozenset({"gguf", "gguf_split", "quantizer_unsupported"})

OnProgress = Callable[[int, int], None]


async def run_command(
    command: Command,
    *,
    name: str,
    python: Path,
    inputs: Mapping[str, Path],
    output: Path,
    nice: int,
    clock: Clock,
    on_progress: OnProgress,
) -> Mapping[str, Any]:
    """Run *command* to its end and return its result; its files are in *output*, which is emptied first.

    Cancelled, it ends the whole process group.

    Raises:
        InvalidInput: the program refuses its input.
        ResourceExhausted: codes `disk_full`, `memory_exhausted`: not tried again as it is.
        ProcessFailed: codes `quantize_stalled`, `process_failed`, with the program's last words.
    """
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    said = _Said(on_progress, clock)
    child = await start(
        ProcessSpec(
            name=name,
            argv=bind(command, python=python, inputs=inputs, output=output),
            environment={
                **{
                    k: v
                    for k, v in inherited_environment().items()
                    if k in ("PATH", "LANG", "HOME")
                },
                **command.environment,
                # One core each: builds run beside serving.
                "OMP_NUM_THREADS": str(command.cpus),
                "OPENBLAS_NUM_THREADS": str(command.cpus),
                "PYTHONDONTWRITEBYTECODE": "1",
                "PYTHONUNBUFFERED": "1",
            },
            cwd=output,
            on_line=said.line,
            nice=nice,
            grace_s=_GRACE_S,
        )
    )
    try:
        returncode = await _wait(child, command, said, clock)
    except BaseException:
        await child.stop()
        raise
    if returncode != 0 or said.result is None:
        raise _failed(command, name, returncode, said)
    missing = [file for file in command.outputs if not (output / file).is_file()]
    if missing:
        raise ProcessFailed(f"{name}: it ended well but did not write {missing[0]}")
    return said.result


async def _wait(child: Child, command: Command, said: _Said, clock: Clock) -> int:
    waiting = asyncio.ensure_future(child.wait())
    try:
        while True:
            done, _ = await asyncio.wait({waiting}, timeout=_LOOK_EVERY_S)
            if done:
                return waiting.result()
            usage = child.usage()
            if usage is not None:
                said.progress.uses(usage, now_s=clock.now_s())
            if clock.now_s() - said.progress.at_s > command.stall_s:
                raise ProcessFailed(
                    f"{child.spec.name}: no progress for {command.stall_s:g} s; ended",
                    code="quantize_stalled",
                )
    finally:
        waiting.cancel()


class _Said:
    """What the program has told so far."""

    def __init__(self, on_progress: OnProgress, clock: Clock) -> None:
        self._on_progress = on_progress
        self._clock = clock
        self.progress = Progress(at_s=clock.now_s())
        self.result: Mapping[str, Any] | None = None
        self.error: Mapping[str, Any] | None = None
        self.other: list[str] = []

    def line(self, text: str) -> None:
        self.progress.enters(text, now_s=self._clock.now_s())
        try:
            tree = json.loads(text)
            if "done" in tree:
                self._on_progress(int(tree["done"]), int(tree["total"]))
            elif "result" in tree:
                self.result = dict(tree["result"])
            elif "error" in tree:
                self.error = dict(tree["error"])
        except (ValueError, KeyError, TypeError, RecursionError):
            self.other = [*self.other[-(_TAIL - 1) :], text]


def _failed(command: Command, name: str, returncode: int, said: _Said) -> FlexInferError:
    if said.error is not None:
        code, message = str(said.error.get("code")), f"{name}: {said.error.get('message')}"
        if code == "disk_full":
            return ResourceExhausted(message, code=code)
        if code in _INPUT_CODES:
            return InvalidInput(message, code=code)
        return ProcessFailed(message, code=code)
    if returncode == _SIGKILL:
        return ResourceExhausted(
            f"{name}: killed, most likely because memory ran out; it needs "
            f"{format_bytes(command.memory_bytes)}",
            code="memory_exhausted",
        )
    words = " | ".join(said.other) or "it said nothing"
    return ProcessFailed(f"{name}: ended with {returncode}: {words}")
