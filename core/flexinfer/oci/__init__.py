"""How bytes are named and moved: digests, descriptors, references, manifests, and the targets that keep them."""

from flexinfer.oci.blobs import BlobFolder, Quarantined
from flexinfer.oci.canonical import canonical_json
from flexinfer.oci.descriptor import (
    MEDIA_BYTES,
    MEDIA_EMPTY,
    MEDIA_INDEX,
    MEDIA_MANIFEST,
    Descriptor,
)
from flexinfer.oci.digest import Digest, Hasher, Verifier, digest_of, hex_of, parse_digest
from flexinfer.oci.layout import Layout
from flexinfer.oci.layout_target import LayoutTarget
from flexinfer.oci.manifest import Manifest
from flexinfer.oci.memory import MemoryTarget
from flexinfer.oci.reference import Reference
from flexinfer.oci.target import Target
from flexinfer.oci.transfer import copy
from flexinfer.oci.writer import BlobWriter

__all__ = [
    "MEDIA_BYTES",
    "MEDIA_EMPTY",
    "MEDIA_INDEX",
    "MEDIA_MANIFEST",
    "BlobFolder",
    "BlobWriter",
    "Descriptor",
    "Digest",
    "Hasher",
    "Layout",
    "LayoutTarget",
    "Manifest",
    "MemoryTarget",
    "Quarantined",
    "Reference",
    "Target",
    "Verifier",
    "canonical_json",
    "copy",
    "digest_of",
    "hex_of",
    "parse_digest",
]
