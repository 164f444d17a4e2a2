"""What a file is, judged by its first bytes, never by its name. Nothing is loaded or run."""

from __future__ import annotations

import io
import pickletools
import re
import warnings
import zlib
from enum import StrEnum

# Enough for the header of a tar (512) and for the first opcodes of a pickle.
SNIFF_BYTES = 8192

_MAX_OPCODES = 4096
_NPY_OBJECT = re.compile(rb"'[|<>=]?O\d*'")


class Kind(StrEnum):
    """The kinds of content that the ingest rules tell apart."""

    SAFETENSORS = "safetensors"
    GGUF = "gguf"
    JSON = "json"
    TEXT = "text"
    IMAGE = "image"
    NPY = "npy"
    NPY_OBJECT = "npy-object"
    PICKLE = "pickle"
    ZIP_PICKLE = "zip-pickle"
    ZIP = "zip"
    HDF5 = "hdf5"
    ELF = "elf"
    EXECUTABLE = "executable"
    SCRIPT = "script"
    BYTECODE = "bytecode"
    TAR = "tar"
    GZIP = "gzip"
    BZIP2 = "bzip2"
    XZ = "xz"
    ZSTD = "zstd"
    SEVEN_ZIP = "7z"
    RAR = "rar"
    PDF = "pdf"
    EMPTY = "empty"
    BINARY = "binary"


PICKLES = frozenset({Kind.PICKLE, Kind.ZIP_PICKLE, Kind.NPY_OBJECT})

_MAGICS: tuple[tuple[bytes, Kind], ...] = (
    (b"GGUF", Kind.GGUF),
    (b"\x89HDF\r\n\x1a\n", Kind.HDF5),
    (b"\x7fELF", Kind.ELF),
    (b"MZ", Kind.EXECUTABLE),
    (b"\xfe\xed\xfa\xce", Kind.EXECUTABLE),
    (b"\xfe\xed\xfa\xcf", Kind.EXECUTABLE),
    (b"\xce\xfa\xed\xfe", Kind.EXECUTABLE),
    (b"\xcf\xfa\xed\xfe", Kind.EXECUTABLE),
    (b"\xca\xfe\xba\xbe", Kind.EXECUTABLE),
    (b"\x00asm", Kind.EXECUTABLE),
    (b"#!", Kind.SCRIPT),
    (b"\xef\xbb\xbf#!", Kind.SCRIPT),
    (b"\x1f\x8b", Kind.GZIP),
    (b"BZh", Kind.BZIP2),
    (b"\xfd7zXZ\x00", Kind.XZ),
    (b"\x28\xb5\x2f\xfd", Kind.ZSTD),
    (b"7z\xbc\xaf\x27\x1c", Kind.SEVEN_ZIP),
    (b"Rar!\x1a\x07", Kind.RAR),
    (b"%PDF-", Kind.PDF),
    (b"\x89PNG\r\n\x1a\n", Kind.IMAGE),
    (b"\xff\xd8\xff", Kind.IMAGE),
    (b"GIF87a", Kind.IMAGE),
    (b"GIF89a", Kind.IMAGE),
)
_ZIP_MAGICS = (b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08")
# Opcodes that name or call something: text that happens to parse as opcodes has none of them.
_ACTIVE = frozenset({"GLOBAL", "STACK_GLOBAL", "INST", "OBJ", "REDUCE", "NEWOBJ", "NEWOBJ_EX"})
_ACTIVE_OR_CONTAINER = _ACTIVE | {"BUILD", "PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"}


def sniff(first_bytes: bytes, size: int) -> Kind:
    """Return what a file of *size* bytes that begins with *first_bytes* is.

    *first_bytes* are the first `SNIFF_BYTES` of the file, or all of it.
    """
    if size == 0:
        return Kind.EMPTY
    head = first_bytes[:SNIFF_BYTES]
    if head.startswith(_ZIP_MAGICS):
        return Kind.ZIP_PICKLE if b"data.pkl" in head or b".pkl" in head else Kind.ZIP
    if head.startswith(b"\x93NUMPY"):
        return Kind.NPY_OBJECT if _NPY_OBJECT.search(head) else Kind.NPY
    for magic, kind in _MAGICS:
        if head.startswith(magic):
            return kind
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return Kind.IMAGE
    if head[257:262] == b"ustar":
        return Kind.TAR
    if _is_safetensors(head, size):
        return Kind.SAFETENSORS
    if _is_pickle(head, whole=len(head) == size):
        return Kind.PICKLE
    if len(head) > 4 and head[2:4] == b"\r\n" and not _is_text(head):
        return Kind.BYTECODE
    if len(head) > 2 and head[0] == 0x78 and _is_zlib(head):
        return Kind.PICKLE  # what joblib writes by default when it compresses
    if not _is_text(head):
        return Kind.BINARY
    stripped = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    return Kind.JSON if stripped[:1] in (b"{", b"[") else Kind.TEXT


def _is_safetensors(head: bytes, size: int) -> bool:
    # `{` alone could be a pickle's or a text's; the length before it must also fit the file.
    if len(head) < 10 or head[8:9] != b"{":
        return False
    return 2 <= int.from_bytes(head[:8], "little") <= size - 8


def _is_pickle(head: bytes, *, whole: bool) -> bool:
    """Say whether the bytes read as pickle opcodes, of any protocol.

    Protocols 2 and later announce themselves. The older ones are recognized by reading opcodes
    (which executes nothing) up to the end, or as far as the bytes go.
    """
    if len(head) >= 2 and head[0] == 0x80 and head[1] <= 5:
        return True
    seen: set[str] = set()
    count = 0
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about escapes in what need not be text
            for opcode, _, _ in pickletools.genops(io.BytesIO(head)):
                seen.add(opcode.name)
                count += 1
                if opcode.name == "STOP":
                    return count > 2 and bool(seen & _ACTIVE_OR_CONTAINER)
                if count == _MAX_OPCODES:
                    return bool(seen & _ACTIVE_OR_CONTAINER)
    except ValueError:  # from here on these are no opcodes
        return not whole and count > 8 and bool(seen & _ACTIVE)
    return False


def _is_zlib(head: bytes) -> bool:
    if int.from_bytes(head[:2], "big") % 31:
        return False
    try:
        plain = zlib.decompressobj().decompress(head, SNIFF_BYTES)
    except zlib.error:
        return False
    return _is_pickle(plain, whole=False)


def _is_text(head: bytes) -> bool:
    if b"\x00" in head:
        return False
    try:
        head.decode()
    except UnicodeDecodeError as error:
        # The cut may have split the last character.
        return error.start >= len(head) - 3 and len(head) == SNIFF_BYTES
    return True
