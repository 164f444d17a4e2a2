"""What a model's artifact says of itself: its files, and its ModelPack configuration object."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from flexinfer.errors import InvalidInput
from flexinfer.oci import Digest, canonical_json
from flexinfer.oci.canonical import parse_object

EPOCH = "1970-01-01T00:00:00Z"
MAX_CONFIG_BYTES = 4 * 1024 * 1024
_INVALID = "model_config_invalid"
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,9})?(?:Z|[+-]\d\d:\d\d)")


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEntry:
    """One file of a model. *path* is relative and POSIX; *size* is in bytes.

    *is_checked*: the ingest gate has looked at the bytes, and they are what the name says.
    """

    path: str
    digest: Digest
    size: int
    is_checked: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """What ModelPack has a field for; an empty string or tuple is absent.

    *created_at*: RFC 3339, the upstream time; where there is none, the Unix epoch, so that the same bytes
    make the same artifact. *capabilities*: keys as in ModelPack (`inputTypes`, `outputTypes`, `toolUsage`, …).
    """

    architecture: str = ""
    family: str = ""
    name: str = ""
    format: str = ""
    quantization: str = ""
    precision: str = ""
    param_size: str = ""
    licenses: tuple[str, ...] = ()
    source_url: str = ""
    revision: str = ""
    created_at: str = EPOCH
    capabilities: Mapping[str, Any] = field(default_factory=dict, hash=False)
    title: str = ""
    version: str = ""
    vendor: str = ""

    def to_bytes(self, diff_ids: tuple[Digest, ...]) -> bytes:
        """Return the configuration object as canonical JSON.

        Raises:
            InvalidInput: code `model_config_invalid`: *created_at* is no RFC 3339 time, or no layer.
        """
        if not _TIME.fullmatch(self.created_at):
            raise InvalidInput(
                f"createdAt {self.created_at!r}: expected a time as 2026-08-21T00:00:00Z",
                code=_INVALID,
            )
        if not diff_ids:
            raise InvalidInput("model: expected at least one file, got none", code=_INVALID)
        descriptor: dict[str, Any] = {
            "createdAt": self.created_at,
            "name": self.name,
            "family": self.family,
            "title": self.title,
            "version": self.version,
            "revision": self.revision,
            "vendor": self.vendor,
            "sourceURL": self.source_url,
            "licenses": list(self.licenses),
        }
        config: dict[str, Any] = {
            "architecture": self.architecture,
            "format": self.format,
            "paramSize": self.param_size,
            "precision": self.precision,
            "quantization": self.quantization,
            "capabilities": dict(self.capabilities),
        }
        return canonical_json(
            {
                "descriptor": {key: value for key, value in descriptor.items() if value},
                "config": {key: value for key, value in config.items() if value},
                "modelfs": {"type": "layers", "diffIds": list(diff_ids)},
            }
        )

    @classmethod
    def parse(cls, data: bytes) -> tuple[ModelConfig, tuple[str, ...]]:
        """Return the configuration in *data* and its diff ids; what is unknown or absent is left out.

        Raises:
            InvalidInput: code `model_config_too_large`; `model_config_invalid`: not JSON, or a field of another type.
        """
        value = parse_object(
            data,
            what="model config",
            code=_INVALID,
            too_large="model_config_too_large",
            max_bytes=MAX_CONFIG_BYTES,
        )
        descriptor, config, files = (
            _object(value, part) for part in ("descriptor", "config", "modelfs")
        )
        diff_ids = _texts(files, "diffIds")
        return (
            cls(
                architecture=_text(config, "architecture"),
                family=_text(descriptor, "family"),
                name=_text(descriptor, "name"),
                format=_text(config, "format"),
                quantization=_text(config, "quantization"),
                precision=_text(config, "precision"),
                param_size=_text(config, "paramSize"),
                licenses=_texts(descriptor, "licenses"),
                source_url=_text(descriptor, "sourceURL"),
                revision=_text(descriptor, "revision"),
                created_at=_text(descriptor, "createdAt") or EPOCH,
                capabilities=_object(config, "capabilities"),
                title=_text(descriptor, "title"),
                version=_text(descriptor, "version"),
                vendor=_text(descriptor, "vendor"),
            ),
            diff_ids,
        )


def _object(value: Mapping[str, Any], key: str) -> dict[str, Any]:
    found = value.get(key)
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise InvalidInput(f"model config: {key}: expected an object", code=_INVALID)
    return found


def _text(value: Mapping[str, Any], key: str) -> str:
    found = value.get(key)
    if found is None:
        return ""
    if not isinstance(found, str):
        raise InvalidInput(f"model config: {key}: expected a string", code=_INVALID)
    return found


def _texts(value: Mapping[str, Any], key: str) -> tuple[str, ...]:
    found = value.get(key)
    if found is None:
        return ()
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise InvalidInput(f"model config: {key}: expected a list of strings", code=_INVALID)
    return tuple(found)
