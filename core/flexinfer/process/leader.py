"""The first process of a group: whether it ended, how, and signals that can only ever reach its group.

A process group's number is its leader's. The kernel gives a number to nobody else while the leader has not been
waited for (be it a zombie) or any member lives. So what we started is signalled only before we reap it; and what
we adopted only while the process of that number has the recorded start time.
"""

from __future__ import annotations

import os
import signal
from contextlib import suppress

from flexinfer.process import procfs, waiting

# The exit status of an adopted process is told to its parent, not to us. No status has this value.
UNKNOWN_EXIT = -255


class Leader:
    """A process by its number and start time, with a kernel descriptor where there are such."""

    def __init__(self, pid: int, *, started_at: int, is_ours: bool) -> None:
        """*is_ours*: we are the parent, and nobody else waits for it."""
        self.pid = pid
        self.started_at = started_at
        self.is_ours = is_ours
        self.returncode: int | None = None
        self._descriptor = waiting.open_descriptor(pid)

    def has_ended(self) -> bool:
        """Return whether it ended. It is not reaped by asking."""
        if self.returncode is not None:
            return True
        if self._descriptor is not None:
            return waiting.has_ended(self._descriptor)
        if self.is_ours:
            return self._was_waited_for()
        return not procfs.is_same(self.pid, started_at=self.started_at)

    async def ended(self) -> None:
        """Return when it ended."""
        if self.has_ended():
            return
        if self._descriptor is not None:
            await waiting.ended(self._descriptor)
        else:
            await waiting.until(self.has_ended)

    def reap(self) -> int:
        """Return the exit status of an ended process: as `subprocess` gives it, or `UNKNOWN_EXIT`.

        From here on its number may be another's: nothing is signalled any more.
        """
        if self.returncode is None:
            self.returncode = self._status()
        self.close()
        return self.returncode

    def signal_group(self, number: signal.Signals) -> None:
        """Signal all of the group; nothing happens when it could be another's."""
        if self.returncode is not None:
            return
        if not self.is_ours and not procfs.is_same(self.pid, started_at=self.started_at):
            return
        # No process: it ended. No permission: it took another user's rights; what is left is found later.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    def close(self) -> None:
        """Give the descriptor back."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _status(self) -> int:
        try:
            if self.is_ours:
                return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
            if self._descriptor is not None:
                # A process that we let go of and adopted again is still our child.
                os.waitid(os.P_PIDFD, self._descriptor, os.WEXITED | os.WNOHANG)
        except ChildProcessError:
            pass
        return UNKNOWN_EXIT

    def _was_waited_for(self) -> bool:
        if hasattr(os, "waitid"):
            try:
                look = os.WEXITED | os.WNOHANG | os.WNOWAIT
                return os.waitid(os.P_PID, self.pid, look) is not None
            except ChildProcessError:
                return True
        # Without a way to look, looking reaps; the group is ended in the same breath.
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if pid:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
            self.returncode = os.waitstatus_to_exitcode(status)
        return bool(pid)
