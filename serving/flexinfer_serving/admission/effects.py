"""What a gate says: the effects that its shell performs, and the names it uses."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import NewType

RequestId = NewType("RequestId", int)
"""Increasing in the order of arrival."""


class Phase(Enum):
    COLD = "cold"
    WARMING = "warming"
    OPEN = "open"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class GateLimits:
    max_requests: int
    max_bytes: int
    saturated_wait_s: float
    can_wake: bool
    """False where nobody would hear a demand: then an empty pool is answered at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Admit:
    request: RequestId
    replica: str
    why: str
    held_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Refuse:
    request: RequestId
    code: str
    message: str
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True)
class Wake:
    """Somebody waits and nothing is up: say so now."""


Effect = Admit | Refuse | Wake
