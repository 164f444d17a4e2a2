"""What a plan asks for. Each action is idempotent: done twice, it does nothing the second time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from flexinfer.fleet import FleetModel
from flexinfer.resources.model import ModelStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Start the replica of that name; done when it is under way, not when it is ready."""

    model: str
    replica: str
    revision: str
    digest: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Drain:
    """Tell routers to choose it no more."""

    model: str
    replica: str
    for_model: str = ""
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Undrain:
    """Let routers choose it again."""

    model: str
    replica: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """End the process, first with SIGTERM."""

    model: str
    replica: str
    why: str
    failed_as: str = ""
    """The code of the failure that this ends: `load_stalled`, `engine_unresponsive`; empty: it did not fail."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Build:
    """Build the source's artifact at low priority; done when it is under way."""

    model: str
    source: str
    reference: str
    why: str


Action = Start | Drain | Undrain | Stop | Build


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    actions: tuple[Action, ...] = ()
    statuses: Mapping[str, ModelStatus] = field(default_factory=dict)
    """The status of every Model that still has an owner."""
    fleet: tuple[FleetModel, ...] = ()
    """What routers shall know."""
    again_after_s: float | None = None
    """When to plan again though nothing changes; None: only on a change."""
    why: Mapping[str, str] = field(default_factory=dict)
    """One sentence for each Model: what decided."""
