"""A model's files as a ModelPack manifest, and back. Pure: the bytes of the files are elsewhere.

One raw layer for each file: configuration first, then weights, then documents, each in the order of their
names. The same inputs give the same bytes, so the same digest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from flexinfer.artifact.mediatypes import (
    ANNOTATION_FILEPATH,
    ANNOTATION_FORMAT,
    ANNOTATION_LICENSES,
    ANNOTATION_METADATA,
    ANNOTATION_QUANTIZATION,
    ANNOTATION_REVISION,
    ANNOTATION_SOURCE_URL,
    ANNOTATION_TITLE,
    ANNOTATION_UNTESTED,
    KIND_ORDER,
    MEDIA_MODEL_CONFIG,
    MEDIA_MODEL_MANIFEST,
    Kind,
    classify,
    filepath_names,
    kind_of_layer,
    layer_type,
)
from flexinfer.artifact.model import EPOCH, FileEntry, ModelConfig
from flexinfer.errors import IntegrityError, InvalidInput
from flexinfer.formats.paths import check_collisions, check_path
from flexinfer.oci import MEDIA_EMPTY, Descriptor, Digest, Manifest, canonical_json, digest_of

_OURS = "ai.flexinfer."
# 0644, a regular file: readers apply this mode as it is.
_MODE = 0o644
_REGULAR = 48


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """A manifest ready to be stored: its config first, then `manifest_bytes`."""

    manifest: Manifest
    manifest_bytes: bytes
    config_bytes: bytes
    descriptor: Descriptor


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """A model as its manifest tells it. *notes*: what is odd about one that others made."""

    files: tuple[FileEntry, ...]
    config: ModelConfig
    annotations: Mapping[str, str] = field(default_factory=dict, hash=False)
    notes: tuple[str, ...] = ()

    @property
    def size_bytes(self) -> int:
        """The size of all files together."""
        return sum(file.size for file in self.files)


def pack(
    files: Sequence[FileEntry],
    config: ModelConfig,
    annotations: Mapping[str, str],
    *,
    trusted_code: frozenset[Digest] = frozenset(),
) -> Packed:
    """Return the artifact of *files*; their order does not matter.

    *trusted_code*: the digests of the code files that somebody has allowed.

    Raises:
        InvalidInput: `path_unsafe`, `path_collision`, `pickle_refused`, `file_kind_unknown`,
            `remote_code` (a code file that nobody allowed), `model_config_invalid`.
    """
    check_collisions([check_path(file.path) for file in files])
    kinds = {file.path: classify(file.path) for file in files}
    for file in files:
        if kinds[file.path] == "code" and file.digest not in trusted_code:
            raise InvalidInput(
                f"{file.path} is code; list {file.digest} under trustedCode to allow it",
                code="remote_code",
            )
    ordered = sorted(files, key=lambda file: (KIND_ORDER.index(kinds[file.path]), file.path))
    config_bytes = config.to_bytes(tuple(file.digest for file in ordered))
    manifest = Manifest(
        artifact_type=MEDIA_MODEL_MANIFEST,
        config=Descriptor.of(config_bytes, media_type=MEDIA_MODEL_CONFIG),
        layers=tuple(_layer(file, kinds[file.path]) for file in ordered),
        annotations=_notes(config) | dict(annotations),
    )
    return packed(manifest, config_bytes)


def packed(manifest: Manifest, config_bytes: bytes) -> Packed:
    """Return *manifest* with its bytes and its descriptor."""
    data = manifest.to_bytes()
    return Packed(
        manifest=manifest,
        manifest_bytes=data,
        config_bytes=config_bytes,
        descriptor=manifest.describe(data),
    )


def unpack(manifest: Manifest, config_bytes: bytes) -> Artifact:
    """Return the model that *manifest* describes. Artifacts of other writers are taken too, if they are safe.

    Raises:
        InvalidInput: `not_a_model`, `layer_unsupported` (a layer that is not one raw file), `path_unsafe`,
            `path_collision`, `path_disagree`, `model_config_invalid`.
        IntegrityError: `digest_mismatch`: *config_bytes* are not the config, or it names other layers.
    """
    if manifest.kind != MEDIA_MODEL_MANIFEST and manifest.config.media_type != MEDIA_MODEL_CONFIG:
        raise InvalidInput(
            f"artifact type {manifest.kind}: expected {MEDIA_MODEL_MANIFEST}", code="not_a_model"
        )
    if digest_of(config_bytes) != manifest.config.digest:
        raise IntegrityError(
            f"model config: expected {manifest.config.digest}, got {digest_of(config_bytes)}",
            code="digest_mismatch",
        )
    notes: list[str] = []
    is_ours = any(key.startswith(_OURS) for key in manifest.annotations)
    files = tuple(
        _file(number, layer, is_ours=is_ours, notes=notes)
        for number, layer in enumerate(manifest.layers)
    )
    check_collisions([file.path for file in files])
    config, diff_ids = ModelConfig(), tuple[str, ...]()
    if manifest.config.media_type == MEDIA_EMPTY:
        notes.append("the config is empty: nothing is known of the model but its files")
    else:
        config, diff_ids = ModelConfig.parse(config_bytes)
    if diff_ids and diff_ids != tuple(file.digest for file in files):
        raise IntegrityError(
            "model config: diffIds are not the digests of the layers", code="digest_mismatch"
        )
    return Artifact(
        files=files, config=config, annotations=manifest.annotations, notes=tuple(notes)
    )


def _layer(file: FileEntry, kind: Kind) -> Descriptor:
    metadata = {
        "name": file.path,
        "mode": _MODE,
        "uid": 0,
        "gid": 0,
        "size": file.size,
        "mtime": EPOCH,
        "typeflag": _REGULAR,
    }
    return Descriptor(
        media_type=layer_type(kind),
        digest=file.digest,
        size=file.size,
        annotations={
            ANNOTATION_FILEPATH: file.path,
            ANNOTATION_TITLE: file.path,
            ANNOTATION_METADATA: canonical_json(metadata).decode(),
            ANNOTATION_UNTESTED: "false" if file.is_checked else "true",
        },
    )


def _notes(config: ModelConfig) -> dict[str, str]:
    found = {
        ANNOTATION_SOURCE_URL: config.source_url,
        ANNOTATION_REVISION: config.revision,
        ANNOTATION_LICENSES: " AND ".join(config.licenses),
        ANNOTATION_FORMAT: config.format,
        ANNOTATION_QUANTIZATION: config.quantization,
    }
    return {key: text for key, text in found.items() if text}


def _file(number: int, layer: Descriptor, *, is_ours: bool, notes: list[str]) -> FileEntry:
    if kind_of_layer(layer.media_type) is None:
        raise InvalidInput(
            f"layer {number}: media type {layer.media_type}: expected one raw file",
            code="layer_unsupported",
        )
    path = next((layer.annotations[n] for n in filepath_names() if n in layer.annotations), None)
    title = layer.annotations.get(ANNOTATION_TITLE)
    if path is None:
        raise InvalidInput(
            f"layer {number}: no annotation {ANNOTATION_FILEPATH}", code="path_unsafe"
        )
    if title is not None and title != path:
        words = f"layer {number}: title {title!r} and filepath {path!r} disagree"
        if is_ours:
            raise InvalidInput(words, code="path_disagree")
        notes.append(words)
    return FileEntry(
        path=check_path(path),
        digest=layer.digest,
        size=layer.size,
        is_checked=layer.annotations.get(ANNOTATION_UNTESTED) == "false",
    )
