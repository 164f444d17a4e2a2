"""Find a child again by its record, after a crash of the process that started it."""

from __future__ import annotations

import asyncio
from pathlib import Path

from flexinfer.errors import NotFound
from flexinfer.process import group, procfs
from flexinfer.process.child import Child
from flexinfer.process.leader import Leader
from flexinfer.process.output import FileOutput
from flexinfer.process.record import Record
from flexinfer.process.spec import GRACE_S, MAX_LOG_BYTES, ProcessSpec


def is_alive(record: Record) -> bool:
    """Return whether the process runs: the same boot, number and start time. A zombie does not run.

    Off Linux nothing is known of other processes, and the answer is no.
    """
    return bool(record.boot_id) and (
        record.boot_id == procfs.boot_id()
        and procfs.is_same(record.pid, started_at=record.start_ticks)
    )


def adopt(record: Record, *, grace_s: float = GRACE_S, max_log_bytes: int = MAX_LOG_BYTES) -> Child:
    """Return the running child of *record*, as good as one just started, save its exit status.

    `wait` and `stop` give `UNKNOWN_EXIT`: only a parent is told. Its log goes on, and is kept small where
    this is called in a running loop.

    Raises:
        NotFound: code `process_gone`; it ended, or its number is another's by now. `end` still clears up
            after it.
    """
    # The descriptor first, the check after it: then both mean the same process.
    leader = Leader(record.pid, started_at=record.start_ticks, is_ours=False)
    if not is_alive(record):
        leader.close()
        raise NotFound(f"process {record.name} (pid {record.pid}) is gone", code="process_gone")
    output = _output(record, max_log_bytes)
    spec = ProcessSpec(
        name=record.name, argv=procfs.command_of(record.pid) or (record.name,), environment={},
        cwd=Path("/"), log_path=record.log_path, grace_s=grace_s, lifeline=False,
        max_log_bytes=max_log_bytes,
    )  # fmt: skip
    return Child(spec, leader, mark=record.mark, output=output, lifeline=None)


async def end(record: Record, grace_s: float = GRACE_S) -> None:
    """End what *record* names and all that it started; return at once where nothing of it is left.

    Raises:
        ProcessFailed: code `process_unkillable`; something of it survives SIGKILL.
    """
    try:
        child = adopt(record, grace_s=grace_s)
    except NotFound:
        await _clear_up(record)
    else:
        await child.stop(grace_s)


async def _clear_up(record: Record) -> None:
    if not record.boot_id or record.boot_id != procfs.boot_id():
        return

    def find() -> tuple[procfs.Stat, ...]:
        return procfs.marked(record.mark, since=record.start_ticks)

    await group.clear(find, name=record.name, is_settled=lambda: False)


def _output(record: Record, max_log_bytes: int) -> FileOutput | None:
    if record.log_path is None:
        return None
    output = FileOutput(record.log_path, max_bytes=max_log_bytes, start=record.log_start)
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return output
    output.keep_small(loop)
    return output
