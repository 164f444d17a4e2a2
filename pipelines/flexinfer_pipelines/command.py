"""A job for a program, complete and with placeholders: what runs as a process here runs as a Job on a cluster.

Placeholders in `argv`: `{python}` the tool environment's interpreter, `{program}` the quantizer's own script,
`{input:NAME}` where the blob NAME lies (read only), `{output}` an empty folder for what is made.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from flexinfer.errors import PluginError
from flexinfer.oci import Digest

_PLACEHOLDER = re.compile(r"\{([a-z]+)(?::([^{}]+))?\}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """What a quantizer wants run. Progress: JSON lines `{"done": n, "total": n}` on standard output; the last
    words are `{"result": {…}}` or `{"error": {"code", "message"}}`."""

    tool: str
    """Name of the tool environment."""
    lock: str
    """Hash of its lock."""
    program: Path
    argv: tuple[str, ...]
    inputs: Mapping[str, Digest]
    outputs: tuple[str, ...]
    """Files that must be in the output folder afterwards."""
    memory_bytes: int
    """What it needs at most: the request and limit of a Job."""
    cpus: int = 1
    stall_s: float = 120.0
    """Longest time without a line of progress, and without CPU time used."""
    environment: Mapping[str, str] = field(default_factory=dict)


def bind(
    command: Command, *, python: Path, inputs: Mapping[str, Path], output: Path
) -> tuple[str, ...]:
    """Return the argv of *command* with its placeholders filled.

    Raises:
        PluginError: a placeholder that nobody knows.
    """

    def fill(match: re.Match[str]) -> str:
        match match[1], match[2]:
            case "python", None:
                return str(python)
            case "program", None:
                return str(command.program)
            case "output", None:
                return str(output)
            case "input", str(name) if name in inputs:
                return str(inputs[name])
            case _:
                raise PluginError(f"{command.program.name}: unknown placeholder {match[0]!r}")

    return tuple(_PLACEHOLDER.sub(fill, argument) for argument in command.argv)
