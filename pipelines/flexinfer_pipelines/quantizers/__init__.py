"""How weights are made smaller: a quantizer turns a job into a `Command` and runs nothing itself."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from flexinfer.oci import Digest
from flexinfer.plugins import Registry
from flexinfer.toolenv import ToolEnvironment
from flexinfer_pipelines.command import Command
from flexinfer_pipelines.plan import Ability, Recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One file of weights, and what it shall become."""

    weights: Digest
    recipe: Recipe
    output_name: str
    stall_s: float


class Quantizer(ABC):
    """One kind of quantization. Stateless; every method is pure but for reading its own program and lock."""

    name: ClassVar[str]
    tool: ClassVar[str]
    """The tool environment that it runs in."""
    program: ClassVar[Path]
    types: ClassVar[tuple[str, ...]]
    inputs: ClassVar[tuple[str, ...]]

    @abstractmethod
    def command(self, job: Job) -> Command:
        """Return what to run for *job*."""

    def ability(self) -> Ability:
        return Ability(types=self.types, inputs=self.inputs)

    def recipe(self, type_name: str, scheme: str = "") -> Recipe:
        """Return the recipe for *type_name*, with the versions of everything that decides the result."""
        return Recipe(
            format=self.name,
            type=type_name,
            scheme=scheme,
            tool=self.tool,
            lock=ToolEnvironment.named(self.tool).lock_hash,
            program=hashlib.sha256(self.program.read_bytes()).hexdigest(),
        )


QUANTIZERS: Registry[Quantizer] = Registry("flexinfer.quantizers", Quantizer)
