"""Which validators a variant asks for, and whether what was measured before is still enough."""

from __future__ import annotations

from collections.abc import Mapping

from flexinfer.artifact.evidence import TestResult
from flexinfer.resources.entry import Validate
from flexinfer_pipelines.validators import VALIDATORS, Number, Validator


def validators(checks: Validate, *, is_copy: bool) -> tuple[Validator, ...]:
    """Return the validators that *checks* ask for, cheap ones first."""
    found = [VALIDATORS.get(name)() for name in VALIDATORS.names()]
    asked = [one for one in found if one.is_asked(checks, is_copy=is_copy)]
    return tuple(sorted(asked, key=lambda one: one.order))


def still_passes(result: TestResult, checks: Validate, *, is_copy: bool) -> bool:
    """Return whether what was measured before is all that *checks* ask for, and good enough. Pure."""
    for validator in validators(checks, is_copy=is_copy):
        if not any(name.startswith(f"{validator.name}.") for name in result.measurements):
            return False
        if not validator.judge(_own(validator, result.measurements), checks).passes:
            return False
    return result.result == "PASSED"


def thresholds(
    measurements: Mapping[str, Number], checks: Validate, *, is_copy: bool
) -> dict[str, float]:
    """Return what *checks* want of those *measurements* that they set a bound to. Pure."""
    found: dict[str, float] = {}
    for validator in validators(checks, is_copy=is_copy):
        found |= validator.judge(_own(validator, measurements), checks).thresholds
    return found


def _own(validator: Validator, measurements: Mapping[str, Number]) -> dict[str, Number]:
    prefix = f"{validator.name}."
    return {name: value for name, value in measurements.items() if name.startswith(prefix)}
