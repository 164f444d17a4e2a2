"""Chat templates: refused by what they contain, then rendered in a process that can be killed.

A chat template is a program that came with the weights. It is parsed and walked first
(`template_rules`), and only then rendered, by a child with bounded time, memory and output.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import markupsafe

from flexinfer.errors import InvalidInput, ProcessFailed
from flexinfer.formats import render_child
from flexinfer.formats.template_rules import MAX_SOURCE_BYTES, Fault, check_tree

__all__ = ["MAX_SOURCE_BYTES", "check", "check_rendered", "render"]

CPU_LIMIT_S = 2.0
MEMORY_LIMIT_BYTES = 64 << 20
OUTPUT_LIMIT_CHARS = 1 << 20
# Wall time for the whole child, start included: only a machine that is stuck comes near it.
WALL_LIMIT_S = 30.0
# What `strftime_now` tells a template that is rendered to be checked: 2025-01-01 00:00 UTC.
CHECK_MOMENT = 1_735_689_600.0

_CODE = "template"
_PARTS = {"type": "text"}
_USER, _ANSWER, _SYSTEM = "Hello.", "Hello! How can I help?", "You are a helpful assistant."
# Templates differ in what they accept: some want no system message, some want lists of parts.
_CONVERSATIONS: tuple[tuple[dict[str, Any], ...], ...] = (
    (
        {"role": "system", "content": _SYSTEM},
        {"role": "user", "content": _USER},
        {"role": "assistant", "content": _ANSWER},
        {"role": "user", "content": _USER},
    ),
    ({"role": "user", "content": _USER},),
    ({"role": "user", "content": [{**_PARTS, "text": _USER}]},),
)


def check(source: str, *, name: str = "chat_template") -> None:
    """Refuse a template by its size, its shape and what it reaches for. Nothing of it runs.

    Raises:
        InvalidInput: `template`, naming the template, the line and what is not allowed.
    """
    try:
        check_tree(source)
    except Fault as fault:
        where = f"{name} line {fault.line}" if fault.line else name
        raise InvalidInput(f"{where} {fault.problem}", code=_CODE) from fault


def check_rendered(source: str, *, name: str = "chat_template") -> str:
    """Do `check`, then render fixed conversations; return the first text that comes out.

    Raises:
        InvalidInput: `template`: not allowed, or no fixed conversation renders within the limits.
        ProcessFailed: `template_sandbox_failed`: the machine could not run the child.
    """
    check(source, name=name)
    problem = ""
    for messages in _CONVERSATIONS:
        answer = _ask(source, _variables(messages, {}), name=name, moment=CHECK_MOMENT)
        if "text" in answer:
            return str(answer["text"])
        if "error" in answer:
            problem = problem or str(answer["error"])
        else:
            problem = problem or f"refuses a plain conversation: {answer['refused']!r}"
    raise InvalidInput(f"{name} {problem}", code=_CODE)


def render(
    source: str,
    messages: Sequence[Mapping[str, Any]],
    *,
    variables: Mapping[str, Any] | None = None,
    name: str = "chat_template",
    moment: float = CHECK_MOMENT,
) -> str:
    """Return the prompt that *source* makes of *messages*, after `check`.

    *variables* are what the template sees besides (`tools`, `add_generation_prompt`, `bos_token`,
    …); *moment* is what `strftime_now` tells, in seconds since the epoch. Costs a process start.

    Raises:
        InvalidInput: `template`: not allowed, refused these messages, or went over a limit.
        ProcessFailed: `template_sandbox_failed`: the machine could not run the child.
    """
    check(source, name=name)
    answer = _ask(source, _variables(messages, variables or {}), name=name, moment=moment)
    if "text" in answer:
        return str(answer["text"])
    problem = answer.get("error") or f"refuses these messages: {answer.get('refused')!r}"
    raise InvalidInput(f"{name} {problem}", code=_CODE)


def _variables(messages: Sequence[Mapping[str, Any]], extra: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "messages": [dict(message) for message in messages],
        "add_generation_prompt": True,
        "bos_token": "<s>",
        "eos_token": "</s>",
        **extra,
    }


def _ask(source: str, variables: dict[str, Any], *, name: str, moment: float) -> dict[str, Any]:
    job = {
        "source": source,
        "variables": variables,
        "moment": moment,
        "cpu_s": CPU_LIMIT_S,
        "memory_bytes": MEMORY_LIMIT_BYTES,
        "output_limit": OUTPUT_LIMIT_CHARS,
    }
    status, answer = _run_child(json.dumps(job).encode("ascii"))
    if status == -signal.SIGPROF:
        raise InvalidInput(f"{name} renders for more than {CPU_LIMIT_S:g} s", code=_CODE)
    # Out of memory can also strike where Python cannot report it.
    if status != 0:
        raise InvalidInput(
            f"{name} ended its renderer with status {status};"
            f" {MEMORY_LIMIT_BYTES} bytes of memory are allowed",
            code=_CODE,
        )
    try:
        parsed = json.loads(answer)
    except ValueError as error:
        raise _sandbox_failed(f"answered {len(answer)} bytes that are not JSON") from error
    if not isinstance(parsed, dict) or not parsed.keys() & {"text", "refused", "error"}:
        cause = parsed.get("sandbox") if isinstance(parsed, dict) else None
        raise _sandbox_failed(f"did not get as far as the template: {cause}")
    return parsed


def _run_child(job: bytes) -> tuple[int, bytes]:
    """Run the renderer on *job*; return its exit status and what it wrote, both bounded.

    Not by `flexinfer.process`: it supervises from an event loop, and here is a thread without one; and it gives its
    children no standard input, which is how a template of any size gets there.
    """
    folders = {str(Path(file).parent.parent) for file in (jinja2.__file__, markupsafe.__file__)}
    argv = [sys.executable, "-I", "-S", render_child.__file__, *sorted(folders)]
    # Six bytes are the most that one character takes in ASCII-only JSON, twelve beyond the BMP.
    most = 12 * OUTPUT_LIMIT_CHARS + 4096
    try:
        with tempfile.TemporaryFile() as stdin:
            stdin.write(job)
            stdin.seek(0)
            process = subprocess.Popen(
                argv,
                stdin=stdin,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env={},
                cwd="/",
                start_new_session=True,
            )
            with process:
                return _collect(process, most)
    except OSError as error:
        raise _sandbox_failed(f"could not start: {error}") from error


def _collect(process: subprocess.Popen[bytes], most: int) -> tuple[int, bytes]:
    stuck = threading.Event()

    def give_up() -> None:
        stuck.set()
        _kill(process)

    timer = threading.Timer(WALL_LIMIT_S, give_up)
    timer.start()
    try:
        assert process.stdout is not None  # it is a pipe
        answer = process.stdout.read(most + 1)
        if len(answer) > most:
            _kill(process)
        status = process.wait()
    finally:
        timer.cancel()
        timer.join()
        _kill(process)
    if stuck.is_set():
        raise _sandbox_failed(f"did not end within {WALL_LIMIT_S:g} s")
    return status, answer


def _kill(process: subprocess.Popen[bytes]) -> None:
    # Popen signals nothing once it has reaped the child, so no other process can be hit.
    if process.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _sandbox_failed(problem: str) -> ProcessFailed:
    return ProcessFailed(f"the template renderer {problem}", code="template_sandbox_failed")
