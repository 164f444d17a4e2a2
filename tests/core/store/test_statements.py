"""Evidence of one artifact: what says nothing new is not kept twice, and nothing else is left out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexinfer.artifact import PREDICATE_TEST_RESULT, Statement, statement
from flexinfer.artifact.attestation import says_the_same
from flexinfer.artifact.evidence import SAME_TOP, judge, parse_test_result
from flexinfer.artifact.mediatypes import MEDIA_IN_TOTO
from flexinfer.oci import Descriptor, Digest, digest_of
from flexinfer.resources.model import Quality
from flexinfer.store import Store

PEAK = "footprint.peakBytesLarge"
PREDICATE: dict[str, Any] = {
    "result": "PASSED",
    "passedTests": ["smoke", "footprint"],
    "failedTests": [],
    "measurements": {"smoke.answered": 1, SAME_TOP: 0.95, PEAK: 220_000_000},
    "thresholds": {SAME_TOP: 0.9},
    "engine": "llamacpp 1",
    "base": {"digest": "sha256:" + "0" * 64, "quantization": "F16", "source": "pypi://x==1/y"},
}


def said(
    about: Descriptor,
    *,
    name: str = "mine:q8-0",
    kind: str = PREDICATE_TEST_RESULT,
    measured: dict[str, Any] | None = None,
    **changes: Any,
) -> bytes:
    measurements = {**PREDICATE["measurements"], **(measured or {})}
    kept = {key: value for key, value in measurements.items() if value is not None}
    return statement(name, about.digest, kind, {**PREDICATE, "measurements": kept, **changes})


def count(store: Store) -> int:
    return len(list((store.root / "blobs/sha256").iterdir()))


def test_rebuilds_of_the_same_bytes_leave_one_statement(published: Any) -> None:
    store, artifact = published.store, published.manifest
    first = store.attest(artifact, said(artifact))
    before, evidence = count(store), store.evidence(artifact.digest)
    assert len(evidence.statements) == 2
    for number in range(300):
        again = said(artifact, measured={PEAK: 220_000_000 + 4096 * number})
        assert store.attest(artifact, again) == first
        assert store.evidence(artifact.digest) == evidence
    assert count(store) == before
    assert Store(store.root).evidence(artifact.digest) == evidence


CHANGES: dict[str, dict[str, Any]] = {
    "another verdict": {"result": "FAILED", "failedTests": ["smoke"]},
    "a worse number": {"measured": {SAME_TOP: 0.91}},
    "a better number": {"measured": {SAME_TOP: 0.99}},
    "one more number": {"measured": {"perplexity.ratio": 1.0}},
    "a number less": {"measured": {SAME_TOP: None}},
    "no peak": {"measured": {PEAK: None}},
    "one more peak": {"measured": {"footprint.peakBytesSmall": 1}},
    "true is not 1": {"measured": {"smoke.answered": True}},
    "other tests": {"passedTests": ["smoke"]},
    "other thresholds": {"thresholds": {SAME_TOP: 0.8}},
    "another engine": {"engine": "llamacpp 2"},
    "another base": {"base": None},
    "another lock": {"configuration": [{"name": "requirements/tools/x.txt"}]},
    "another name": {"name": "other:q8-0"},
    "another kind": {"kind": "https://slsa.dev/provenance/v1"},
    "no numbers": {"measurements": []},
}


@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES.keys())
def test_whatever_else_differs_is_kept(published: Any, changes: dict[str, Any]) -> None:
    store, artifact = published.store, published.manifest
    first = store.attest(artifact, said(artifact))
    second = store.attest(artifact, said(artifact, **changes))
    assert second != first
    kept = {one.digest for one, _ in store.evidence(artifact.digest).statements}
    assert {first.digest, second.digest} <= kept
    assert store.attest(artifact, said(artifact, **changes)) == second


def test_of_another_kind_a_peak_counts(published: Any) -> None:
    store, artifact = published.store, published.manifest
    other = "https://example.org/measured/v1"
    first = store.attest(artifact, said(artifact, kind=other))
    assert store.attest(artifact, said(artifact, kind=other, measured={PEAK: 1})) != first


@pytest.mark.parametrize(
    ("what", "how"),
    [
        ("manifest", "gone"),
        ("manifest", "damaged"),
        ("statement", "gone"),
        ("statement", "damaged"),
        ("config", "gone"),
    ],
)
def test_one_that_is_not_whole_says_nothing(
    published: Any, flip: Callable[[Path], None], what: str, how: str
) -> None:
    store, artifact = published.store, published.manifest
    first = store.attest(artifact, said(artifact))
    manifest = store.manifest(first.digest)
    broken = {
        "manifest": first.digest,
        "statement": manifest.layers[0].digest,
        "config": manifest.config.digest,
    }[what]
    if how == "gone":
        store.path(broken).unlink()
    else:
        flip(store.path(broken))
    new = said(artifact, measured={PEAK: 1})
    second = store.attest(artifact, new)
    assert second != first
    assert store.path(digest_of(new)).read_bytes() == new
    # The same bytes again heal what is broken.
    store.attest(artifact, said(artifact))
    assert len(store.evidence(artifact.digest).statements) == 3


@pytest.mark.parametrize("what", ["manifest", "statement"])
@pytest.mark.parametrize("how", ["flipped", "gone"])
def test_a_damaged_statement_is_told_and_takes_nothing_from_the_others(
    published: Any, flip: Callable[[Path], None], what: str, how: str
) -> None:
    store, artifact = published.store, published.manifest
    added = [store.attest(artifact, said(artifact, engine=f"llamacpp {n}")) for n in range(3)]
    whole = store.evidence(artifact.digest)
    assert (len(whole.statements), whole.damaged) == (4, ())
    manifest = added[1].digest
    broken = {"manifest": manifest, "statement": store.manifest(manifest).layers[0].digest}[what]
    if how == "gone":
        store.path(broken).unlink()
    else:
        flip(store.path(broken))
    found = store.evidence(artifact.digest)
    assert found.statements == tuple(one for one in whole.statements if one[0].digest != manifest)
    (damaged,) = found.damaged
    assert (damaged.artifact, damaged.path, damaged.digest) == (manifest, what, broken)
    assert broken in damaged.message
    assert damaged.code == {
        ("manifest", "flipped"): "manifest_digest",
        ("statement", "flipped"): "digest_mismatch",
    }.get((what, how), "blob_missing")
    (failure,) = store.verify_artifact(artifact.digest, force=True).failures
    assert failure.digest == broken


def test_a_statement_about_something_else_is_damage(published: Any) -> None:
    store, artifact = published.store, published.manifest
    other = said(Descriptor.of(b"other", media_type="x/y"))
    layer = Descriptor.of(other, media_type=MEDIA_IN_TOTO)
    store.put_bytes(other)
    attached = store.attest(artifact, said(artifact)).digest
    fields = json.loads(store.path(attached).read_bytes())
    fields["layers"][0] |= {"digest": layer.digest, "size": layer.size}
    store.layout.core.put_manifest(json.dumps(fields).encode())
    found = store.evidence(artifact.digest)
    assert len(found.statements) == 2
    assert [(one.code, one.digest) for one in found.damaged] == [
        ("statement_subject", layer.digest)
    ]


def test_a_statement_with_a_number_beyond_all_is_passed_over(published: Any) -> None:
    store, artifact = published.store, published.manifest
    store.attest(artifact, said(artifact).replace(b"0.95", b"1e999"))
    store.attest(artifact, said(artifact))
    assert len(store.evidence(artifact.digest).statements) == 3


shares = st.sampled_from([0.5, 0.9, 0.95, True, "0.95"])
results = st.fixed_dictionaries(
    {
        "result": st.sampled_from(["PASSED", "FAILED", "WARNED"]),
        "passedTests": st.just(["smoke"]),
        "failedTests": st.lists(st.just("divergence"), max_size=1),
        "measurements": st.fixed_dictionaries(
            {}, optional={SAME_TOP: shares, PEAK: st.integers(1, 3)}
        ),
    }
)


@given(st.lists(results, max_size=3), results, results, st.none() | st.sampled_from([0.5, 0.95]))
def test_what_says_the_same_changes_no_verdict(
    others: list[dict[str, Any]],
    one: dict[str, Any],
    same: dict[str, Any],
    wanted: float | None,
) -> None:
    about = Digest("sha256:" + "0" * 64)

    def made(predicate: dict[str, Any]) -> Statement:
        return Statement(
            subject_name="m",
            digest=about,
            predicate_type=PREDICATE_TEST_RESULT,
            predicate=predicate,
        )

    if not says_the_same(made(one), made(same)):
        return
    quality = Quality(require="attestation", min_same_top=wanted)
    with_one, with_both, with_other = (
        judge(quality, [parse_test_result(p) for p in predicates])
        for predicates in ([*others, one], [*others, one, same], [*others, same])
    )
    assert with_one.passes == with_both.passes == with_other.passes
