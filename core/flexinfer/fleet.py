"""What the router knows of the fleet, and what it tells the operator: two values and their JSON.

The operator publishes complete `FleetSnapshot`s with an increasing generation. A router answers with a
`DemandLease` for each Model: its wish, its load and the generation that it has applied. Times are ages in
seconds, never clock readings: the two may run on different machines.

On a unix socket (`run/operator.sock`) each message is one JSON object and a newline, at most MAX_LINE bytes:
`{"snapshot": {…}}` from the operator, `{"lease": {…}}` from a router.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from flexinfer.errors import InvalidInput

MAX_LINE = 8 * 1024 * 1024

ReplicaPhase = Literal["loading", "ready", "draining"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetReplica:
    """One running engine. `id` is what clients may see; `url` and `key` never leave the router."""

    id: str
    url: str
    phase: ReplicaPhase
    key: str = field(repr=False, default="")
    """The engine's own key, random for each launch."""
    substage: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ColdStart:
    """How long a start took here before, in seconds; `samples` 0 means that it is a guess."""

    p50_s: float = 10.0
    p95_s: float = 30.0
    samples: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why a Model cannot be served now. `retry_after_s` is when the operator tries again; None: not by itself."""

    code: str
    message: str
    retry_after_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetModel:
    """One Model as the router serves it."""

    name: str
    aliases: tuple[str, ...] = ()
    backend: str
    endpoints: tuple[str, ...] = ()
    strategy: str = "least-loaded"
    phase: str = "Idle"
    context_tokens: int
    slots: int
    """Requests that one replica takes at once."""
    created_unix_s: int = 0
    cold_start_timeout_s: float = 60.0
    scales_from_zero: bool = True
    cold_start: ColdStart = ColdStart()
    replicas: tuple[FleetReplica, ...] = ()
    failure: Failure | None = None
    artifact_digest: str = ""
    quantization: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetSnapshot:
    generation: int
    models: tuple[FleetModel, ...] = ()

    def find(self, name: str) -> FleetModel | None:
        """Return the Model of that name or alias; a name wins over an alias."""
        for model in self.models:
            if model.name == name:
                return model
        return next((model for model in self.models if name in model.aliases), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class DemandLease:
    """What one router wants of one Model. It holds for `ttl_s` after it arrived."""

    router: str
    model: str
    waiting: int = 0
    oldest_wait_s: float = 0.0
    in_flight: Mapping[str, int] = field(default_factory=dict)
    """Requests per replica id."""
    idle_s: float | None = None
    """Seconds since the last request ended or arrived; None: none since this router started."""
    generation: int = 0
    """The fleet generation that this router has applied."""
    ttl_s: float = 10.0

    @property
    def is_busy(self) -> bool:
        return self.waiting > 0 or any(self.in_flight.values())


def snapshot_to_line(snapshot: FleetSnapshot) -> bytes:
    """Return the message that carries *snapshot*."""
    return _line({"snapshot": asdict(snapshot)})


def lease_to_line(lease: DemandLease) -> bytes:
    """Return the message that carries *lease*."""
    return _line({"lease": asdict(lease)})


def parse_line(line: bytes) -> FleetSnapshot | DemandLease:
    """Return the value that a message carries. Unknown fields are ignored, so that versions may differ by one.

    Raises:
        InvalidInput: code `fleet_message`.
    """
    try:
        tree = json.loads(line)
        if "snapshot" in tree:
            return parse_snapshot(tree["snapshot"])
        lease = _known(DemandLease, tree["lease"])
        return DemandLease(**{**lease, "in_flight": dict(lease.get("in_flight", {}))})
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InvalidInput(
            f"fleet message of {len(line)} bytes: {error}", code="fleet_message"
        ) from error


def parse_snapshot(tree: Mapping[str, Any]) -> FleetSnapshot:
    """Return a snapshot from its JSON tree (also what a `static` fleet file becomes)."""
    return FleetSnapshot(
        generation=int(tree["generation"]),
        models=tuple(_model(model) for model in tree.get("models", ())),
    )


def _model(tree: Mapping[str, Any]) -> FleetModel:
    known = _known(FleetModel, tree)
    failure = known.pop("failure", None)
    cold_start = known.pop("cold_start", None)
    replicas = known.pop("replicas", ())
    plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in known.items()}
    model = FleetModel(
        **plain,
        replicas=tuple(FleetReplica(**_known(FleetReplica, r)) for r in replicas),
        failure=None if failure is None else Failure(**_known(Failure, failure)),
    )
    if cold_start is None:
        return model
    return replace(model, cold_start=ColdStart(**_known(ColdStart, cold_start)))


def _known(kind: type, tree: Mapping[str, Any]) -> dict[str, Any]:
    names = kind.__dataclass_fields__  # type: ignore[attr-defined]  # every kind here is a dataclass
    return {name: value for name, value in tree.items() if name in names}


def _line(tree: Mapping[str, Any]) -> bytes:
    return json.dumps(tree, separators=(",", ":")).encode() + b"\n"
