"""In-toto statements about an artifact's digest, and the manifests that attach them to it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from flexinfer.artifact.mediatypes import (
    ANNOTATION_PREDICATE,
    MEDIA_IN_TOTO,
    PREDICATE_TEST_RESULT,
)
from flexinfer.artifact.pack import Packed, packed
from flexinfer.errors import FlexInferError, IntegrityError, InvalidInput
from flexinfer.oci import MEDIA_EMPTY, Descriptor, Digest, Manifest, canonical_json, hex_of
from flexinfer.oci.canonical import parse_object

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
MAX_STATEMENT_BYTES = 4 * 1024 * 1024
# Measured and never judged; they differ by some pages in every run of the same bytes.
_PEAKS = "footprint.peakBytes"
_EMPTY = b"{}"
_INVALID = "statement_invalid"


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """What somebody says of the artifact with *digest*."""

    subject_name: str
    digest: Digest
    predicate_type: str
    predicate: Mapping[str, Any] = field(hash=False)


def statement(
    subject_name: str, digest: Digest, predicate_type: str, predicate: Mapping[str, Any]
) -> bytes:
    """Return an in-toto Statement v1 as canonical JSON."""
    return canonical_json(
        {
            "_type": STATEMENT_TYPE,
            "subject": [{"name": subject_name, "digest": {"sha256": hex_of(digest)}}],
            "predicateType": predicate_type,
            "predicate": dict(predicate),
        }
    )


def attestation(statement_bytes: bytes, subject: Descriptor) -> Packed:
    """Return the manifest that attaches a statement to *subject*; its one layer is *statement_bytes*.

    Raises:
        IntegrityError: as `parse_attestation`: the statement is about something else.
    """
    said = parse_attestation(statement_bytes, subject.digest)
    manifest = Manifest(
        artifact_type=MEDIA_IN_TOTO,
        config=Descriptor.of(_EMPTY, media_type=MEDIA_EMPTY),
        layers=(Descriptor.of(statement_bytes, media_type=MEDIA_IN_TOTO),),
        annotations={ANNOTATION_PREDICATE: said.predicate_type},
        subject=Descriptor(
            media_type=subject.media_type,
            digest=subject.digest,
            size=subject.size,
            artifact_type=subject.artifact_type,
        ),
    )
    return packed(manifest, _EMPTY)


def parse_attestation(data: bytes, expected_digest: Digest) -> Statement:
    """Return the statement in *data*, which must be about *expected_digest* and nothing else.

    Raises:
        IntegrityError: `statement_subject` (bound to another digest), `statement_invalid`.
    """
    try:
        value = parse_object(
            data,
            what="statement",
            code=_INVALID,
            too_large=_INVALID,
            max_bytes=MAX_STATEMENT_BYTES,
        )
    except InvalidInput as error:
        raise _invalid(error.message) from error
    if value.get("_type") != STATEMENT_TYPE:
        raise _invalid(f"statement: _type {value.get('_type')!r}: expected {STATEMENT_TYPE}")
    predicate_type, predicate = value.get("predicateType"), value.get("predicate")
    if not isinstance(predicate_type, str) or not predicate_type or not isinstance(predicate, dict):
        raise _invalid("statement: expected a predicateType and a predicate")
    subjects = value.get("subject")
    if not isinstance(subjects, list) or len(subjects) != 1 or not isinstance(subjects[0], dict):
        raise _invalid("statement: expected exactly one subject")
    digests = subjects[0].get("digest")
    found = digests.get("sha256") if isinstance(digests, dict) else None
    if found != hex_of(expected_digest):
        raise IntegrityError(
            f"statement: it is about sha256:{str(found)[:64]}, expected {expected_digest}",
            code="statement_subject",
        )
    name = subjects[0].get("name")
    return Statement(
        subject_name=name if isinstance(name, str) else "",
        digest=expected_digest,
        predicate_type=predicate_type,
        predicate=predicate,
    )


def says_the_same(one: Statement, other: Statement) -> bool:
    """Return whether whoever has one of them learns nothing from the other, so that no decision could differ.

    All must be equal but the engine's peaks of memory, which must be named in both.
    """
    return _said(one) == _said(other)


def _said(statement: Statement) -> str:
    predicate = dict(statement.predicate)
    measured = predicate.get("measurements")
    if statement.predicate_type == PREDICATE_TEST_RESULT and isinstance(measured, dict):
        predicate["measurements"] = {
            name: None if name.startswith(_PEAKS) else value for name, value in measured.items()
        }
    # As text, since in Python True equals 1.
    said = [statement.subject_name, statement.digest, statement.predicate_type, predicate]
    return json.dumps(said, sort_keys=True)


def _invalid(message: str) -> FlexInferError:
    return IntegrityError(message, code=_INVALID)
