"""What points to bytes: a media type, a digest and a size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from flexinfer.errors import InvalidInput
from flexinfer.oci.canonical import text_map
from flexinfer.oci.digest import Digest, digest_of, parse_digest

MEDIA_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
MEDIA_INDEX = "application/vnd.oci.image.index.v1+json"
MEDIA_EMPTY = "application/vnd.oci.empty.v1+json"
MEDIA_BYTES = "application/octet-stream"

MAX_ANNOTATION_BYTES = 256 * 1024
MAX_SIZE_BYTES = (1 << 63) - 1
# RFC 6838 gives a type and a subtype 127 characters each.
_MAX_MEDIA_TYPE = 255


@dataclass(frozen=True, slots=True, kw_only=True)
class Descriptor:
    """Where bytes are and what they must be. Two are equal when they say the same, annotations included."""

    media_type: str
    digest: Digest
    size: int
    annotations: Mapping[str, str] = field(default_factory=dict, hash=False)
    artifact_type: str | None = None

    @classmethod
    def of(cls, data: bytes, *, media_type: str, artifact_type: str | None = None) -> Descriptor:
        """Return the descriptor of *data*."""
        return cls(
            media_type=media_type,
            digest=digest_of(data),
            size=len(data),
            artifact_type=artifact_type,
        )

    def to_json(self) -> dict[str, Any]:
        """Return the descriptor as the specification writes it; what is empty is left out."""
        found: dict[str, Any] = {
            "mediaType": self.media_type,
            "digest": self.digest,
            "size": self.size,
        }
        if self.artifact_type is not None:
            found["artifactType"] = self.artifact_type
        if self.annotations:
            found["annotations"] = dict(self.annotations)
        return found

    @classmethod
    def parse(
        cls, value: Any, *, what: str,
        code: str = "manifest_invalid", too_large: str = "manifest_too_large",
    ) -> Descriptor:  # fmt: skip
        """Return the descriptor in the JSON object *value*; unknown fields are ignored.

        Raises:
            InvalidInput: code `digest_format` for the digest, *too_large* for annotations, *code* for all else.
        """
        if not isinstance(value, dict):
            raise InvalidInput(
                f"{what}: expected a descriptor, got {type(value).__name__}", code=code
            )
        size = value.get("size")
        if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= MAX_SIZE_BYTES:
            raise InvalidInput(f"{what}: size {size!r}: expected a count of bytes", code=code)
        artifact_type = value.get("artifactType")
        return cls(
            media_type=media_type_of(value.get("mediaType"), what=what, code=code),
            digest=parse_digest(value.get("digest"), what=f"{what}: digest"),
            size=size,
            annotations=text_map(
                value.get("annotations"),
                what=f"{what}: annotations",
                code=code,
                too_large=too_large,
                max_bytes=MAX_ANNOTATION_BYTES,
            ),
            artifact_type=media_type_of(artifact_type, what=what, code=code)
            if artifact_type
            else None,
        )


def media_type_of(value: Any, *, what: str, code: str) -> str:
    """Return *value* as a media type: printable ASCII with one slash, at most 255 characters.

    Raises:
        InvalidInput: code *code*.
    """
    if (
        isinstance(value, str)
        and 3 <= len(value) <= _MAX_MEDIA_TYPE
        and value.isascii()
        and value.isprintable()
        and value.count("/") == 1
        and " " not in value
    ):
        return value
    raise InvalidInput(f"{what}: media type {str(value)[:80]!r} is not type/subtype", code=code)
