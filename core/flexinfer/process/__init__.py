"""Supervised child processes: the one place that starts any, but for the renderer of `formats.template`.

That one is asked from threads, reads its job from standard input, starts nothing, and is gone within its call.

    spec = ProcessSpec(name="engine", argv=(...), environment=inherited_environment(), cwd=folder, log_path=log)
    child = await start(spec)          # own session, empty standard input, nothing inherited that is not named
    Record.of(child).write(file)       # so that it is found after a crash of ours: `adopt`, `end`
    await child.wait()                 # or stop(): SIGTERM, the grace time, SIGKILL, for the whole group

`Progress` tells whether its work moves; `lifeline` tells a child that its parent is gone; `SingleInstance` keeps a
second instance out; `LogReader` follows a log; `free_port` and `who_listens` are for ports.
"""

from __future__ import annotations

from flexinfer.process.adoption import adopt, end, is_alive
from flexinfer.process.child import Child
from flexinfer.process.launch import start
from flexinfer.process.leader import UNKNOWN_EXIT
from flexinfer.process.lifeline import watch_lifeline, watch_lifeline_in_thread
from flexinfer.process.living import living
from flexinfer.process.logfile import LogReader
from flexinfer.process.ports import free_port, groups_listening, who_listens
from flexinfer.process.procfs import Usage
from flexinfer.process.progress import Progress
from flexinfer.process.record import Record, own_record
from flexinfer.process.running import Finished, run
from flexinfer.process.single import SingleInstance, holder
from flexinfer.process.spec import ProcessSpec, inherited_environment

__all__ = [
    "UNKNOWN_EXIT",
    "Child",
    "Finished",
    "LogReader",
    "ProcessSpec",
    "Progress",
    "Record",
    "SingleInstance",
    "Usage",
    "adopt",
    "end",
    "free_port",
    "groups_listening",
    "holder",
    "inherited_environment",
    "is_alive",
    "living",
    "own_record",
    "run",
    "start",
    "watch_lifeline",
    "watch_lifeline_in_thread",
    "who_listens",
]
