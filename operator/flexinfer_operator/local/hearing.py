"""Which health probes a ready engine left unanswered in a row, and whether it moved meanwhile. Pure.

Time in which nobody could ask (this process was stopped, the machine slept) says nothing of the engine: what was
counted before it is forgotten.
"""

from __future__ import annotations

from dataclasses import dataclass

from flexinfer_operator.plan.view import Silence


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How a ready engine is asked. Three unanswered probes replace it: about 20 s after it froze, 10 where a router
    suspects it."""

    every_s: float = 10.0
    """Between two probes of one that answers: what a liveness probe costs is a request that does no work."""
    again_s: float = 1.0
    """After one that was not answered; also the least between two probes, whoever asks for one."""
    timeout_s: float = 3.0
    """An answer that takes longer is none. A whole one takes a millisecond."""
    quick_s: float = 0.2
    """A probe that takes longer has the engine's processor time watched meanwhile."""
    gap_s: float = 2.0
    """We were late by more than this: it was we who did not run."""


DEFAULT_PACE = Pace()


@dataclass(slots=True, kw_only=True)
class Hearing:
    """The probes since the last answer."""

    pace: Pace
    silence: Silence | None = None
    _since_s: float = 0.0

    def answered(self) -> None:
        self.silence = None

    def unanswered(self, *, began_s: float, ended_s: float, moved: bool) -> None:
        """Count a probe. *moved*: whether the engine used processor time since the probe before it."""
        # Connecting and reading have a limit each.
        if self._is_gap(ended_s - began_s, expected_s=2 * self.pace.timeout_s):
            self.silence = None
            return
        before = self.silence
        if before is None:
            self._since_s = began_s
        self.silence = Silence(
            tries=1 if before is None else before.tries + 1,
            still_tries=0 if moved else 1 + (0 if before is None else before.still_tries),
            lasted_s=ended_s - self._since_s,
        )

    def paused(self, *, planned_s: float, took_s: float) -> None:
        """Note how long the pause before the next probe really was."""
        if self._is_gap(took_s, expected_s=planned_s):
            self.silence = None

    def pause_s(self) -> float:
        """Return how long to wait before the next probe, if nobody suspects it."""
        return self.pace.every_s if self.silence is None else self.pace.again_s

    def _is_gap(self, took_s: float, *, expected_s: float) -> bool:
        return took_s > expected_s + self.pace.gap_s
