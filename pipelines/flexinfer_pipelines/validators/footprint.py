"""How much memory the engine takes with it, at two context sizes: what a scheduler must reserve."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from flexinfer.engine import Endpoint
from flexinfer.resources.entry import Validate
from flexinfer_pipelines.validators import Measurements, Subject, Validator, Verdict
from flexinfer_pipelines.validators.contexts import SMOKE_PROMPTS

if TYPE_CHECKING:
    from flexinfer_pipelines.validators.bench import Bench

_SMALL, _LARGE = 512, 2048


class Footprint(Validator):
    """Peak resident memory of the engine's process after one answer. Measured, never judged."""

    name: ClassVar[str] = "footprint"
    order: ClassVar[int] = 15  # after smoke, whose engine runs the larger context already

    def is_asked(self, checks: Validate, *, is_copy: bool) -> bool:
        return checks.footprint

    async def measure(self, bench: Bench, candidate: Subject, base: Subject) -> Measurements:
        found: dict[str, int] = {}
        for context in (_LARGE, _SMALL):
            session = await bench.session(candidate, context_tokens=context)
            if Endpoint.COMPLETIONS in bench.endpoints(candidate):
                body = {"prompt": SMOKE_PROMPTS[0], "max_tokens": 1, "temperature": 0}
                await session.ask(Endpoint.COMPLETIONS, body)
            size = "Large" if context == _LARGE else "Small"
            trained = candidate.header.context_length or context
            found[f"footprint.context{size}"] = min(context, trained)
            found[f"footprint.peakBytes{size}"] = session.peak_rss_bytes()
        return found

    def judge(self, measurements: Measurements, checks: Validate) -> Verdict:
        return Verdict()
