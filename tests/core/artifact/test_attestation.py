from __future__ import annotations

import json
from typing import Any

import pytest

from flexinfer.artifact import (
    MEDIA_IN_TOTO,
    PREDICATE_TEST_RESULT,
    attestation,
    parse_attestation,
    statement,
)
from flexinfer.errors import IntegrityError
from flexinfer.oci import MEDIA_EMPTY, MEDIA_MANIFEST, Descriptor, Manifest, digest_of

ABC = digest_of(b"abc")
SUBJECT = Descriptor(media_type=MEDIA_MANIFEST, digest=ABC, size=3)
PREDICATE = {"result": "PASSED", "measurements": {"divergence.sameTop": 0.97}}

# Written by hand from in-toto's attestation framework, spec/v1/statement.md.
GOLDEN = (
    b'{"_type":"https://in-toto.io/Statement/v1","predicate":{"measurements":{"divergence.sameTop":0.97},'
    b'"result":"PASSED"},"predicateType":"https://in-toto.io/attestation/test-result/v0.1","subject":'
    b'[{"digest":{"sha256":"ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"},'
    b'"name":"smol"}]}'
)


def _statement() -> bytes:
    return statement("smol", ABC, PREDICATE_TEST_RESULT, PREDICATE)


def test_the_bytes_are_the_golden_ones() -> None:
    assert _statement() == GOLDEN


def test_a_statement_is_read_back() -> None:
    said = parse_attestation(_statement(), ABC)
    assert (said.subject_name, said.digest) == ("smol", ABC)
    assert said.predicate_type == PREDICATE_TEST_RESULT
    assert said.predicate == PREDICATE


def test_an_attestation_is_a_referrer_of_its_subject() -> None:
    packed = attestation(_statement(), SUBJECT)
    manifest = Manifest.parse(packed.manifest_bytes)
    assert manifest.subject == SUBJECT
    assert manifest.artifact_type == packed.descriptor.artifact_type == MEDIA_IN_TOTO
    assert manifest.config == Descriptor.of(b"{}", media_type=MEDIA_EMPTY)
    assert manifest.layers == (Descriptor.of(_statement(), media_type=MEDIA_IN_TOTO),)
    assert manifest.annotations == {"in-toto.io/predicate-type": PREDICATE_TEST_RESULT}


def test_a_statement_about_something_else_is_refused() -> None:
    with pytest.raises(IntegrityError) as caught:
        parse_attestation(_statement(), digest_of(b"other"))
    assert caught.value.code == "statement_subject"
    with pytest.raises(IntegrityError):
        attestation(
            _statement(),
            Descriptor(media_type=MEDIA_MANIFEST, digest=digest_of(b"other"), size=5),
        )


@pytest.mark.parametrize(
    "changes",
    [
        {"_type": "https://in-toto.io/Statement/v0.1"},
        {"predicateType": ""},
        {"predicateType": 7},
        {"predicate": []},
        {"subject": []},
        {"subject": {}},
        {"subject": ["x"]},
        {"subject": [{"digest": {"sha256": ABC[7:]}}, {"digest": {"sha256": ABC[7:]}}]},
    ],
)
def test_a_statement_of_another_shape_is_refused(changes: dict[str, Any]) -> None:
    data = json.dumps(json.loads(GOLDEN) | changes).encode()
    with pytest.raises(IntegrityError) as caught:
        parse_attestation(data, ABC)
    assert caught.value.code == "statement_invalid"


@pytest.mark.parametrize("digest", [None, {}, {"sha512": "x"}, {"sha256": ABC}, {"sha256": 7}])
def test_a_subject_without_our_digest_is_refused(digest: Any) -> None:
    data = json.dumps(json.loads(GOLDEN) | {"subject": [{"digest": digest}]}).encode()
    with pytest.raises(IntegrityError) as caught:
        parse_attestation(data, ABC)
    assert caught.value.code == "statement_subject"


@pytest.mark.parametrize("data", [b"", b"[]", b'{"_type":1,"_type":2}', b"\xff", b"x" * (5 << 20)])
def test_what_is_no_statement_is_refused(data: bytes) -> None:
    with pytest.raises(IntegrityError) as caught:
        parse_attestation(data, ABC)
    assert caught.value.code == "statement_invalid"
