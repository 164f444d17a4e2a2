"""Whether work moves: what its process says, processor time, bytes read, resident memory. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from flexinfer.process.procfs import Usage

# Less than this is what a process does that waits for something that never comes: timers, a heartbeat, answers to
# whoever asks whether it is ready. Of the time since the last move, so that it never adds up to a move.
_CPU_SHARE = 0.02
_CPU_S = 0.05
_READ_BYTES = 64 * 1024
_RSS_BYTES = 512 * 1024


@dataclass(slots=True, kw_only=True)
class Progress:
    """What was seen at the last move; `at_s` is when that was."""

    at_s: float
    substage: str = ""
    cpu_s: float = 0.0
    read_bytes: int = 0
    rss_bytes: int = 0

    def enters(self, substage: str, *, now_s: float) -> bool:
        """Note what it says it is at; return whether that is something else than before."""
        if substage == self.substage:
            return False
        self.substage, self.at_s = substage, now_s
        return True

    def uses(self, usage: Usage, *, now_s: float) -> bool:
        """Note what the process uses now; return whether anything moved since the last move."""
        # Page faults of mapped files count as one, read calls (also from the page cache) as the other.
        read_bytes = usage.read_bytes + usage.read_call_bytes
        moved = (
            usage.cpu_s - self.cpu_s >= max(_CPU_S, _CPU_SHARE * (now_s - self.at_s))
            or read_bytes - self.read_bytes >= _READ_BYTES
            or abs(usage.rss_bytes - self.rss_bytes) >= _RSS_BYTES
        )
        if moved:
            self.cpu_s, self.read_bytes, self.rss_bytes = (
                usage.cpu_s,
                read_bytes,
                usage.rss_bytes,
            )
            self.at_s = now_s
        return moved

    def computes(self, usage: Usage) -> bool:
        """Note what the process uses now; return whether it computed since the last call."""
        before, self.cpu_s = self.cpu_s, usage.cpu_s
        return usage.cpu_s - before >= _CPU_S
