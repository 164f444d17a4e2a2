from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flexinfer.errors import Conflict, IntegrityError, InvalidInput, NotFound
from flexinfer.oci import digest_of
from flexinfer.store import Store

MIB = 1 << 20


@pytest.mark.parametrize("size", [0, 1, 2 * MIB - 1, 2 * MIB, 2 * MIB + 1, 9 * MIB + 7])
def test_a_file_of_any_size_is_stored_whole(store: Store, tmp_path: Path, size: int) -> None:
    source = tmp_path / "model.gguf"
    source.write_bytes(os.urandom(size))
    digest = store.ingest_file(source)
    assert digest == "sha256:" + hashlib.sha256(source.read_bytes()).hexdigest()
    assert store.path(digest).read_bytes() == source.read_bytes()
    assert store.ensure_verified(digest).hashed_bytes == 0


def test_the_starter_model_has_the_digest_that_its_wheel_lists(
    store: Store, starter_gguf: Path
) -> None:
    expected = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
    assert store.ingest_file(starter_gguf) == f"sha256:{expected}"


def test_the_source_is_left_as_it_was(store: Store, tmp_path: Path) -> None:
    source = tmp_path / "model.gguf"
    source.write_bytes(b"weights")
    before = source.stat()
    store.ingest_file(source)
    after = source.stat()
    assert (before.st_ino, before.st_mode, before.st_mtime_ns, before.st_nlink) == (
        after.st_ino, after.st_mode, after.st_mtime_ns, after.st_nlink
    )  # fmt: skip
    source.write_bytes(b"changed")
    assert store.path(digest_of(b"weights")).read_bytes() == b"weights"


def test_progress_ends_at_the_whole(store: Store, tmp_path: Path) -> None:
    source = tmp_path / "model.gguf"
    source.write_bytes(bytes(5 * MIB))
    seen: list[tuple[int, int]] = []
    store.ingest_file(source, on_progress=lambda done, whole: seen.append((done, whole)))
    assert seen == [(2 * MIB, 5 * MIB), (4 * MIB, 5 * MIB), (5 * MIB, 5 * MIB)]


def test_memory_does_not_grow_with_the_file(store: Store, tmp_path: Path) -> None:
    source = tmp_path / "model.gguf"
    with source.open("wb") as stream:
        stream.truncate(64 * MIB)
    tracemalloc.start()
    try:
        store.ingest_file(source)
        assert tracemalloc.get_traced_memory()[1] < 10 * MIB
    finally:
        tracemalloc.stop()


def test_a_file_that_is_not_what_was_promised_is_refused(store: Store, tmp_path: Path) -> None:
    source = tmp_path / "model.gguf"
    source.write_bytes(b"weights")
    with pytest.raises(IntegrityError) as caught:
        store.ingest_file(source, expected=digest_of(b"other"))
    assert caught.value.code == "digest_mismatch"
    assert str(source) in caught.value.message
    assert not store.has(digest_of(b"weights"))
    assert not store.has(digest_of(b"other"))


def test_a_known_digest_that_is_there_is_not_read_again(store: Store, tmp_path: Path) -> None:
    digest = store.put_bytes(b"weights")
    source = tmp_path / "model.gguf"
    source.write_bytes(b"WEIGHTS")  # of the same size: it would be refused if anybody looked
    assert store.ingest_file(source, expected=digest) == digest


def test_what_is_no_file_is_refused(store: Store, tmp_path: Path) -> None:
    with pytest.raises(NotFound) as missing:
        store.ingest_file(tmp_path / "absent")
    assert missing.value.code == "file_not_found"
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(InvalidInput) as caught:
            store.ingest_file(path)
        assert caught.value.code == "not_a_file"


def test_a_file_that_is_written_to_meanwhile_is_refused(store: Store, tmp_path: Path) -> None:
    source = tmp_path / "model.gguf"
    source.write_bytes(bytes(5 * MIB))

    def meddle(done: int, whole: int) -> None:
        os.utime(source)

    with pytest.raises(Conflict) as caught:
        store.ingest_file(source, on_progress=meddle)
    assert caught.value.code == "file_changed"
    assert list(store.root.glob("blobs/sha256/*")) == []


def test_a_file_that_grows_meanwhile_is_refused(store: Store, tmp_path: Path) -> None:
    source = tmp_path / "model.gguf"
    source.write_bytes(bytes(3 * MIB))

    def meddle(done: int, whole: int) -> None:
        with source.open("ab") as stream:
            stream.write(b"more")

    with pytest.raises((Conflict, IntegrityError)):
        store.ingest_file(source, on_progress=meddle)
    assert list(store.root.glob("blobs/sha256/*")) == []


def test_a_killed_ingest_goes_on_where_it_stopped(store: Store, tmp_path: Path) -> None:
    source = tmp_path / "model.gguf"
    source.write_bytes(os.urandom(9 * MIB))
    killed = """
import os, signal, sys
from pathlib import Path
from flexinfer.store import Store
def progress(done, whole):
    if done >= 4 << 20:
        os.kill(os.getpid(), signal.SIGKILL)
Store(Path(sys.argv[1])).ingest_file(Path(sys.argv[2]), on_progress=progress)
"""
    done = subprocess.run(
        [sys.executable, "-c", killed, str(store.root), str(source)], timeout=60, check=False
    )
    assert done.returncode == -9
    seen: list[int] = []
    digest = store.ingest_file(source, on_progress=lambda at, whole: seen.append(at))
    assert seen[0] == 6 * MIB
    assert store.path(digest).read_bytes() == source.read_bytes()


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.binary(min_size=1, max_size=64), max_size=12), st.integers(0, 12))
def test_a_blob_written_in_any_pieces_and_sittings_is_the_same(
    store: Store, pieces: list[bytes], stop: int
) -> None:
    whole = b"".join(pieces)
    expected = digest_of(whole)
    with store.writer(key="any", expected=expected) as writer:
        if writer.done is None:
            for piece in pieces[:stop]:
                writer.write(piece)
    with store.writer(key="any", expected=expected, expected_size=len(whole)) as writer:
        if writer.done is None:
            writer.write(whole[writer.offset :])
        assert writer.commit().size == len(whole)
    assert store.path(expected).read_bytes() == whole
    assert store.ensure_verified(expected, force=True).hashed_bytes == len(whole)
