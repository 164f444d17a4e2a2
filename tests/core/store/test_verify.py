from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flexinfer.errors import IntegrityError, NotFound
from flexinfer.store import Store
from flexinfer.store.stamps import Stamps

Flip = Callable[[Path], None]


def test_untouched_bytes_are_not_hashed_again(published: Any) -> None:
    assert published.store.ensure_verified(published.weights).hashed_bytes == 0
    assert Store(published.store.root).ensure_verified(published.weights).hashed_bytes == 0


def test_force_hashes_whatever_the_stamp_says(published: Any) -> None:
    result = published.store.ensure_verified(published.weights, force=True)
    assert result.hashed_bytes == result.size == 512_000


def test_a_touched_file_is_hashed_once_and_believed_again(published: Any) -> None:
    os.utime(published.store.path(published.weights))
    assert published.store.ensure_verified(published.weights).hashed_bytes == 512_000
    assert published.store.ensure_verified(published.weights).hashed_bytes == 0


def test_a_lost_or_damaged_stamp_costs_one_hash(published: Any) -> None:
    stamp = published.store.root / ".flexinfer/stamps" / published.weights.removeprefix("sha256:")
    for damage in (b"", b"[1,2,3]", b"[true,1,1,1]", b"{}", b"\xff"):
        stamp.write_bytes(damage)
        assert published.store.ensure_verified(published.weights).hashed_bytes == 512_000
        assert published.store.ensure_verified(published.weights).hashed_bytes == 0


def test_nothing_is_linked_where_the_stamp_does_not_hold(published: Any, tmp_path: Path) -> None:
    stamps = Stamps(published.store.root / ".flexinfer/stamps")
    blob = published.store.path(published.weights)
    os.utime(blob)
    assert not stamps.link(published.weights, blob, tmp_path / "link", wait_s=0)
    assert not (tmp_path / "link").exists()
    published.store.ensure_verified(published.weights)
    assert stamps.link(published.weights, blob, tmp_path / "link", wait_s=0)
    assert published.store.ensure_verified(published.weights).hashed_bytes == 0


def test_a_blob_that_another_tool_put_there_is_hashed_first(store: Store) -> None:
    digest = store.put_bytes(b"theirs")
    path = store.path(digest)
    path.unlink()
    path.write_bytes(b"theirs")
    assert store.ensure_verified(digest).hashed_bytes == 6


def test_a_flipped_bit_is_found_named_and_quarantined(published: Any, flip: Flip) -> None:
    flip(published.store.path(published.weights))
    with pytest.raises(IntegrityError) as caught:
        published.store.ensure_verified(published.weights, what="smol:q8-0: model.gguf")
    assert caught.value.code == "digest_mismatch"
    assert caught.value.exit_code == 7
    assert "smol:q8-0: model.gguf" in caught.value.message
    assert published.weights in caught.value.message
    assert not published.store.has(published.weights)
    (held,) = published.store.quarantined()
    assert held.expected == published.weights
    assert held.found != published.weights
    assert held.size == 512_000
    assert published.weights[7:] not in os.listdir(published.store.root / ".flexinfer/stamps")


def test_a_file_that_changes_under_the_hash_is_hashed_again(
    published: Any, flip: Flip, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, real, ends = published.store.path(published.weights), os.preadv, [0]

    def read(file: int, buffers: Any, offset: int) -> int:
        count = real(file, buffers, offset)
        if count == 0:
            ends[0] += 1
            if ends[0] == 1:
                flip(path)  # all of it was right when it was read
        return count

    monkeypatch.setattr(os, "preadv", read)
    with pytest.raises(IntegrityError):
        published.store.ensure_verified(published.weights, force=True)
    assert ends == [2]
    assert not published.store.has(published.weights)


def test_a_flipped_bit_under_a_restored_time_is_found(published: Any, flip: Flip) -> None:
    path = published.store.path(published.weights)
    before = path.stat()
    _wait_for_another_tick(path.parent.parent / "tick", before.st_ctime_ns)
    flip(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(IntegrityError):
        published.store.ensure_verified(published.weights)


def test_quarantined_bytes_are_fetched_again(published: Any, flip: Flip, tmp_path: Path) -> None:
    source = tmp_path / "model.gguf"
    source.write_bytes(published.store.path(published.weights).read_bytes())
    flip(published.store.path(published.weights))
    with pytest.raises(IntegrityError):
        published.store.checkout(published.manifest.digest)
    with pytest.raises(NotFound) as caught:
        published.store.checkout(published.manifest.digest)
    assert caught.value.code == "blob_missing"
    assert "model.gguf" in caught.value.message
    published.store.ingest_file(source, expected=published.weights)
    with published.store.checkout(published.manifest.digest) as checkout:
        assert (checkout.path / "model.gguf").read_bytes() == source.read_bytes()


def test_the_right_bytes_replace_a_blob_that_was_touched(published: Any, flip: Flip) -> None:
    data = published.store.path(published.weights).read_bytes()
    flip(published.store.path(published.weights))
    published.store.put_bytes(data)
    assert published.store.path(published.weights).read_bytes() == data
    assert published.store.ensure_verified(published.weights).hashed_bytes == 0


def test_a_writer_of_a_damaged_blob_does_not_find_it_done(published: Any, flip: Flip) -> None:
    data = published.store.path(published.weights).read_bytes()
    flip(published.store.path(published.weights))
    with published.store.writer(key="x", expected=published.weights) as writer:
        assert writer.done is None
        writer.write(data)
        writer.commit()
    assert published.store.ensure_verified(published.weights, force=True).hashed_bytes == 512_000


def test_the_report_of_an_artifact_names_the_file(published: Any, flip: Flip) -> None:
    assert published.store.verify_artifact(published.manifest.digest, force=True).failures == ()
    flip(published.store.path(published.weights))
    report = published.store.verify_artifact(published.manifest.digest)
    (failure,) = report.failures
    assert (failure.path, failure.digest) == ("model.gguf", published.weights)
    assert failure.artifact == published.manifest.digest
    assert failure.code == "digest_mismatch"
    (failure,) = published.store.verify_artifact(published.manifest.digest).failures
    assert failure.code == "blob_missing"


def test_a_damaged_manifest_is_a_failure_too(published: Any, flip: Flip) -> None:
    flip(published.store.path(published.manifest.digest))
    (failure,) = published.store.verify_artifact(published.manifest.digest).failures
    assert (failure.path, failure.code) == ("manifest", "digest_mismatch")
    with pytest.raises(NotFound):
        published.store.checkout(published.manifest.digest)


def test_a_damaged_statement_is_a_failure_of_its_artifact(published: Any, flip: Flip) -> None:
    (referrer,) = published.store.referrers(published.manifest.digest)
    layer = published.store.manifest(referrer.digest).layers[0]
    flip(published.store.path(layer.digest))
    (damaged,) = published.store.evidence(published.manifest.digest).damaged
    assert damaged.digest == layer.digest
    (failure,) = published.store.verify_artifact(published.manifest.digest, force=True).failures
    assert failure.digest == layer.digest


def test_a_scrub_finds_what_is_wrong_and_what_is_missing(published: Any, flip: Flip) -> None:
    clean = published.store.scrub()
    assert (clean.failures, clean.missing) == ((), ())
    assert clean.checked == 7
    flip(published.store.path(published.weights))
    (failure,) = published.store.scrub().failures
    assert (failure.path, failure.digest) == ("model.gguf", published.weights)
    (missing,) = published.store.scrub().missing
    assert (missing.path, missing.code) == ("model.gguf", "blob_missing")


def test_a_running_reader_is_not_disturbed_by_a_scrub(published: Any, flip: Flip) -> None:
    with published.store.open(published.weights) as stream:
        flip(published.store.path(published.weights))
        published.store.scrub()
        assert len(stream.read()) == 512_000


def test_a_process_that_died_while_it_hashed_blocks_nobody(published: Any) -> None:
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import fcntl, os, sys; f = os.open(sys.argv[1], os.O_RDONLY); "
            "fcntl.flock(f, fcntl.LOCK_EX); print('held', flush=True); sys.stdin.read()",
            str(published.store.path(published.weights)),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        holder.kill()
        holder.wait()
        assert published.store.ensure_verified(published.weights, force=True).hashed_bytes


def _wait_for_another_tick(probe: Path, ctime_ns: int) -> None:
    """Return once the file system's clock has moved: two changes within one tick look like one."""
    limit = time.monotonic() + 10
    while time.monotonic() < limit:
        probe.write_bytes(b"")
        if probe.stat().st_ctime_ns > ctime_ns:
            probe.unlink()
            return
    raise AssertionError("the file system's clock stands still")


def test_a_link_in_the_place_of_a_blob_is_put_aside_and_the_bytes_can_come_again(
    published: Any, tmp_path: Path
) -> None:
    store, weights = published.store, published.weights
    blob = store.path(weights)
    moved = tmp_path / "elsewhere.gguf"
    data = blob.read_bytes()
    blob.rename(moved)
    blob.symlink_to(moved)
    report = store.verify_artifact(published.manifest.digest, force=True)
    (failure,) = report.failures
    assert (failure.digest, failure.code) == (weights, "digest_mismatch")
    assert len(report.checked) > 2
    assert not os.path.lexists(blob)
    assert moved.read_bytes() == data
    assert store.put_bytes(data) == weights
    assert store.verify_artifact(published.manifest.digest, force=True).failures == ()


def test_one_blob_that_the_disk_cannot_read_does_not_hide_the_others(
    published: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, weights = published.store, published.weights
    real = os.open

    def refuse(path: Any, flags: int, *more: Any, **named: Any) -> int:
        if str(path) == str(store.path(weights)):
            raise OSError(errno.EIO, "Input/output error")
        return real(path, flags, *more, **named)

    monkeypatch.setattr(os, "open", refuse)
    for failures in (
        store.verify_artifact(published.manifest.digest, force=True).failures,
        store.scrub().failures,
    ):
        assert [(one.digest, one.code) for one in failures] == [(weights, "disk_error")]
    assert os.path.lexists(store.path(weights))
