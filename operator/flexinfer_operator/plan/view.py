"""What a plan is made from: one immutable picture of the world, the same for every kind of cluster.

Instants (`…_s` without `unix`) are readings of one monotonic clock; only differences mean anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from flexinfer.artifact.evidence import TestResult
from flexinfer.engine import Limits
from flexinfer.fleet import DemandLease, Failure
from flexinfer.resources.model import Model, ModelStatus

ReplicaState = Literal["loading", "ready", "stopping"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What holds for all Models of one cluster."""

    max_loaded: int = 4
    """Engines that may exist at once, loading and stopping ones included."""
    vendors: frozenset[str] = frozenset({"cpu"})
    drain_timeout_s: float = 30.0
    """How long a draining replica may keep a place that somebody waits for, or serve what is refused by now."""
    drain_limit_s: float = 600.0
    """How long one may drain that is only replaced or deleted, while nobody waits for its place."""
    scale_up_wait_s: float = 1.0
    """How long a request waits behind a ready replica before another one is started."""
    swap_wait_s: float = 10.0
    """How long a request waits for room before a busy Model must make some."""
    backoff_s: float = 1.0
    """After a first crash; doubled by each further one, up to `backoff_cap_s`."""
    backoff_cap_s: float = 60.0
    stable_s: float = 60.0
    """A replica that was ready for so long ends a series of crashes."""
    unanswered_tries: int = 3
    """Health probes in a row that an engine may leave unanswered while it does not move; then it is replaced."""
    unanswered_busy_s: float = 120.0
    """How long one that moves may leave them unanswered: it computes, and has no time to answer."""
    build_backoff_s: float = 15.0
    build_backoff_cap_s: float = 600.0
    build_tries: int = 6
    """Builds of one source that may fail before only a change helps; those that failed in passing do not count."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Draining:
    """A replica that takes no new requests."""

    since_s: float
    generation: int | None = None
    """The first fleet generation that said so; None while it is not published."""
    for_model: str = ""
    """The Model that waits for the room; empty where the replica is not wanted for its own sake."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Silence:
    """Health probes that a ready replica left unanswered since it answered last."""

    tries: int
    still_tries: int
    """How many of them, up to the newest, found that its processor time had not moved either; 0: it moves."""
    lasted_s: float
    """From the first one's beginning to the newest one's end, as measured by who asked: a time in which nobody
    could ask is not in it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaView:
    """One engine that exists, or is about to."""

    id: str
    model: str
    revision: str
    digest: str
    state: ReplicaState
    created_s: float
    progress_s: float
    """When its load last moved: a log phase, CPU time, bytes read or memory."""
    ready_s: float | None = None
    last_active_s: float | None = None
    """When a lease last showed a request in flight here."""
    substage: str = ""
    waits_for: str = ""
    """Somebody else's work, in words, without which its load cannot go on: it has no process yet."""
    url: str = ""
    key: str = field(default="", repr=False)
    draining: Draining | None = None
    silence: Silence | None = None
    """None while it answers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaseView:
    """A router's lease that has not ended."""

    lease: DemandLease
    arrived_s: float
    expires_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RouterView:
    """A connected router and the fleet generation that it is known to have applied."""

    name: str
    generation: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Bound:
    """What a Model's source is bound to."""

    reference: str = ""
    digest: str = ""
    """Empty while nothing is published under the reference."""
    is_cached: bool = False
    """Every byte that the digest names is here."""
    damage: str = ""
    """Why bytes that were here are gone: they were not what their digest says."""
    doubt: str = ""
    """Which files were touched since their bytes were last found right; empty: none. The next start hashes them."""
    format: str = ""
    quantization: str = ""
    size_bytes: int = 0
    evidence: tuple[TestResult, ...] = ()
    """Test results bound to this digest."""
    fault: Failure | None = None
    """Why the source means nothing here: no such entry or variant."""
    unreadable: Failure | None = None
    """Why nothing can be said of the source now: the disk or the store refuses. It is looked at again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineFacts:
    """What plug-ins say of a Model: its engine's, and which routing strategies there are."""

    limits: Limits | None = None
    """None where the config has problems."""
    endpoints: tuple[str, ...] = ()
    formats: frozenset[str] = frozenset()
    problems: tuple[str, ...] = ()
    """One sentence for each key of `spec.config` that it does not accept, and for a strategy that is not here."""
    fault: Failure | None = None
    """Why there is no such engine here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Crash:
    """A replica that ended, or was ended, because it failed."""

    revision: str
    at_s: float
    code: str
    message: str
    ready_for_s: float = 0.0
    """How long it had been ready; 0 for one that failed while loading."""
    retryable: bool = True
    detail: str = ""
    """The last line of its log: for the Model's owner, not for clients."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildFailure:
    at_s: float
    message: str
    detail: str = ""
    """How it ended and where its log is: for the Model's owner, not for clients."""
    is_passing: bool = False
    """What it needs is away for now (the hub, the disk's room): it is tried again for ever."""
    is_wrong: bool = False
    """The bytes were fetched or made again, and are not what they must be: for damaged ones that was the one try."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Builds:
    """Builds of a Model's source that this operator asked for, since its artifact was last whole."""

    is_running: bool = False
    """It was asked for, and has not ended."""
    behind: str = ""
    """The source that is built before it can begin; empty: it has begun, or none is running."""
    failures: tuple[BuildFailure, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ColdStarts:
    """What starts of this artifact took here, in seconds."""

    samples: int
    p50_s: float
    p95_s: float
    phases: Mapping[str, float] = field(default_factory=dict)
    """Median of each phase that was measured: fetch, verify, start, load, first_token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelView:
    """One Model: the wish, and what is known of it."""

    model: Model
    generation: int
    created_unix_s: int = 0
    is_deleted: bool = False
    """Its owner removed it; it is shown until its last replica is gone."""
    edit_fault: str = ""
    """Why the newest edit was refused; `model` is the last good one."""
    bound: Bound = Bound()
    engine: EngineFacts = EngineFacts()
    builds: Builds = Builds()
    crashes: tuple[Crash, ...] = ()
    """Oldest first, at most a handful."""
    starts: int = 0
    """Replicas started so far: makes the next one's name."""
    last_active_s: float | None = None
    """When a request was last known to be waiting, in flight or just ended; None: never."""
    last_ready_s: float | None = None
    preempted_by: str = ""
    """The Model that its last replica made room for."""
    cold_starts: ColdStarts | None = None
    status: ModelStatus | None = None

    @property
    def name(self) -> str:
        return self.model.metadata.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Everything at once, at one revision."""

    revision: int
    unix_offset_s: float = 0.0
    """Wall clock minus monotonic clock, to show instants."""
    policy: Policy = Policy()
    models: tuple[ModelView, ...] = ()
    replicas: tuple[ReplicaView, ...] = ()
    """Each one's Model is among *models*: a removed one is shown until its last replica is gone."""
    leases: tuple[LeaseView, ...] = ()
    routers: tuple[RouterView, ...] = ()
