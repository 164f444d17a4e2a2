"""Whether it runs: a real engine loads it, and it answers what the base answers."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, ClassVar

from flexinfer.engine import Endpoint
from flexinfer.resources.entry import Validate
from flexinfer_pipelines.validators import Measurements, Number, Subject, Validator, Verdict
from flexinfer_pipelines.validators.contexts import SMOKE_PROMPTS

if TYPE_CHECKING:
    from flexinfer_pipelines.validators.bench import Bench, Session

_MAX_TOKENS = 24
# Of three prompts two: greedy answers of small models change with the last bit of a weight.
_MIN_AGREEMENT = 0.5


class Smoke(Validator):
    """Asks fixed prompts. An answer agrees when it shares a telling word with the base's own answer."""

    name: ClassVar[str] = "smoke"
    order: ClassVar[int] = 10

    def is_asked(self, checks: Validate, *, is_copy: bool) -> bool:
        return checks.smoke

    async def measure(self, bench: Bench, candidate: Subject, base: Subject) -> Measurements:
        ways = bench.endpoints(candidate)
        if not ways & {Endpoint.CHAT, Endpoint.COMPLETIONS}:
            return await _embeds(await bench.session(candidate))
        has_chat = Endpoint.CHAT in ways
        is_copy = candidate.digest == base.digest
        wanted = [] if is_copy else await _answers(await bench.session(base), has_chat)
        given = await _answers(await bench.session(candidate), has_chat)
        agreed = sum(agrees(b, c) for b, c in zip(wanted or given, given, strict=True))
        return {
            "smoke.endpoint": "chat" if has_chat else "completions",
            "smoke.prompts": len(given),
            "smoke.answered": sum(bool(text.strip()) for text in given),
            "smoke.agreement": agreed / len(given),
        }

    def judge(self, measurements: Measurements, checks: Validate) -> Verdict:
        if "smoke.embeddingNorm" in measurements:
            norm = measurements["smoke.embeddingNorm"]
            failed = () if _is_positive(norm) else (f"smoke.embeddingNorm is {norm}, wanted > 0",)
            return Verdict(failures=failed)
        answered, prompts = measurements["smoke.answered"], measurements["smoke.prompts"]
        agreement = float(measurements["smoke.agreement"])
        failures = []
        if answered != prompts:
            failures.append(f"smoke.answered is {answered}, wanted {prompts}: an answer was empty")
        if not agreement >= _MIN_AGREEMENT:
            failures.append(
                f"smoke.agreement is {agreement:.2f}, wanted at least {_MIN_AGREEMENT}: "
                "answers have nothing in common with the base's"
            )
        return Verdict(failures=tuple(failures), thresholds={"smoke.agreement": _MIN_AGREEMENT})


def agrees(wanted: str, given: str) -> bool:
    """Return whether *given* shares a word of four letters or more, or a number, with *wanted*."""
    return bool(_telling(wanted) & _telling(given)) or not _telling(wanted)


def _telling(text: str) -> set[str]:
    return {w for w in re.findall(r"\w+", text.lower()) if len(w) >= 4 or w.isdigit()}


async def _answers(session: Session, has_chat: bool) -> list[str]:
    found = []
    for prompt in SMOKE_PROMPTS:
        asked = {"max_tokens": _MAX_TOKENS, "temperature": 0, "seed": 1}
        if has_chat:
            messages = [{"role": "user", "content": prompt}]
            answer = await session.ask(Endpoint.CHAT, {**asked, "messages": messages})
            found.append(str(answer["choices"][0]["message"].get("content") or ""))
        else:
            answer = await session.ask(Endpoint.COMPLETIONS, {**asked, "prompt": prompt})
            found.append(str(answer["choices"][0]["text"]))
    return found


async def _embeds(session: Session) -> dict[str, Number]:
    answer = await session.ask(Endpoint.EMBEDDINGS, {"input": SMOKE_PROMPTS[0]})
    vector = [float(number) for number in answer["data"][0]["embedding"]]
    return {
        "smoke.endpoint": "embeddings",
        "smoke.embeddingNorm": math.sqrt(sum(number * number for number in vector)),
        "smoke.embeddingLength": len(vector),
    }


def _is_positive(number: Number) -> bool:
    return isinstance(number, float) and math.isfinite(number) and number > 0
