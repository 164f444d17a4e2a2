"""Evidence: what was measured of an artifact, as an in-toto test result, and whether it is enough.

The predicate is https://in-toto.io/attestation/test-result/v0.1 (fields `result`, `configuration`,
`passedTests`, `failedTests`); our numbers stand beside them under `measurements`, `thresholds`, `base`, `engine`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from flexinfer.artifact.mediatypes import PREDICATE_TEST_RESULT as PREDICATE_TEST_RESULT
from flexinfer.errors import IntegrityError
from flexinfer.resources.model import Quality

# Names of measurements that a policy may ask for.
SAME_TOP = "divergence.sameTop"
KL_LOWER_BOUND = "divergence.klLowerBound"
PERPLEXITY_RATIO = "perplexity.ratio"


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseEvidence:
    """What the candidate was compared with."""

    digest: str
    """Of the file that was loaded as the base."""
    quantization: str
    """`F16`, `Q4_1`, …: a base that is itself quantized says so here."""
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TestResult:
    """One run of the validators over one artifact."""

    __test__ = False  # for pytest: not a test

    result: Literal["PASSED", "WARNED", "FAILED"]
    passed: tuple[str, ...]
    failed: tuple[str, ...]
    measurements: Mapping[str, float | int | str | bool]
    thresholds: Mapping[str, float] = field(default_factory=dict)
    base: BaseEvidence | None = None
    engine: str = ""
    """Name and version of the engine that was asked."""
    configuration: tuple[Mapping[str, Any], ...] = ()
    """In-toto resource descriptors of what defined the run: the recipe, the tool environment's lock."""

    def to_predicate(self) -> dict[str, Any]:
        predicate: dict[str, Any] = {
            "result": self.result,
            "configuration": [dict(one) for one in self.configuration],
            "passedTests": list(self.passed),
            "failedTests": list(self.failed),
            "measurements": dict(self.measurements),
            "thresholds": dict(self.thresholds),
            "engine": self.engine,
        }
        if self.base is not None:
            predicate["base"] = {
                "digest": self.base.digest,
                "quantization": self.base.quantization,
                "source": self.base.source,
            }
        return predicate


def parse_test_result(predicate: Mapping[str, Any]) -> TestResult:
    """Return the value of a predicate.

    Raises:
        IntegrityError: code `evidence_invalid`: a field is missing or of another type.
    """
    try:
        base = predicate.get("base")
        result = predicate["result"]
        if result not in ("PASSED", "WARNED", "FAILED"):
            raise ValueError(f"result {result!r}")
        return TestResult(
            result=result,
            passed=tuple(str(name) for name in predicate["passedTests"]),
            failed=tuple(str(name) for name in predicate["failedTests"]),
            measurements=dict(predicate.get("measurements", {})),
            thresholds=dict(predicate.get("thresholds", {})),
            engine=str(predicate.get("engine", "")),
            configuration=tuple(dict(one) for one in predicate.get("configuration", ())),
            base=None
            if base is None
            else BaseEvidence(
                digest=str(base["digest"]),
                quantization=str(base["quantization"]),
                source=str(base["source"]),
            ),
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise IntegrityError(f"test result: {error}", code="evidence_invalid") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class EvidenceVerdict:
    """Whether an artifact may serve. `missing` holds one sentence for each reason that it may not."""

    missing: tuple[str, ...] = ()

    @property
    def passes(self) -> bool:
        return not self.missing


def judge(quality: Quality, results: Sequence[TestResult]) -> EvidenceVerdict:
    """Return whether one of *results*, all bound to the digest in question, holds all that *quality* asks for.

    One statement must hold everything: numbers of two runs are never put together. What the policy does not name
    is not asked. A number that is absent or not finite never passes.
    """
    asked = _asked(quality)
    passed = [r for r in results if r.result == "PASSED" and not r.failed]
    if not passed:
        if quality.require == "none" and not asked:
            return EvidenceVerdict()
        found = f"{len(results)} that did not pass" if results else "none"
        return EvidenceVerdict(missing=(f"expected a test result that passed, found {found}",))
    verdicts = [_missing(asked, result) for result in passed]
    return EvidenceVerdict(missing=min(verdicts, key=len))


def _asked(quality: Quality) -> tuple[tuple[str, float, bool], ...]:
    """Return (name, limit, whether the limit is a minimum) of each measurement that the policy names."""
    limits = (
        (SAME_TOP, quality.min_same_top, True),
        (KL_LOWER_BOUND, quality.max_kl_lower_bound, False),
        (PERPLEXITY_RATIO, quality.max_perplexity_ratio, False),
    )
    return tuple((name, limit, least) for name, limit, least in limits if limit is not None)


def _missing(asked: Sequence[tuple[str, float, bool]], result: TestResult) -> tuple[str, ...]:
    missing: list[str] = []
    for name, limit, is_minimum in asked:
        value = result.measurements.get(name)
        if (
            isinstance(value, bool)
            or not isinstance(value, (int, float))
            or not math.isfinite(value)
        ):
            missing.append(f"expected {name}, found no measurement of it")
        elif is_minimum and value < limit:
            missing.append(f"{name} {value:.4f} is below {limit:.4f}")
        elif not is_minimum and value > limit:
            missing.append(f"{name} {value:.4f} is above {limit:.4f}")
    return tuple(missing)
