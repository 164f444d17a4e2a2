"""The Models that this operator knows, with all that it found out about each."""

from __future__ import annotations

import hashlib
from collections.abc import ItemsView
from dataclasses import dataclass, field

from flexinfer.clock import Clock
from flexinfer.engine import EngineArtifact
from flexinfer.resources.model import Model, ModelStatus
from flexinfer_operator.local.binding import Binding
from flexinfer_operator.local.ledger import KnownModel
from flexinfer_operator.local.models import WrittenModel
from flexinfer_operator.plan.view import Bound, Builds, ColdStarts, Crash, EngineFacts, ModelView

# More in a row than doubling from a second to a minute takes.
_MAX_CRASHES = 8


@dataclass(slots=True, kw_only=True, eq=False)
class Known:
    """One Model. Changed in place by the cluster, shown to the plan as a `ModelView`."""

    model: Model
    spec_hash: str
    generation: int
    created_unix_s: int
    file: str
    is_deleted: bool = False
    edit_fault: str = ""
    bound: Bound = field(default_factory=Bound)
    engine: EngineFacts = field(default_factory=EngineFacts)
    artifact: EngineArtifact | None = None
    crashes: tuple[Crash, ...] = ()
    starts: int = 0
    last_ready_s: float | None = None
    preempted_by: str = ""
    cold_starts: ColdStarts | None = None
    status: ModelStatus | None = None
    damaged_s: float | None = None
    """When a start last found that its bytes are not what they must be."""

    @property
    def name(self) -> str:
        return self.model.metadata.name

    def crashed(self, crash: Crash) -> None:
        """Remember a crash; the last few are enough."""
        self.crashes = (*self.crashes, crash)[-_MAX_CRASHES:]

    def view(self, *, builds: Builds, last_active_s: float | None) -> ModelView:
        return ModelView(
            model=self.model,
            generation=self.generation,
            created_unix_s=self.created_unix_s,
            is_deleted=self.is_deleted,
            edit_fault=self.edit_fault,
            bound=self.bound,
            engine=self.engine,
            builds=builds,
            crashes=self.crashes,
            starts=self.starts,
            last_active_s=last_active_s,
            last_ready_s=self.last_ready_s,
            preempted_by=self.preempted_by,
            cold_starts=self.cold_starts,
            status=self.status,
        )

    def remembered(self) -> KnownModel:
        """Return what is kept of it over a restart."""
        return KnownModel(
            spec_hash=self.spec_hash,
            generation=self.generation,
            created_unix_s=self.created_unix_s,
            starts=self.starts,
            status=self.status,
            file=self.file,
            model=self.model,
        )


class Shelf:
    """All Known ones by name."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._known: dict[str, Known] = {}

    def __contains__(self, name: object) -> bool:
        return name in self._known

    def get(self, name: str) -> Known | None:
        return self._known.get(name)

    def items(self) -> ItemsView[str, Known]:
        return self._known.items()

    def names(self) -> frozenset[str]:
        return frozenset(self._known)

    def wish(self, name: str) -> tuple[int, str] | None:
        """Return what differs when a Model wants something else: its generation and its artifact's reference."""
        known = self._known.get(name)
        return None if known is None else (known.generation, known.bound.reference)

    def status(self, name: str, remembered: KnownModel | None) -> ModelStatus | None:
        """Return the newest status of a Model, which may be that of an earlier operator."""
        known = self._known.get(name)
        if known is not None:
            return known.status
        return None if remembered is None else remembered.status

    def put(
        self, written: WrittenModel, binding: Binding, remembered: KnownModel | None
    ) -> tuple[Known, bool]:
        """Note how a Model is written and bound now; return it, and whether anything differs."""
        model = written.model
        spec_hash = _spec_hash(model)
        known = self._known.get(model.metadata.name)
        if known is None:
            known = self._new(written, spec_hash, remembered)
            self._known[known.name] = known
            is_different = True
        else:
            is_different = (
                known.is_deleted
                or (known.model, known.edit_fault) != (model, written.fault)
                or known.file != written.file.name
                or (known.bound, known.engine) != (binding.bound, binding.engine)
            )
        if known.spec_hash != spec_hash:
            known.spec_hash = spec_hash
            known.generation += 1
        if known.bound.digest != binding.bound.digest:
            known.cold_starts = None
        known.model, known.edit_fault, known.is_deleted = model, written.fault, False
        known.file = written.file.name
        known.bound, known.engine = binding.bound, binding.engine
        known.artifact = binding.artifact
        return known, is_different

    def note_start(self, name: str, replica: str) -> None:
        """Count the start of an engine that was taken over, should nobody remember it: no other may get its name."""
        number = replica.rpartition("-")[2]
        if name in self._known and number.isascii() and number.isdecimal():
            known = self._known[name]
            known.starts = max(known.starts, int(number))

    def delete(self, name: str) -> None:
        """Mark it: it is forgotten when its last replica is gone."""
        self._known[name].is_deleted = True

    def forget(self, name: str) -> None:
        del self._known[name]

    def _new(self, written: WrittenModel, spec_hash: str, remembered: KnownModel | None) -> Known:
        if remembered is None:
            return Known(
                model=written.model,
                file=written.file.name,
                spec_hash=spec_hash,
                generation=1,
                created_unix_s=int(self._clock.unix_s()),
            )
        return Known(
            model=written.model,
            file=written.file.name,
            spec_hash=remembered.spec_hash,
            generation=remembered.generation,
            created_unix_s=remembered.created_unix_s,
            starts=remembered.starts,
            status=remembered.status,
        )


def _spec_hash(model: Model) -> str:
    """Return the hash of what its owner wrote."""
    text = model.spec.model_dump_json() + model.metadata.model_dump_json()
    return hashlib.sha256(text.encode()).hexdigest()
