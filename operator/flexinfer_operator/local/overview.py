"""What another process can say of this machine's Models: from `models/`, `state.db`, the records of engines and builds.

Reads only; works while the operator runs and when it does not.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flexinfer.builds import RunningBuild, running_builds
from flexinfer.errors import InvalidInput, NotFound
from flexinfer.places import Home
from flexinfer.process import Record, holder, living
from flexinfer.resources.model import Condition, Model, ModelStatus
from flexinfer.spelling import nearest
from flexinfer.units import format_bytes, format_duration
from flexinfer_operator.local.ledger import (
    ColdStartRecord,
    KnownModel,
    machine_name,
    read_state,
    summarize,
)
from flexinfer_operator.local.models import ModelFiles, WrittenModel


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOverview:
    """One Model: as written, as observed. Of a file that is refused only the status is known, which says why."""

    name: str
    file: Path
    model: Model | None
    fault: str
    """Why the newest edit of its file is refused; empty: it is not."""
    build: RunningBuild | None
    status: ModelStatus | None
    generation: int
    starts: tuple[ColdStartRecord, ...]
    """Newest first."""
    replicas: tuple[Record, ...]
    is_deleted: bool = False
    """Its file is gone, and an engine of it still runs."""

    @property
    def aliases(self) -> tuple[str, ...]:
        return () if self.model is None else self.model.spec.aliases

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
        status = "" if self.status is None else self.status.message
        if self.is_deleted:
            return (
                "deleted: its engine ends with the running answers (at most operator.drain_limit_s)"
            )
        if self.fault:
            return (
                self.fault
                if self.phase == "Failed"
                else f"refused, the old state stays: {self.fault}"
            )
        return self.build.words if self.build is not None and not self.replicas else status

    def as_row(self) -> dict[str, Any]:
        """Return it as `model ls --json` shows it."""
        spec = None if self.model is None else self.model.spec
        artifact = None if self.status is None else self.status.artifact
        return {
            "name": self.name,
            "phase": self.phase,
            "replicas": self.replica_count,
            "source": None if spec is None else spec.source,
            "backend": None if spec is None else spec.backend,
            "aliases": list(self.aliases),
            "digest": None if artifact is None else artifact.digest,
            "quantization": self.quantization,
            "sizeBytes": self.size_bytes,
            "coldStartSeconds": round(self.cold_start_s, 3) if self.starts else None,
            "building": None if self.build is None else self.build.as_tree(),
            "message": self.message,
            "refused": self.fault,
            "deleted": self.is_deleted,
            "file": str(self.file),
        }

    def as_tree(self) -> dict[str, Any]:
        """Return it as `model describe --json` shows it: the resource, with what is known beside it."""
        tree: dict[str, Any] = {"metadata": {"name": self.name}}
        if self.model is not None:
            tree = self.model.model_dump(mode="json", by_alias=True, exclude_none=True)
        if self.status is not None:
            tree["status"] = self.status.model_dump(mode="json", by_alias=True, exclude_none=True)
        estimate = summarize(self.starts)
        shown = tree.get("status", {}).get("coldStart")
        if shown is not None:  # a phase that nobody measured is 0.0 in the resource
            shown["phases"] = {name: s for name, s in shown["phases"].items() if s > 0}
        tree["generation"] = self.generation
        tree["file"] = str(self.file)
        tree["refused"] = self.fault
        tree["deleted"] = self.is_deleted
        tree["building"] = None if self.build is None else self.build.as_tree()
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
        model, status = self.model, self.status
        yield "name", self.name
        if self.aliases:
            yield "aliases", ", ".join(self.aliases)
        yield "phase", self.phase
        if self.message:
            for line in self.message.splitlines():
                yield "message", line
        if model is not None:
            yield "source", model.spec.source
            yield "backend", model.spec.backend
        yield "file", str(self.file)
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
    builds: tuple[RunningBuild, ...]
    """Those that run, whoever started them."""
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
            if name in one.aliases:
                return one
        known = [one.name for one in self.models]
        raise NotFound(f"no Model {name!r}{nearest(name, known)}", code="model_not_found")


def overview(home: Home) -> Overview:
    """Return all Models of *home*, sorted by name; while `models/` cannot be listed, those of the last operator.

    Raises:
        InvalidInput: code `model_files_unreadable`: `models/` cannot be listed, and nothing is known of it.
    """
    state = read_state(home.state_db, machine=machine_name())
    files = ModelFiles(home.models, owner=lambda name: _file_of(name, state.models))
    for _ in range(2):  # a fault is believed at the second look
        files.scan()
    records = tuple(living(home.replica_records))
    builds = running_builds(home)

    def seen(
        name: str, file: Path, model: Model | None, fault: str, status: ModelStatus | None
    ) -> ModelOverview:
        known = state.models.get(name)
        artifact = None if status is None else status.artifact
        return ModelOverview(
            name=name,
            file=file,
            model=model,
            fault=fault,
            build=None if model is None else _build_of(model.spec.source, builds),
            status=status,
            generation=0 if known is None else known.generation,
            starts=() if artifact is None else state.starts.get(artifact.digest, ()),
            replicas=tuple(one for one in records if one.extra.get("model") == name),
        )

    written = files.written()
    statuses = {name: known.status for name, known in state.models.items()}
    found = [
        seen(name, one.file, *_in_force(one, state.models.get(name)), statuses.get(name))
        for name, one in written.items()
    ]
    faults = files.faults()
    if (fault := faults.pop(home.models, "")) and not state.models:
        raise InvalidInput(fault, code="model_files_unreadable")
    if fault:
        found += [
            seen(name, home.models / known.file, known.model, fault, known.status)
            for name, known in state.models.items()
        ]
    for file, fault in faults.items():
        name, status = _served_from(file.name, state.models, written)
        found.append(seen(name or file.stem, file, None, fault, status or _refused(fault)))
    shown = {one.name for one in found}
    for name in sorted({one.extra.get("model", "") for one in records} - shown):
        if (known := state.models.get(name)) is not None:
            gone = seen(name, home.models / known.file, known.model, "", known.status)
            found.append(replace(gone, is_deleted=True))
    return Overview(
        models=tuple(sorted(found, key=lambda one: one.name)),
        builds=builds,
        is_operator_running=holder(home.operator_lock) is not None,
    )


def _file_of(name: str, known: Mapping[str, KnownModel]) -> str:
    return known[name].file if name in known else ""


def _in_force(written: WrittenModel, known: KnownModel | None) -> tuple[Model, str]:
    """Return the Model that holds, and why the newest edit of its file is refused; empty: it is not.

    What the operator refused it kept the old state of; it may know more than the file tells.
    """
    if known is None or known.model is None or known.file != written.file.name:
        return written.model, written.fault
    conditions = () if known.status is None else known.status.conditions
    refused = next((c.message for c in conditions if c.reason == "EditRefused"), "")
    if not refused or written.model == known.model:
        return written.model, written.fault
    return known.model, written.fault or refused


def _served_from(
    file: str, known: Mapping[str, KnownModel], written: Collection[str]
) -> tuple[str, ModelStatus | None]:
    """Return the Model whose last good state holds though its *file* is refused now; empty: there is none."""
    for name, one in known.items():
        conditions = () if one.status is None or name in written else one.status.conditions
        if one.file == file and any(c.reason == "EditRefused" for c in conditions):
            return name, one.status
    return "", None


def _refused(fault: str) -> ModelStatus:
    """Return the status of a Model whose file was never a good one."""
    condition = Condition(type="ConfigValid", status="False", reason="EditRefused", message=fault)
    return ModelStatus(phase="Failed", conditions=(condition,), message=fault)


def _build_of(source: str, builds: Iterable[RunningBuild]) -> RunningBuild | None:
    entry = source.removeprefix("catalog://")
    wanted = (source, entry)
    return next(
        (one for one in builds if one.target in wanted or one.target.startswith(f"{entry}/")), None
    )
