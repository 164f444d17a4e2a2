"""When to ask again: what can pass by itself, how long to wait, when to give up. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime

# What a server may answer differently a moment later (RFC 9110 section 15; 429: RFC 6585).
PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})
_MAX_EXPONENT = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """How patient a transfer is."""

    attempts: int = 5
    """Tries again in a row without progress."""
    total: int = 100
    """Tries again in all, progress or not."""
    base_s: float = 0.5
    cap_s: float = 30.0
    longest_retry_after_s: float = 120.0
    """A server that asks for more than this is not waited for."""

    def delay_s(self, failed: int, *, jitter: float, asked_s: float | None = None) -> float:
        """Return how long to wait after *failed* failures in a row (1 for the first).

        *jitter* is uniform in [0, 1): full jitter over the upper half, so that clients spread and none returns
        at once. What the server asked for is the least.
        """
        span = min(self.cap_s, self.base_s * 2.0 ** min(failed - 1, _MAX_EXPONENT))
        return max(asked_s or 0.0, 0.0) + span * (0.5 + jitter / 2)


def retry_after_s(headers: Mapping[str, str], *, now_unix_s: float) -> float | None:
    """Return the seconds of a `Retry-After` header, in either of its forms; None if it is absent or senseless."""
    text = headers.get("retry-after", "").strip()
    if text.isascii() and text.isdigit() and len(text) < 10:
        return float(text)
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError):
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, moment.timestamp() - now_unix_s)
