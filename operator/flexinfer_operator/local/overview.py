"""What another process can say of this machine's Models: from `models/`, `state.db` and the records of engines.

Reads only; works while the operator runs and when it does not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from flexinfer.errors import FlexInferError, NotFound
from flexinfer.places import Home
from flexinfer.process import Record, holder, is_alive
from flexinfer.resources.model import ModelStatus
from flexinfer.spelling import nearest
from flexinfer.units import format_bytes, format_duration
from flexinfer_operator.local.ledger import ColdStartRecord, machine_name, read_state, summarize
from flexinfer_operator.local.models import ModelFiles, WrittenModel


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOverview:
    """One Model: as written, as observed."""

    written: WrittenModel
    status: ModelStatus | None
    generation: int
    starts: tuple[ColdStartRecord, ...]
    """Newest first."""
    replicas: tuple[Record, ...]

    @property
    def name(self) -> str:
        return self.written.model.metadata.name

    @property
    def phase(self) -> str:
        return "Unknown" if self.status is None else self.status.phase

    @property
    def replica_count(self) -> int:
        return len(self.replicas)

    @property
    def quantization(self) -> str:
        artifact = None if self.status is None else self.status.artifact
        return "" if artifact is None else artifact.quantization

    @property
    def size_bytes(self) -> int:
        artifact = None if self.status is None else self.status.artifact
        return 0 if artifact is None else artifact.size_bytes

    @property
    def cold_start_s(self) -> float:
        return summarize(self.starts).p50_s

    @property
    def message(self) -> str:
        return self.written.fault or ("" if self.status is None else self.status.message)

    def as_row(self) -> dict[str, Any]:
        """Return it as `model ls --json` shows it."""
        spec = self.written.model.spec
        artifact = None if self.status is None else self.status.artifact
        return {
            "name": self.name,
            "phase": self.phase,
            "replicas": self.replica_count,
            "source": spec.source,
            "backend": spec.backend,
            "aliases": list(spec.aliases),
            "digest": None if artifact is None else artifact.digest,
            "quantization": self.quantization,
            "sizeBytes": self.size_bytes,
            "coldStartSeconds": round(self.cold_start_s, 3) if self.starts else None,
            "message": self.message,
            "file": str(self.written.file),
        }

    def as_tree(self) -> dict[str, Any]:
        """Return it as `model describe --json` shows it: the resource, with what is known beside it."""
        resource = self.written.model.model_copy(update={"status": self.status})
        tree: dict[str, Any] = resource.model_dump(mode="json", by_alias=True, exclude_none=True)
        estimate = summarize(self.starts)
        shown = tree.get("status", {}).get("coldStart")
        if shown is not None:  # a phase that nobody measured is 0.0 in the resource
            shown["phases"] = {name: s for name, s in shown["phases"].items() if s > 0}
        tree["generation"] = self.generation
        tree["file"] = str(self.written.file)
        tree["refused"] = self.written.fault
        tree["coldStarts"] = {
            "samples": estimate.samples,
            "p50Seconds": round(estimate.p50_s, 3) if estimate.samples else None,
            "p95Seconds": round(estimate.p95_s, 3) if estimate.samples else None,
            "last": [
                {"replica": one.replica, "atUnixSeconds": round(one.at_unix_s, 3)}
                | {name: round(seconds, 6) for name, seconds in one.phases.items() if seconds > 0}
                for one in self.starts[:5]
            ],
        }
        tree["replicas"] = [
            {
                "id": one.name,
                "pid": one.pid,
                "url": one.extra.get("url", ""),
                "digest": one.extra.get("digest", ""),
                "revision": one.extra.get("revision", ""),
                "log": str(one.log_path),
            }
            for one in self.replicas
        ]
        return tree

    def as_lines(self) -> Iterator[tuple[str, str]]:
        """Yield it as `model describe` shows it."""
        model, status = self.written.model, self.status
        yield "name", self.name
        if model.spec.aliases:
            yield "aliases", ", ".join(model.spec.aliases)
        yield "phase", self.phase
        if self.message:
            for line in self.message.splitlines():
                yield "message", line
        yield "source", model.spec.source
        yield "backend", model.spec.backend
        yield "file", str(self.written.file)
        if status is not None and status.artifact is not None:
            yield "reference", status.artifact.reference
            yield "digest", status.artifact.digest
            size = format_bytes(status.artifact.size_bytes)
            yield "artifact", f"{status.artifact.format} {status.artifact.quantization}, {size}"
        if status is not None and status.last_active_time:
            yield "last active", status.last_active_time
        for one in () if status is None else status.conditions:
            why = f"{one.reason}: {one.message}" if one.message else one.reason
            yield "condition", f"{one.type}={one.status} {why} since {one.last_transition_time}"
        estimate = summarize(self.starts)
        if estimate.samples:
            yield (
                "cold start",
                f"p50 {format_duration(estimate.p50_s)}, p95 {format_duration(estimate.p95_s)} "
                f"over {estimate.samples}",
            )
            for name, seconds in estimate.phases.items():
                yield "", f"{name:<12} {format_duration(seconds)}"
        for record in self.replicas:
            yield "replica", f"{record.name} pid {record.pid} {record.extra.get('url', '')}"
            yield "", f"log {record.log_path}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    models: tuple[ModelOverview, ...]
    faults: tuple[str, ...]
    is_operator_running: bool

    def find(self, name: str) -> ModelOverview:
        """Return the Model of that name, or of that alias.

        Raises:
            NotFound: code `model_not_found`, with the nearest name.
        """
        for one in self.models:
            if one.name == name:
                return one
        for one in self.models:
            if name in one.written.model.spec.aliases:
                return one
        known = [one.name for one in self.models]
        refused = (
            f"; refused, so its last good state serves if it had one: {self.faults[0]}"
            if self.faults
            else ""
        )
        raise NotFound(f"no Model {name!r}{nearest(name, known)}{refused}", code="model_not_found")


def overview(home: Home) -> Overview:
    """Return all Models of *home*, sorted by name."""
    files = ModelFiles(home.models)
    for _ in range(2):  # a fault is believed at the second look
        files.scan()
    state = read_state(home.state_db, machine=machine_name())
    records = _records(home)
    found = []
    for name, written in sorted(files.written().items()):
        known = state.models.get(name)
        status = None if known is None else known.status
        artifact = None if status is None else status.artifact
        found.append(
            ModelOverview(
                written=written,
                status=status,
                generation=0 if known is None else known.generation,
                starts=() if artifact is None else state.starts.get(artifact.digest, ()),
                replicas=tuple(one for one in records if one.extra.get("model") == name),
            )
        )
    return Overview(
        models=tuple(found),
        faults=tuple(files.faults().values()),
        is_operator_running=holder(home.operator_lock) is not None,
    )


def _records(home: Home) -> tuple[Record, ...]:
    found = []
    folder = home.replica_records
    for file in sorted(folder.glob("*.json")) if folder.is_dir() else ():
        try:
            record = Record.read(file)
        except (FlexInferError, OSError):
            continue  # the operator deals with it
        if record is not None and is_alive(record):
            found.append(record)
    return tuple(found)
