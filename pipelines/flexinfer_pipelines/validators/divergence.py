"""How far the candidate's next-token probabilities are from the base's, asked through the engine's API."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar

from flexinfer.artifact.evidence import KL_LOWER_BOUND, SAME_TOP
from flexinfer.engine import Endpoint
from flexinfer.errors import InvalidInput, ProcessFailed
from flexinfer.resources.entry import Validate
from flexinfer_pipelines.validators import Measurements, Subject, Validator, Verdict
from flexinfer_pipelines.validators.contexts import divergence_contexts
from flexinfer_pipelines.validators.kl import mean_lower_bound, same_top_rate

if TYPE_CHECKING:
    from flexinfer_pipelines.validators.bench import Bench, Session

_TOP = 40
_LEAST_CONTEXTS = 24
_CHARACTER_TOKENS = 4  # the bytes of the longest character in UTF-8


class Divergence(Validator):
    """Same-top rate, and a lower bound of the KL divergence, over fixed contexts at temperature 0."""

    name: ClassVar[str] = "divergence"
    order: ClassVar[int] = 20

    def is_asked(self, checks: Validate, *, is_copy: bool) -> bool:
        return checks.min_same_top is not None or checks.max_kl_lower_bound is not None

    async def measure(self, bench: Bench, candidate: Subject, base: Subject) -> Measurements:
        contexts = divergence_contexts()
        if candidate.digest == base.digest:
            return {SAME_TOP: 1.0, KL_LOWER_BOUND: 0.0, "divergence.contexts": 0}
        if Endpoint.COMPLETIONS not in bench.endpoints(candidate):
            raise InvalidInput(
                f"{candidate.file}: divergence needs a model that writes; leave its thresholds out",
                code="validation_unsupported",
            )
        # The candidate first: after the smoke test its engine still runs.
        given = [await _next(await bench.session(candidate), text) for text in contexts]
        wanted = [await _next(await bench.session(base), text) for text in contexts]
        pairs = [(b, c) for b, c in zip(wanted, given, strict=True) if b and c]
        if len(pairs) < _LEAST_CONTEXTS:
            raise ProcessFailed(
                f"{candidate.file}: the engine tells next-token probabilities after {len(pairs)} of "
                f"{len(contexts)} contexts, wanted at least {_LEAST_CONTEXTS}",
                code="engine_refused",
            )
        bases, candidates = [b for b, _ in pairs], [c for _, c in pairs]
        return {
            SAME_TOP: round(same_top_rate(bases, candidates), 6),
            KL_LOWER_BOUND: round(mean_lower_bound(bases, candidates), 6),
            "divergence.contexts": len(pairs),
            "divergence.topTokens": _TOP,
        }

    def judge(self, measurements: Measurements, checks: Validate) -> Verdict:
        failures, thresholds = [], {}
        same, bound = float(measurements[SAME_TOP]), float(measurements[KL_LOWER_BOUND])
        if checks.min_same_top is not None:
            thresholds[SAME_TOP] = checks.min_same_top
            if not same >= checks.min_same_top:
                failures.append(f"{SAME_TOP} is {same:.4f}, wanted at least {checks.min_same_top}")
        if checks.max_kl_lower_bound is not None:
            thresholds[KL_LOWER_BOUND] = checks.max_kl_lower_bound
            if not bound <= checks.max_kl_lower_bound:
                failures.append(
                    f"{KL_LOWER_BOUND} is {bound:.4f}, wanted at most {checks.max_kl_lower_bound}"
                )
        return Verdict(failures=tuple(failures), thresholds=thresholds)


async def _next(session: Session, text: str) -> dict[int, float]:
    """Return the most probable next tokens after *text*; empty where the engine does not tell.

    The probabilities are those before sampling, so `ignore_eos` changes none: it makes the engine name them also
    where the end is the most probable. A first token that is a part of a character is named with the rest of it.
    """
    asked = {"prompt": text, "temperature": 0, "seed": 1, "logprobs": _TOP, "ignore_eos": True}
    for tokens in (1, _CHARACTER_TOKENS):
        answer = await session.ask(Endpoint.COMPLETIONS, {**asked, "max_tokens": tokens})
        found = _listed(answer)
        if found:
            return found
    return {}


def _listed(answer: dict[str, Any]) -> dict[int, float]:
    try:
        logprobs = answer["choices"][0]["logprobs"]
        content = logprobs["content"] if logprobs else []
        listed = content[0]["top_logprobs"] if content else []
        return {int(one["id"]): _finite(one["logprob"]) for one in listed}
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise ProcessFailed(
            f"engine: expected log-probabilities, its answer has none ({error})",
            code="engine_refused",
        ) from error


def _finite(number: Any) -> float:
    value = float(number)
    if math.isnan(value):
        raise ValueError("NaN")
    return min(value, 0.0)
