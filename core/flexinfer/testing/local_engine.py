"""An engine plug-in whose program is a small script: for whoever starts, watches and stops engine processes.

Never published as an entry point: it is passed where engines are looked up. Knobs, in `spec.config`:

    loadSeconds   how long it loads                     holdWhile    it loads while this file is there
    crashWhile    the load crashes while this file is there          stall        the load never ends and never moves
    ignoreTerm    SIGTERM is ignored                    forks        it starts a process of its own
    busyWhile     ready, it computes and answers nothing while this file is there
    slots, contextTokens
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from flexinfer.engine import (
    Cause,
    EngineArtifact,
    Launch,
    Limits,
    Probe,
    Problem,
    Resources,
    Substage,
)
from flexinfer.spelling import nearest
from flexinfer.testing.engine import PlainEngine

KNOBS = (
    "loadSeconds", "holdWhile", "crashWhile", "stall", "ignoreTerm", "forks", "busyWhile",
    "slots", "contextTokens",
)  # fmt: skip
_STAGES = {
    "flexinfer: initializing": Substage.INITIALIZING,
    "flexinfer: loading weights": Substage.LOADING_WEIGHTS,
    "flexinfer: serving": Substage.HEALTH_CHECK_PENDING,
}


class LocalEngine(PlainEngine):
    """See the module."""

    name: ClassVar[str] = "scripted"
    tool: ClassVar[str] = "scripted"

    def problems(self, config: Mapping[str, Any]) -> tuple[Problem, ...]:
        return tuple(
            Problem(key=key, message=f"unknown key{nearest(key, KNOBS)}")
            for key in config
            if key not in KNOBS
        )

    def limits(self, config: Mapping[str, Any], artifact: EngineArtifact | None = None) -> Limits:
        return Limits(
            context_tokens=int(config.get("contextTokens", 4096)), slots=int(config.get("slots", 4))
        )

    def launch(
        self, config: Mapping[str, Any], artifact: EngineArtifact, resources: Resources
    ) -> Launch:
        program = Path(__file__).with_name("local_engine_program.py")
        # In hex: braces would be taken for placeholders.
        knobs = json.dumps(dict(config)).encode().hex()
        argv = (
            "{python}", "-I", "-S", "{program}",
            "--model", "{artifact}/" + artifact.files[0],
            "--port", "{port:http}",
            "--key-file", "{secret:engine-key}",
            "--knobs", knobs,
        )  # fmt: skip
        readiness = Probe(path="/health")
        return Launch(tool=self.tool, program=program, argv=argv, readiness=readiness)

    def substage(self, line: str) -> Substage | None:
        return next((stage for words, stage in _STAGES.items() if line.startswith(words)), None)

    def cause(self, lines: Sequence[str], exit_code: int | None) -> Cause:
        if any("out of memory" in line for line in lines):
            return Cause(code="out_of_memory", message="no memory", remedy="less", retryable=True)
        words = f"the engine ended with exit code {exit_code}"
        return Cause(code="engine_crashed", message=words, remedy="", retryable=True)


def lookup(backend: str) -> type[LocalEngine]:
    """Return the engine for every backend: what a cluster under test is given for `ENGINES.get`."""
    return LocalEngine
