"""Names in ModelPack artifacts, and what kind of layer a file is (modelpack/model-spec: docs/spec.md)."""

from __future__ import annotations

import re
from typing import Final, Literal

from flexinfer.errors import InvalidInput

MEDIA_MODEL_MANIFEST: Final = "application/vnd.cncf.model.manifest.v1+json"
MEDIA_MODEL_CONFIG: Final = "application/vnd.cncf.model.config.v1+json"
MEDIA_IN_TOTO: Final = "application/vnd.in-toto+json"

ANNOTATION_FILEPATH: Final = "org.cncf.model.filepath"
ANNOTATION_METADATA: Final = "org.cncf.model.file.metadata+json"
ANNOTATION_UNTESTED: Final = "org.cncf.model.file.mediatype.untested"
ANNOTATION_TITLE: Final = "org.opencontainers.image.title"
ANNOTATION_SOURCE_URL: Final = "org.opencontainers.image.source"
ANNOTATION_REVISION: Final = "org.opencontainers.image.revision"
ANNOTATION_LICENSES: Final = "org.opencontainers.image.licenses"
ANNOTATION_PREDICATE: Final = "in-toto.io/predicate-type"

PREDICATE_TEST_RESULT: Final = "https://in-toto.io/attestation/test-result/v0.1"

ANNOTATION_BUILD_KEY: Final = "ai.flexinfer.build.key"
ANNOTATION_BASE: Final = "ai.flexinfer.base.digest"
ANNOTATION_SOURCE: Final = "ai.flexinfer.source"
ANNOTATION_QUANTIZATION: Final = "ai.flexinfer.quantization"
ANNOTATION_FORMAT: Final = "ai.flexinfer.format"

Kind = Literal["weight.config", "weight", "doc", "code", "dataset"]
# The order of layers: who reads only a part gets configuration and tokenizer first.
KIND_ORDER: Final[tuple[Kind, ...]] = ("weight.config", "weight", "doc", "code", "dataset")

# The older names are read and never written (modelpack/model-spec#81).
_RAW_LAYER = re.compile(
    r"application/vnd\.(?:cncf|cnai)\.model\.(weight\.config|weight|doc|code|dataset)\.v1\.raw"
)
_OLD_FILEPATH = "org.cnai.model.filepath"

_WEIGHT = re.compile(r".*\.(?:safetensors|gguf|dduf|onnx)|params_shard_\d+\.bin")
_CODE = re.compile(r".*\.(?:py|so|sh|cu|cpp|c|js)")
_DOC = re.compile(
    r"(?:readme|licen[cs]e|notice|copying|copyright|use_policy|usage_policy|model_card)(?:[._-].*)?"
    r"|.*\.(?:md|rst|pdf|png|jpe?g|svg|webp)"
)
_WEIGHT_CONFIG = re.compile(
    r".*\.(?:json|jinja|jinja2|txt|model|spm|tiktoken|vocab|merges|ya?ml|toml|bpe)"
)
_PICKLE = re.compile(r".*\.(?:bin|pt|pth|ckpt|pkl|pickle|joblib|npy|npz)")


def layer_type(kind: Kind) -> str:
    """Return the media type of a raw layer of *kind*."""
    return f"application/vnd.cncf.model.{kind}.v1.raw"


def kind_of_layer(media_type: str) -> Kind | None:
    """Return what a raw layer holds; None for any other media type, tar ones included."""
    match = _RAW_LAYER.fullmatch(media_type)
    if match is None:
        return None
    return next(kind for kind in KIND_ORDER if kind == match.group(1))


def filepath_names() -> tuple[str, ...]:
    """Return the annotations that hold a layer's path, the one that counts first."""
    return (ANNOTATION_FILEPATH, _OLD_FILEPATH)


def classify(path: str) -> Kind:
    """Return the kind of the file at *path*, by its name; that its bytes are such is the ingest gate's work.

    Raises:
        InvalidInput: `pickle_refused`, or `file_kind_unknown`: nothing unknown is taken for a weight.
    """
    name = path.rpartition("/")[2].lower()
    if _WEIGHT.fullmatch(name):
        return "weight"
    if _PICKLE.fullmatch(name):
        raise InvalidInput(
            f"{path} is a pickle by its name; expected safetensors or gguf", code="pickle_refused"
        )
    if _CODE.fullmatch(name):
        return "code"
    if _DOC.fullmatch(name):
        return "doc"
    if _WEIGHT_CONFIG.fullmatch(name):
        return "weight.config"
    raise InvalidInput(
        f"{path}: unknown kind of file; expected weights (safetensors, gguf), configuration (json, "
        "jinja, txt, model), or documents (md, LICENSE)",
        code="file_kind_unknown",
    )
