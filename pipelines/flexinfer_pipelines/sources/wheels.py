"""One member out of a wheel, streamed, with every number of the archive checked against what is there."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator
from pathlib import Path

from flexinfer.errors import InvalidInput, NotFound
from flexinfer.spelling import nearest

_CHUNK = 1 << 20
_MAX_ENTRIES = 10_000
_MAX_DIRECTORY = 16 * 1024 * 1024
_MIN_SIZE = 22  # an empty archive's end record
_ENCRYPTED = 0x1


def find_member(archive: zipfile.ZipFile, name: str, *, max_bytes: int) -> zipfile.ZipInfo:
    """Return the entry called *name*.

    Raises:
        NotFound: code `source_not_found`, with the nearest name.
        InvalidInput: code `archive_unsafe`: twice there, encrypted, a link, packed in an unknown way; or
            `expansion_limit`: larger than *max_bytes*.
    """
    entries = archive.infolist()
    found = [entry for entry in entries if entry.filename == name]
    what = f"{Path(archive.filename or 'archive').name}: {name}"
    if not found:
        known = [entry.filename for entry in entries]
        raise NotFound(f"{what}: not there{nearest(name, known)}", code="source_not_found")
    if len(found) > 1:
        raise _unsafe(f"{what}: there {len(found)} times, expected once")
    entry = found[0]
    kind = (entry.external_attr >> 16) & 0o170000
    if entry.is_dir() or kind not in (0, 0o100000):
        raise _unsafe(f"{what}: not a regular file")
    if entry.flag_bits & _ENCRYPTED:
        raise _unsafe(f"{what}: encrypted")
    if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise _unsafe(
            f"{what}: packed by method {entry.compress_type}, expected stored or deflated"
        )
    if entry.file_size > max_bytes:
        raise InvalidInput(
            f"{what}: claims {entry.file_size} bytes, at most {max_bytes} are taken",
            code="expansion_limit",
        )
    return entry


def open_wheel(path: Path) -> zipfile.ZipFile:
    """Open the archive at *path* after a look at how large its directory claims to be.

    Raises:
        InvalidInput: code `archive_unsafe`.
    """
    size = path.stat().st_size
    if size < _MIN_SIZE:
        raise _unsafe(f"{path.name}: {size} bytes are no archive")
    with path.open("rb") as stream:
        stream.seek(max(0, size - 65_557 - 20))
        tail = stream.read()
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or len(tail) - at < _MIN_SIZE:
        raise _unsafe(f"{path.name}: not a zip archive")
    entries = int.from_bytes(tail[at + 10 : at + 12], "little")
    directory = int.from_bytes(tail[at + 12 : at + 16], "little")
    if 0xFFFF in (entries,) or directory == 0xFFFFFFFF:
        entries, directory = _zip64(path, tail, at)
    if entries > _MAX_ENTRIES or directory > min(size, _MAX_DIRECTORY):
        raise _unsafe(f"{path.name}: claims {entries} entries in {directory} bytes")
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise _unsafe(f"{path.name}: {error}") from error


def read_member(
    archive: zipfile.ZipFile, entry: zipfile.ZipInfo, *, offset: int = 0
) -> Iterator[bytes]:
    """Yield the bytes of *entry* from *offset* on; exactly as many as it claims.

    Raises:
        InvalidInput: code `archive_unsafe`: packed bytes that do not unpack, or to something else.
    """
    what = f"{Path(archive.filename or 'archive').name}: {entry.filename}"
    seen = 0
    try:
        with archive.open(entry) as member:
            while chunk := member.read(_CHUNK):
                seen += len(chunk)
                if seen > entry.file_size:
                    raise _unsafe(f"{what}: longer than the {entry.file_size} bytes it claims")
                keep = seen - offset
                if keep >= len(chunk):
                    yield chunk
                elif keep > 0:
                    yield chunk[-keep:]
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, NotImplementedError) as error:
        raise _unsafe(f"{what}: {error}") from error
    except Exception as error:
        if type(error).__module__ != "zlib":  # zlib.error has no other base than Exception
            raise
        raise _unsafe(f"{what}: {error}") from error
    if seen != entry.file_size:
        raise _unsafe(f"{what}: {seen} bytes, it claims {entry.file_size}")


def _zip64(path: Path, tail: bytes, end: int) -> tuple[int, int]:
    locator = tail[end - 20 : end] if end >= 20 else b""
    if locator[:4] != b"PK\x06\x07":
        raise _unsafe(f"{path.name}: its end record points nowhere")
    offset = int.from_bytes(locator[8:16], "little")
    with path.open("rb") as stream:
        if offset > os.fstat(stream.fileno()).st_size:
            raise _unsafe(f"{path.name}: its end record points nowhere")
        stream.seek(offset)
        record = stream.read(56)
    if record[:4] != b"PK\x06\x06" or len(record) < 56:
        raise _unsafe(f"{path.name}: its end record points nowhere")
    return int.from_bytes(record[32:40], "little"), int.from_bytes(record[40:48], "little")


def _unsafe(message: str) -> InvalidInput:
    return InvalidInput(message, code="archive_unsafe")
