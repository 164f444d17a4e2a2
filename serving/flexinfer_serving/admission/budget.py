"""How many requests may be sent again: a share of live traffic, so that retries never become the load."""

from __future__ import annotations

# At most 20 % of traffic, with a small allowance so that a quiet router may retry at all.
SHARE = 0.2
ALLOWANCE = 10.0


class RetryBudget:
    """A bucket that each request fills by SHARE and each retry empties by 1."""

    def __init__(self, *, share: float = SHARE, allowance: float = ALLOWANCE) -> None:
        self._share = share
        self._allowance = allowance
        self._left = allowance

    def arrived(self) -> None:
        self._left = min(self._allowance, self._left + self._share)

    def take(self) -> bool:
        """Return whether one retry is within the budget, and count it if so."""
        if self._left < 1.0:
            return False
        self._left -= 1.0
        return True
