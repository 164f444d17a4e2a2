"""Why a request went where it went: the last decisions, bounded, without a word of any prompt."""

from __future__ import annotations

import hashlib
import secrets
from collections import OrderedDict
from dataclasses import asdict, dataclass, field
from typing import Any

MAX_RECORDS = 1024
MAX_STEPS = 64
_SHOWN_DIGITS = 12


def opaque(replica: str) -> str:
    """Return what a client sees of a replica: the same for the same one, and nothing of its Model or count."""
    return hashlib.sha256(replica.encode()).hexdigest()[:_SHOWN_DIGITS]


@dataclass(slots=True)
class Record:
    """One request's decisions, in order, each with the seconds since its arrival."""

    id: str
    request_id: str
    at_unix_s: float
    started_s: float
    route: str
    model: str = ""
    size_bytes: int = 0
    steps: list[dict[str, Any]] = field(default_factory=list)

    def note(self, what: str, *, now_s: float, **fields: str | float | int | None) -> None:
        """Add a step; beyond MAX_STEPS the last one is replaced."""
        if len(self.steps) >= MAX_STEPS:
            self.steps.pop()
        self.steps.append({"at_s": round(now_s - self.started_s, 4), "what": what, **fields})


class Decisions:
    """The ring of records. The oldest goes when it is full."""

    def __init__(self, *, limit: int = MAX_RECORDS) -> None:
        self._limit = limit
        self._records: OrderedDict[str, Record] = OrderedDict()

    def open(self, *, request_id: str, route: str, now_s: float, unix_s: float) -> Record:
        record = Record(
            id=f"x-{secrets.token_hex(8)}",
            request_id=request_id,
            at_unix_s=round(unix_s, 3),
            started_s=now_s,
            route=route,
        )
        self._records[record.id] = record
        while len(self._records) > self._limit:
            self._records.popitem(last=False)
        return record

    def find(self, name: str) -> dict[str, Any] | None:
        """Return the record with that id, or the latest one of that request id; None if it is gone."""
        found = self._records.get(name)
        if found is None:
            found = next(
                (r for r in reversed(self._records.values()) if r.request_id == name), None
            )
        if found is None:
            return None
        tree = asdict(found)
        del tree["started_s"]
        return tree
