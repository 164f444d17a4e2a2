"""What may go: never what a root leads to, never what was touched just now, and everything else."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from flexinfer.oci import Digest
from flexinfer.store.garbage import StoredBlob, StoredManifest, find_garbage

DIGESTS = [Digest(f"sha256:{number:064x}") for number in range(12)]
A, B, C, D, E = DIGESTS[:5]


def blobs(*digests: Digest, age_s: float = 100.0) -> dict[Digest, StoredBlob]:
    return {digest: StoredBlob(size=10, age_s=age_s) for digest in digests}


def manifest(*layers: Digest, subject: Digest | None = None) -> StoredManifest:
    return StoredManifest(blobs=frozenset(layers), subject=subject)


def test_a_name_keeps_its_manifest_its_blobs_and_its_evidence() -> None:
    manifests = {A: manifest(B), C: manifest(D, subject=A)}
    sweep = find_garbage(manifests, blobs(A, B, C, D, E), roots=[A], grace_s=60)
    assert (sweep.manifests, sweep.blobs, sweep.bytes) == ((), (E,), 10)


def test_without_its_name_it_goes_with_its_evidence() -> None:
    manifests = {A: manifest(B), C: manifest(D, subject=A)}
    sweep = find_garbage(manifests, blobs(A, B, C, D), roots=[], grace_s=60)
    assert (sweep.manifests, sweep.blobs) == ((A, C), (A, B, C, D))


def test_what_two_share_stays_for_the_one_that_has_a_name() -> None:
    manifests = {A: manifest(C), B: manifest(C, D)}
    assert find_garbage(manifests, blobs(A, B, C, D), roots=[A], grace_s=0).blobs == (B, D)


def test_a_fresh_manifest_keeps_old_layers() -> None:
    there = {**blobs(A, age_s=1), **blobs(B, C)}
    assert find_garbage({A: manifest(B)}, there, roots=[], grace_s=60).blobs == (C,)


def test_a_manifest_whose_bytes_are_gone_is_forgotten() -> None:
    assert find_garbage({A: manifest(B)}, {}, roots=[], grace_s=60).manifests == (A,)


some = st.sets(st.sampled_from(DIGESTS), max_size=5)


@given(
    manifests=st.dictionaries(
        st.sampled_from(DIGESTS),
        st.builds(
            lambda layers, subject: manifest(*layers, subject=subject),
            some,
            st.none() | st.sampled_from(DIGESTS),
        ),
        max_size=8,
    ),
    ages=st.dictionaries(st.sampled_from(DIGESTS), st.floats(0, 200), max_size=12),
    roots=some,
)
def test_what_is_left_is_whole_and_nothing_is_left_for_a_second_time(
    manifests: dict[Digest, StoredManifest], ages: dict[Digest, float], roots: set[Digest]
) -> None:
    there = {digest: StoredBlob(size=1, age_s=age) for digest, age in ages.items()}
    sweep = find_garbage(manifests, there, roots=roots, grace_s=60)
    gone = {*sweep.blobs, *sweep.manifests}
    assert not gone & roots
    assert all(there[digest].age_s >= 60 for digest in sweep.blobs)
    for digest, one in manifests.items():
        if digest not in sweep.manifests:
            assert not one.blobs & gone
            assert one.subject not in gone
        elif one.subject is not None:  # evidence never goes before what it speaks of
            assert one.subject not in roots
    left = {d: m for d, m in manifests.items() if d not in sweep.manifests}
    rest = {d: b for d, b in there.items() if d not in sweep.blobs}
    again = find_garbage(left, rest, roots=roots, grace_s=60)
    assert (again.manifests, again.blobs) == ((), ())
