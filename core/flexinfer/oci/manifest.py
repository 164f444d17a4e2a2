"""Image manifests: canonical bytes out, bounded and unambiguous bytes in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from flexinfer.errors import InvalidInput
from flexinfer.oci.canonical import canonical_json, parse_object, text_map
from flexinfer.oci.descriptor import (
    MAX_ANNOTATION_BYTES,
    MEDIA_EMPTY,
    MEDIA_MANIFEST,
    Descriptor,
    media_type_of,
)

# 4 MiB: what distribution-spec v1.1 asks every registry to accept for a manifest.
MAX_MANIFEST_BYTES = 4 * 1024 * 1024
MAX_LAYERS = 4096
_INVALID = "manifest_invalid"
_TOO_LARGE = "manifest_too_large"


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What an artifact consists of. Equal manifests have equal bytes."""

    config: Descriptor
    layers: tuple[Descriptor, ...]
    artifact_type: str | None = None
    annotations: Mapping[str, str] = field(default_factory=dict, hash=False)
    subject: Descriptor | None = None

    def to_bytes(self) -> bytes:
        """Return the manifest as canonical JSON: sorted keys, no spaces, no trailing newline."""
        found: dict[str, Any] = {
            "schemaVersion": 2,
            "mediaType": MEDIA_MANIFEST,
            "config": self.config.to_json(),
            "layers": [layer.to_json() for layer in self.layers],
        }
        if self.artifact_type is not None:
            found["artifactType"] = self.artifact_type
        if self.annotations:
            found["annotations"] = dict(self.annotations)
        if self.subject is not None:
            found["subject"] = self.subject.to_json()
        return canonical_json(found)

    def describe(self, data: bytes | None = None) -> Descriptor:
        """Return the descriptor of this manifest; *data* are its bytes where they came from elsewhere."""
        return Descriptor.of(
            self.to_bytes() if data is None else data,
            media_type=MEDIA_MANIFEST,
            artifact_type=self.kind,
        )

    @property
    def kind(self) -> str | None:
        """The artifact type, else the config's media type where that says anything (image-spec 1.1)."""
        if self.artifact_type is not None:
            return self.artifact_type
        return None if self.config.media_type == MEDIA_EMPTY else self.config.media_type

    @property
    def blobs(self) -> tuple[Descriptor, ...]:
        """What must be there before the manifest may be: config, then layers; each digest once."""
        return tuple({blob.digest: blob for blob in (self.config, *self.layers)}.values())

    @classmethod
    def parse(cls, data: bytes, *, content_type: str | None = None) -> Manifest:
        """Return the manifest in *data*; unknown fields are ignored.

        *content_type*: what the transport said that it is; None where nobody said.

        Raises:
            InvalidInput: `manifest_too_large` (4 MiB, 4,096 layers, 256 KiB of annotations),
                `manifest_ambiguous` (two readers could take it for two things), `digest_format`,
                `manifest_invalid`.
        """
        value = parse_object(
            data, what="manifest", code=_INVALID, too_large=_TOO_LARGE, max_bytes=MAX_MANIFEST_BYTES
        )
        _refuse_ambiguous(value, content_type)
        if value.get("schemaVersion") != 2 or isinstance(value["schemaVersion"], bool):
            raise InvalidInput(
                f"manifest: schemaVersion {value.get('schemaVersion')!r}: expected 2",
                code=_INVALID,
            )
        layers = value.get("layers")
        if not isinstance(layers, list):
            raise InvalidInput("manifest: layers: expected a list", code=_INVALID)
        if len(layers) > MAX_LAYERS:
            raise InvalidInput(
                f"manifest: expected at most {MAX_LAYERS} layers, got {len(layers)}",
                code=_TOO_LARGE,
            )
        artifact_type = value.get("artifactType")
        manifest = cls(
            config=Descriptor.parse(value.get("config"), what="manifest: config"),
            layers=tuple(
                Descriptor.parse(layer, what=f"manifest: layer {number}")
                for number, layer in enumerate(layers)
            ),
            artifact_type=media_type_of(artifact_type, what="manifest: artifactType", code=_INVALID)
            if artifact_type
            else None,
            annotations=text_map(
                value.get("annotations"),
                what="manifest: annotations",
                code=_INVALID,
                too_large=_TOO_LARGE,
                max_bytes=MAX_ANNOTATION_BYTES,
            ),
            subject=Descriptor.parse(value["subject"], what="manifest: subject")
            if value.get("subject") is not None
            else None,
        )
        _refuse_contradictions(manifest)
        return manifest


def _refuse_ambiguous(value: Mapping[str, Any], content_type: str | None) -> None:
    """Refuse what could be read as an index and as a manifest (CVE-2021-41190)."""
    stated = value.get("mediaType")
    if "manifests" in value:
        other = "both manifests and layers" if "layers" in value else "an index, not a manifest"
        raise InvalidInput(f"manifest: it is {other}", code="manifest_ambiguous")
    if stated is not None and stated != MEDIA_MANIFEST:
        raise InvalidInput(
            f"manifest: mediaType {str(stated)[:120]!r}: expected {MEDIA_MANIFEST}",
            code="manifest_ambiguous",
        )
    if content_type is not None:
        sent = content_type.partition(";")[0].strip()
        if sent != (stated or MEDIA_MANIFEST):
            raise InvalidInput(
                f"manifest: it says {stated or MEDIA_MANIFEST}, but was sent as {sent[:120]!r}",
                code="manifest_ambiguous",
            )


def _refuse_contradictions(manifest: Manifest) -> None:
    """Refuse one digest with two sizes: each reader would take another one."""
    sizes: dict[str, int] = {}
    for blob in (manifest.config, *manifest.layers):
        if sizes.setdefault(blob.digest, blob.size) != blob.size:
            raise InvalidInput(
                f"manifest: {blob.digest} has two sizes: {sizes[blob.digest]} and {blob.size}",
                code="manifest_ambiguous",
            )
