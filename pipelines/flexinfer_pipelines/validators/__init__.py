"""What is measured before anything is published: a validator measures with real parts and judges purely."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from flexinfer.formats.gguf import GgufHeader
from flexinfer.plugins import Registry
from flexinfer.resources.entry import Validate

if TYPE_CHECKING:
    from flexinfer_pipelines.validators.bench import Bench

Number = float | int | str | bool
Measurements = Mapping[str, Number]


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """One file of weights to be measured, in a folder that an engine can be given."""

    folder: Path
    file: str
    digest: str
    """`sha256:…` of the file."""
    header: GgufHeader = field(repr=False)
    size_bytes: int

    @property
    def path(self) -> Path:
        return self.folder / self.file

    @property
    def quantization(self) -> str:
        return self.header.quantization or "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a validator concludes: one sentence for each measurement that misses its threshold."""

    failures: tuple[str, ...] = ()
    thresholds: Mapping[str, float] = field(default_factory=dict)
    """What was wanted, under the names of the measurements."""

    @property
    def passes(self) -> bool:
        return not self.failures


class Validator(ABC):
    """One kind of measurement. `judge` is pure: the same measurements and thresholds give the same verdict."""

    name: ClassVar[str]
    order: ClassVar[int]
    """Cheap ones first: what they find spares the others."""

    @abstractmethod
    def is_asked(self, checks: Validate, *, is_copy: bool) -> bool:
        """Return whether the variant wants it. *is_copy*: candidate and base are the same bytes."""

    @abstractmethod
    async def measure(self, bench: Bench, candidate: Subject, base: Subject) -> Measurements:
        """Return what was measured; names begin with the validator's own."""

    @abstractmethod
    def judge(self, measurements: Measurements, checks: Validate) -> Verdict:
        """Return whether that is good enough."""


VALIDATORS: Registry[Validator] = Registry("flexinfer.validators", Validator)
