"""What the ingest gate found out about one file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from flexinfer.formats.gguf import GgufHeader
from flexinfer.formats.safetensors import SafetensorsHeader
from flexinfer.formats.sniff import Kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Warned:
    """Something that does not stop the file but that a person should see."""

    code: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedTemplate:
    """A chat template that was checked and rendered. The digest shows drift between revisions."""

    name: str
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """A file that passed. What its kind does not tell is None or empty."""

    name: str
    kind: Kind
    size_bytes: int
    architecture: str | None = None
    model_name: str | None = None
    license: str | None = None
    quantization: str | None = None
    context_length: int | None = None
    embedding_length: int | None = None
    parameter_count: int | None = None
    tensor_types: Mapping[str, int] = field(default_factory=dict)
    fallback_count: int = 0
    has_tokenizer: bool = False
    templates: tuple[CheckedTemplate, ...] = ()
    warnings: tuple[Warned, ...] = ()
    header: GgufHeader | SafetensorsHeader | None = None

    @property
    def has_chat_template(self) -> bool:
        return bool(self.templates)
