"""A child process with all that it starts: wait for it, stop it, see what it says and uses."""

from __future__ import annotations

import asyncio
import os
import signal

from flexinfer.errors import ProcessFailed
from flexinfer.process import group, procfs
from flexinfer.process.leader import Leader
from flexinfer.process.logfile import LogReader
from flexinfer.process.output import Output
from flexinfer.process.procfs import Usage
from flexinfer.process.spec import ProcessSpec


class Child:
    """One process group. Made by `start` and `adopt` only.

    pid, pgid: the same number, its leader's. started_at: the leader's start in clock ticks since boot, 0 where
    the system does not tell. mark: what its descendants bear in their environment.

    When the leader ends, whatever it left behind is killed: an engine that crashed must not leave a worker on the
    GPU. Who starts a child waits for it, or asks for `returncode`, or stops it; else nobody notices its end.
    """

    def __init__(
        self,
        spec: ProcessSpec,
        leader: Leader,
        *,
        mark: str,
        output: Output | None,
        lifeline: int | None,
    ) -> None:
        """*lifeline*: the writing end of the pipe, owned from now on."""
        self.spec = spec
        self.pid = leader.pid
        self.pgid = leader.pid
        self.started_at = leader.started_at
        self.mark = mark
        self._leader = leader
        self._output = output
        self._lifeline = lifeline
        self._was_asked = False
        self._is_cleared = False

    def __repr__(self) -> str:
        return f"<Child {self.spec.name} pid={self.pid} returncode={self._leader.returncode}>"

    @property
    def returncode(self) -> int | None:
        """How it ended; None while it runs. Negative: the signal. `UNKNOWN_EXIT`: adopted, nobody told us.

        What it left behind outside its group is there until `wait` or `stop` has returned.
        """
        if self._leader.returncode is None and self._leader.has_ended():
            self._leader.signal_group(signal.SIGKILL)
            self._leader.reap()
        return self._leader.returncode

    @property
    def log_start(self) -> int:
        """How much of its log is of earlier starts; 0 without one."""
        return self._output.start if self._output is not None else 0

    async def wait(self) -> int:
        """Return how it ended, when it has. What it left behind is gone by then.

        Raises:
            ProcessFailed: code `process_unkillable`; something of it survives SIGKILL.
        """
        await self._leader.ended()
        self._leader.signal_group(signal.SIGKILL)
        try:
            await group.clear(
                self._leftovers, name=self.spec.name, is_settled=lambda: self._is_cleared
            )
        except ProcessFailed:
            self._leader.reap()
            raise
        return self._settle()

    async def stop(self, grace_s: float | None = None) -> int:
        """Ask the group to end, kill it after the grace time, and return how its leader ended.

        SIGTERM is sent once, however often this is called. Cancelled meanwhile, it kills at once.

        Raises:
            ProcessFailed: code `process_unkillable`; something of it survives SIGKILL.
        """
        try:
            if not self._was_asked:
                # Once: some programs take a second SIGTERM for an order to drop all.
                self._was_asked = True
                self._leader.signal_group(signal.SIGTERM)
                # A stopped process handles nothing but SIGKILL and this.
                self._leader.signal_group(signal.SIGCONT)
            if not await self._ends_within(self.spec.grace_s if grace_s is None else grace_s):
                self.kill()
                if not await self._ends_within(group.KILL_WAIT_S):
                    raise group.unkillable(self.spec.name, self._leftovers())
        except asyncio.CancelledError:
            self.kill()
            raise
        return await self.wait()

    def kill(self) -> None:
        """Kill the group now. `wait` tells when it is gone."""
        self._leader.signal_group(signal.SIGKILL)

    def detach(self) -> None:
        """Leave it running and let go of it: its record is the way back to it.

        Its lifeline is cut, if it has one.
        """
        self._leader.close()
        self._close()

    def tail(self, lines: int = 50) -> tuple[str, ...]:
        """Return the last lines that it wrote, oldest first; none of an earlier start."""
        return self._output.tail(lines) if self._output is not None else ()

    def reader(self) -> LogReader | None:
        """Return what reads its log from its own first line on; None without a log."""
        log_path = self.spec.log_path
        return None if log_path is None else LogReader(log_path, from_bytes=self.log_start)

    def usage(self) -> Usage | None:
        """Return what the whole group uses now; None if it ended, or off Linux.

        Costs a walk over all processes: a few milliseconds on a machine with hundreds.
        """
        return procfs.usage(self.pid, group=self.pgid)

    async def _ends_within(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await self._leader.ended()
        except TimeoutError:
            return self._leader.has_ended()
        return True

    def _leftovers(self) -> tuple[procfs.Stat, ...]:
        if self._leader.is_ours and self._leader.returncode is None:
            return procfs.members(self.pgid, mark=self.mark, since=self.started_at)
        # The group's number may be another's by now; the mark cannot be.
        return procfs.marked(self.mark, since=self.started_at)

    def _settle(self) -> int:
        self._is_cleared = True
        status = self._leader.reap()
        self._close()
        return status

    def _close(self) -> None:
        if self._output is not None:
            self._output.close()
        if self._lifeline is not None:
            os.close(self._lifeline)
            self._lifeline = None
