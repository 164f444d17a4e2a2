"""Whether a plan's artifact is in the store already, whole and good enough: then there is nothing to do."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

from flexinfer.artifact import ANNOTATION_BUILD_KEY, PREDICATE_TEST_RESULT
from flexinfer.artifact.evidence import parse_test_result
from flexinfer.errors import IntegrityError, NotFound
from flexinfer.log import get_logger
from flexinfer.oci import Descriptor
from flexinfer.resources.entry import CatalogEntry, Validate, Variant
from flexinfer.store import Store
from flexinfer_pipelines.plan import Plan, build_key, build_reference
from flexinfer_pipelines.steps import Context
from flexinfer_pipelines.steps.resolve import recalled
from flexinfer_pipelines.validators.judging import still_passes, thresholds

log = get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Built:
    """What a build has to show."""

    reference: str
    digest: str
    size_bytes: int
    quantization: str
    format: str
    is_new: bool
    """False: it was there before."""
    measurements: dict[str, float | int | str | bool]
    thresholds: dict[str, float]
    """What was wanted of them, as it is asked now."""


def already_built(context: Context, entry: CatalogEntry, variant: Variant) -> Built | None:
    """Return the artifact if it is in the store and nothing has to be asked to know so."""
    plan = recalled(context, entry, variant)
    key = build_key(plan) if plan is not None else None
    if plan is None or key is None:
        return None
    return find_built(context.store, plan, key, variant.checks)


def find_built(store: Store, plan: Plan, key: str, checks: Validate) -> Built | None:
    """Return the artifact of *key* if it is there; None if there is something to do. Only asks: see `name_again`.

    Every layer must be there and whole (its stamp tells; what was touched is hashed), and some evidence must hold
    all that *checks* ask for.
    """
    try:
        manifest = store.resolve(build_reference(plan, key))
        parsed = store.manifest(manifest.digest)
        if parsed.annotations.get(ANNOTATION_BUILD_KEY) != key:
            return None
        for layer in parsed.layers:
            store.ensure_verified(layer.digest, what=f"artifact {manifest.digest}")
        return describe(store, plan, manifest, checks)
    except NotFound:
        return None
    except IntegrityError as error:  # quarantined by now: it is made again
        log.warning(
            "artifact_damaged", reference=plan.reference, code=error.code, error=error.message
        )
        return None


def name_again(store: Store, built: Built) -> None:
    """Give what was found built its variant's name, where a crash came before that or the name was taken away.

    Raises:
        NotFound: code `artifact_not_found`: it is gone meanwhile.
    """
    with suppress(NotFound):
        if store.resolve(built.reference).digest == built.digest:
            return
    store.tag(built.reference, store.resolve(built.digest))


def describe(
    store: Store, plan: Plan, manifest: Descriptor, checks: Validate, *, is_new: bool = False
) -> Built | None:
    """Return what *manifest* has to show; None if no evidence of it is enough for *checks*.

    Raises:
        NotFound, IntegrityError: as the store.
    """
    artifact = store.artifact(manifest.digest)
    for _, said in store.evidence(manifest.digest).statements:
        if said.predicate_type != PREDICATE_TEST_RESULT:
            continue
        result = parse_test_result(said.predicate)
        if still_passes(result, checks, is_copy=plan.is_copy):
            return Built(
                reference=plan.reference,
                digest=manifest.digest,
                size_bytes=artifact.size_bytes,
                quantization=artifact.config.quantization,
                format=artifact.config.format,
                is_new=is_new,
                measurements=dict(result.measurements),
                thresholds=thresholds(result.measurements, checks, is_copy=plan.is_copy),
            )
    return None
