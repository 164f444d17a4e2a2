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
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field, TypeAdapter, ValidationError

from flexinfer.errors import InvalidInput

MAX_LINE = 8 * 1024 * 1024
_MAX_NAMED = 5

V = TypeVar("V")
# What a message may hold; code that makes these values is trusted.
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]
ReplicaPhase = Literal["loading", "ready", "draining"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetReplica:
    """One running engine. Clients see a hash of `id`; `url` and `key` never leave the router."""

    id: str
    url: str
    phase: ReplicaPhase
    key: str = field(repr=False, default="")
    """The engine's own key, random for each launch."""
    substage: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ColdStart:
    """How long a start took here before, in seconds; `samples` 0 means that it is a guess."""

    p50_s: Seconds = 10.0
    p95_s: Seconds = 30.0
    samples: Count = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why a Model cannot be served now. `retry_after_s` is when the operator tries again; None: not by itself."""

    code: str
    message: str
    retry_after_s: Seconds | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetModel:
    """One Model as the router serves it."""

    name: str
    aliases: tuple[str, ...] = ()
    backend: str
    endpoints: tuple[str, ...] = ()
    """What its engine answers, `chat/completions` for one; empty: not known, as before it could be bound."""
    strategy: str = "least-loaded"
    phase: str = "Idle"
    context_tokens: Count
    slots: Count
    """Requests that one replica takes at once."""
    created_unix_s: Count = 0
    cold_start_timeout_s: Seconds = 60.0
    scales_from_zero: bool = True
    is_deleted: bool = False
    """It is shown until its last answer has ended, and offered to nobody."""
    cold_start: ColdStart = ColdStart()
    replicas: tuple[FleetReplica, ...] = ()
    failure: Failure | None = None
    waits_for: str = ""
    """What a start cannot begin without and is on its way, in words for clients: `its build`; empty: nothing."""
    artifact_digest: str = ""
    quantization: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetSnapshot:
    generation: Count
    models: tuple[FleetModel, ...] = ()

    @property
    def offered(self) -> tuple[FleetModel, ...]:
        """Return the Models that clients may ask for."""
        return tuple(model for model in self.models if not model.is_deleted)

    def find(self, name: str) -> FleetModel | None:
        """Return the Model of that name or alias that clients may ask for; a name wins over an alias."""
        offered = self.offered
        for model in offered:
            if model.name == name:
                return model
        return next((model for model in offered if name in model.aliases), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class DemandLease:
    """What one router wants of one Model. It holds for `ttl_s` after it arrived."""

    router: str
    model: str
    waiting: Count = 0
    oldest_wait_s: Seconds = 0.0
    in_flight: Mapping[str, Count] = field(default_factory=dict)
    """Requests per replica id."""
    idle_s: Seconds | None = None
    """Seconds since the last request ended or arrived; None: none since this router started."""
    generation: Count = 0
    """The fleet generation that this router has applied."""
    ttl_s: Seconds = 10.0
    first_token_s: Mapping[str, Seconds] = field(default_factory=dict)
    """Per replica id: how long its first streamed answer took from being sent to its first byte. Told once for each."""
    suspects: tuple[str, ...] = ()
    """Replica ids that had no answer for this router and are not trusted again yet: the operator asks them at once."""

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
        InvalidInput: code `fleet_message`; the message names the field, never its value (it may be a key).
    """
    if len(line) > MAX_LINE:
        raise _bad(f"expected at most {MAX_LINE} bytes, found {len(line)}")
    try:
        tree = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise _bad(f"{len(line)} bytes that are not JSON") from error
    match tree:
        case {"snapshot": dict(snapshot)}:
            return parse_snapshot(snapshot)
        case {"lease": dict(lease)}:
            return _parsed(_lease_reader(), lease)
        case _:
            raise _bad('expected {"snapshot": …} or {"lease": …}')


def parse_snapshot(tree: Mapping[str, Any]) -> FleetSnapshot:
    """Return a snapshot from its JSON tree.

    Raises:
        InvalidInput: as `parse_line`.
    """
    return _parsed(_snapshot_reader(), tree)


def _parsed(reader: TypeAdapter[V], tree: Mapping[str, Any]) -> V:
    try:
        return reader.validate_python(tree)
    except ValidationError as error:
        wrong = [
            f"{'.'.join(str(step) for step in one['loc'])}: {one['msg']}"
            for one in error.errors(include_url=False, include_input=False)[:_MAX_NAMED]
        ]
        raise _bad("; ".join(wrong)) from None


@cache
def _snapshot_reader() -> TypeAdapter[FleetSnapshot]:
    return TypeAdapter(FleetSnapshot)


@cache
def _lease_reader() -> TypeAdapter[DemandLease]:
    return TypeAdapter(DemandLease)


def _bad(what: str) -> InvalidInput:
    return InvalidInput(f"fleet message: {what}", code="fleet_message")


def _line(tree: Mapping[str, Any]) -> bytes:
    return json.dumps(tree, separators=(",", ":"), allow_nan=False).encode() + b"\n"
