"""A model's bytes as an OCI artifact: ModelPack manifests, raw layers, and in-toto statements about them."""

from flexinfer.artifact.attestation import Statement, attestation, parse_attestation, statement
from flexinfer.artifact.mediatypes import (
    ANNOTATION_BASE,
    ANNOTATION_BUILD_KEY,
    ANNOTATION_FILEPATH,
    ANNOTATION_FORMAT,
    ANNOTATION_QUANTIZATION,
    ANNOTATION_SOURCE,
    ANNOTATION_TITLE,
    MEDIA_IN_TOTO,
    MEDIA_MODEL_CONFIG,
    MEDIA_MODEL_MANIFEST,
    PREDICATE_TEST_RESULT,
    Kind,
    classify,
)
from flexinfer.artifact.model import EPOCH, FileEntry, ModelConfig
from flexinfer.artifact.pack import Artifact, Packed, pack, unpack

__all__ = [
    "ANNOTATION_BASE",
    "ANNOTATION_BUILD_KEY",
    "ANNOTATION_FILEPATH",
    "ANNOTATION_FORMAT",
    "ANNOTATION_QUANTIZATION",
    "ANNOTATION_SOURCE",
    "ANNOTATION_TITLE",
    "EPOCH",
    "MEDIA_IN_TOTO",
    "MEDIA_MODEL_CONFIG",
    "MEDIA_MODEL_MANIFEST",
    "PREDICATE_TEST_RESULT",
    "Artifact",
    "FileEntry",
    "Kind",
    "ModelConfig",
    "Packed",
    "Statement",
    "attestation",
    "classify",
    "pack",
    "parse_attestation",
    "statement",
    "unpack",
]
