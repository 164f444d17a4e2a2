"""One file into the store in one pass: a thread hashes what another has just read and is writing."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from flexinfer.errors import Conflict, InvalidInput, NotFound
from flexinfer.oci import BlobFolder, BlobWriter, Digest

# One being read, one being written and hashed, one in hand.
_BUFFER_BYTES = 2 << 20
_BUFFERS = 3

Progress = Callable[[int, int], None]


def ingest(
    blobs: BlobFolder, path: Path, *, expected: Digest | None, on_progress: Progress | None
) -> Digest:
    """Return the digest of the file at *path*, whose bytes are now in *blobs*.

    A broken-off ingest of the same, unchanged file goes on where it stopped.

    Raises:
        NotFound: code `file_not_found`.
        InvalidInput: code `not_a_file`.
        IntegrityError: code `digest_mismatch`: it is not *expected*.
        Conflict: code `file_changed`: somebody wrote to the file meanwhile.
        ResourceExhausted: code `disk_full`, before any byte moves.
    """
    try:
        source = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise NotFound(f"{path}: no such file", code="file_not_found") from None
    except OSError as error:
        raise InvalidInput(f"{path}: cannot read: {error.strerror}", code="not_a_file") from error
    try:
        before = os.fstat(source)
        if not os.path.isfile(path):
            raise InvalidInput(f"{path}: expected a regular file", code="not_a_file")
        size = before.st_size
        key = f"file:{path}:{before.st_dev}:{before.st_ino}:{size}:{before.st_mtime_ns}"
        with blobs.writer(key=key, expected=expected, expected_size=size, what=str(path)) as writer:
            if writer.done is None:
                _pour(source, writer, size=size, on_progress=on_progress)
                _refuse_changed(path, before, os.fstat(source), writer)
            elif on_progress is not None:
                on_progress(size, size)
            return writer.commit().digest
    finally:
        os.close(source)


def _pour(source: int, writer: BlobWriter, *, size: int, on_progress: Progress | None) -> None:
    """Read once; write in this thread while the other hashes. Memory: the buffers, whatever the size."""
    at = writer.offset
    buffers = [bytearray(_BUFFER_BYTES) for _ in range(_BUFFERS)]
    hashing: list[Future[None] | None] = [None] * _BUFFERS
    turn = 0
    with ThreadPoolExecutor(1, thread_name_prefix="hash") as pool:
        while True:
            earlier = hashing[turn]
            if earlier is not None:
                earlier.result()
            count = os.preadv(source, [buffers[turn]], at)
            if count == 0:
                break
            piece = memoryview(buffers[turn])[:count]
            at += count
            hashing[turn] = pool.submit(writer.hash, piece)
            writer.store(piece)
            turn = (turn + 1) % _BUFFERS
            if on_progress is not None:
                on_progress(at, size)
        for pending in hashing:
            if pending is not None:
                pending.result()


def _refuse_changed(
    path: Path, before: os.stat_result, after: os.stat_result, writer: BlobWriter
) -> None:
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        writer.discard()
        raise Conflict(f"{path}: somebody wrote to it while it was read", code="file_changed")
