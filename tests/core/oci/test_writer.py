from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from threading import Thread

import pytest

from flexinfer.errors import IntegrityError, ResourceExhausted, Unavailable
from flexinfer.oci import BlobFolder, Digest, digest_of
from flexinfer.oci.blobs import MAX_QUARANTINED_BYTES
from flexinfer.oci.durable import lock, wait_for_lock

DATA = bytes(range(256)) * 1000
DIGEST = digest_of(DATA)

# Writes half, says so, waits for a line, writes the rest and commits.
HALF = """
import sys
from pathlib import Path
from flexinfer.oci import BlobFolder
folder = BlobFolder(Path(sys.argv[1]))
data = bytes(range(256)) * 1000
with folder.writer(key="k", expected=sys.argv[2] or None, expected_size=len(data)) as writer:
    writer.write(data[:128_000])
    print("half", flush=True)
    sys.stdin.readline()
    writer.write(data[128_000:])
    print(writer.commit().digest, flush=True)
"""


@pytest.fixture
def folder(tmp_path: Path) -> BlobFolder:
    blobs = BlobFolder(tmp_path)
    blobs.prepare()
    return blobs


def wait_until(condition: Callable[[], bool]) -> None:
    limit = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.005)


def _partials(folder: BlobFolder) -> list[str]:
    return [name for name in os.listdir(folder.partials) if name.endswith(".partial")]


def test_a_committed_blob_is_whole_and_read_only(folder: BlobFolder) -> None:
    with folder.writer(key="k") as writer:
        writer.write(DATA[:100])
        writer.write(DATA[100:])
        found = writer.commit()
    assert (found.digest, found.size) == (DIGEST, len(DATA))
    assert folder.path(DIGEST).read_bytes() == DATA
    assert folder.path(DIGEST).stat().st_mode & 0o777 == 0o444
    assert _partials(folder) == []


def test_a_later_write_in_place_changes_the_time_even_within_one_tick(folder: BlobFolder) -> None:
    path = folder.path(folder.put_bytes(DATA))
    assert path.stat().st_mtime_ns == 0
    path.chmod(0o644)
    path.write_bytes(DATA)
    assert path.stat().st_mtime_ns != 0


def test_the_same_bytes_under_another_key_leave_the_blob_as_it_is(folder: BlobFolder) -> None:
    inode = folder.path(folder.put_bytes(DATA)).stat().st_ino
    with folder.writer(key="another, of unknown digest") as writer:
        writer.write(DATA)
        writer.commit()
    assert folder.path(DIGEST).stat().st_ino == inode
    assert _partials(folder) == []


def test_nothing_is_visible_before_the_commit(folder: BlobFolder) -> None:
    with folder.writer(key="k", expected=DIGEST) as writer:
        writer.write(DATA)
        assert not folder.has(DIGEST)


def test_leaving_without_a_commit_keeps_what_came(folder: BlobFolder) -> None:
    with folder.writer(key="k", expected=DIGEST) as writer:
        writer.write(DATA[:1000])
    with folder.writer(key="another", expected=DIGEST) as writer:
        assert writer.offset == 1000
        writer.write(DATA[1000:])
        writer.commit()
    assert folder.path(DIGEST).read_bytes() == DATA


def test_keys_without_a_digest_do_not_share_what_came(folder: BlobFolder) -> None:
    with folder.writer(key="one") as writer:
        writer.write(DATA[:1000])
    with folder.writer(key="two") as writer:
        assert writer.offset == 0
    with folder.writer(key="one") as writer:
        assert writer.offset == 1000


def test_a_restart_forgets_what_came(folder: BlobFolder) -> None:
    with folder.writer(key="k", expected=DIGEST) as writer:
        writer.write(b"wrong from the start")
        writer.restart()
        assert writer.offset == 0
        writer.write(DATA)
        writer.commit()
    assert folder.path(DIGEST).read_bytes() == DATA


def test_a_discard_leaves_nothing(folder: BlobFolder) -> None:
    with folder.writer(key="k", expected=DIGEST) as writer:
        writer.write(DATA)
        writer.discard()
    assert _partials(folder) == []


def test_wrong_bytes_go_to_quarantine_and_get_no_name(folder: BlobFolder) -> None:
    with folder.writer(key="m.gguf", expected=DIGEST) as writer:
        writer.write(b"wrong")
        with pytest.raises(IntegrityError, match=r"m\.gguf.*expected " + DIGEST):
            writer.commit()
    (held,) = folder.quarantined()
    assert (held.expected, held.found) == (DIGEST, digest_of(b"wrong"))
    assert list(folder.digests()) == []
    assert _partials(folder) == []


def test_quarantine_keeps_the_newest_only(folder: BlobFolder) -> None:
    for number in range(20):
        with folder.writer(key="k", expected=DIGEST) as writer:
            writer.write(b"%d" % number)
            with pytest.raises(IntegrityError):
                writer.commit()
    assert len(folder.quarantined()) == 16


def test_quarantine_holds_the_newest_however_large_and_few_large_ones_before_it(
    folder: BlobFolder, tmp_path: Path
) -> None:
    for number, size in enumerate([MAX_QUARANTINED_BYTES // 2] * 3 + [MAX_QUARANTINED_BYTES + 1]):
        file = tmp_path / f"{number}"
        file.touch()
        os.truncate(file, size)  # sparse
        folder.isolate(file, expected=DIGEST, found=digest_of(b"%d" % number))
        held = {one.found for one in folder.quarantined()}
        newest = (number,) if number == 3 else range(max(0, number - 1), number + 1)
        assert held == {digest_of(b"%d" % one) for one in newest}


def test_a_byte_too_many_is_refused_at_once(folder: BlobFolder) -> None:
    with folder.writer(key="k", expected=DIGEST, expected_size=len(DATA)) as writer:
        writer.write(DATA)
        with pytest.raises(IntegrityError, match="got more"):
            writer.write(b"x")
    assert _partials(folder) == []


def test_a_partial_that_is_too_long_begins_anew(folder: BlobFolder) -> None:
    with folder.writer(key="k", expected=DIGEST) as writer:
        writer.write(DATA + b"more")
    with folder.writer(key="k", expected=DIGEST, expected_size=len(DATA)) as writer:
        assert writer.offset == 0


def test_what_cannot_fit_is_refused_before_a_byte_moves(folder: BlobFolder) -> None:
    with (
        pytest.raises(ResourceExhausted, match=str(1 << 60)) as caught,
        folder.writer(key="k", expected=DIGEST, expected_size=1 << 60),
    ):
        raise AssertionError("entered")
    assert caught.value.code == "disk_full"
    assert str(folder.partials) in caught.value.message


def test_what_is_there_is_done_before_it_begins(folder: BlobFolder) -> None:
    folder.put_bytes(DATA)
    with folder.writer(key="k", expected=DIGEST) as writer:
        assert writer.done is not None
        assert writer.offset == len(DATA)
        assert writer.commit().digest == DIGEST
    assert _partials(folder) == []


def test_a_read_only_partial_of_a_dead_commit_is_taken_up(folder: BlobFolder) -> None:
    with folder.writer(key="k", expected=DIGEST) as writer:
        writer.write(DATA)
    (name,) = _partials(folder)
    (folder.partials / name).chmod(0o444)
    with folder.writer(key="k", expected=DIGEST) as writer:
        assert writer.offset == len(DATA)
        writer.commit()
    assert folder.has(DIGEST)


def test_a_whole_partial_is_not_fetched_again(folder: BlobFolder) -> None:
    with folder.writer(key="k", expected=DIGEST, expected_size=len(DATA)) as writer:
        writer.write(DATA)
    with folder.writer(key="k", expected=DIGEST, expected_size=len(DATA)) as writer:
        assert writer.offset == len(DATA)
        assert writer.commit().digest == DIGEST


def test_bytes_are_durable_before_their_name_and_the_name_before_the_commit_returns(
    folder: BlobFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    fsync, rename = os.fsync, os.rename

    def synced(descriptor: int) -> None:
        done.append("fsync " + Path(os.readlink(f"/proc/self/fd/{descriptor}")).suffix)
        fsync(descriptor)

    def renamed(source: Path, target: Path) -> None:
        done.append("rename")
        rename(source, target)

    with folder.writer(key="k", expected=DIGEST) as writer:
        writer.write(DATA)
        monkeypatch.setattr(os, "fsync", synced)
        monkeypatch.setattr(os, "rename", renamed)
        writer.commit()
    assert done == ["fsync .partial", "rename", "fsync "]  # the last one: the folder


def test_the_record_of_another_file_is_not_believed(folder: BlobFolder) -> None:
    with folder.writer(key="k") as writer:
        writer.write(b"what the source was yesterday")
        writer.commit()
    with folder.writer(key="k") as first:
        thread, seen = _second(folder, "")
        wait_until(lambda: _open_count(folder.partials) >= 3)  # two of the first, one that waits
        first.discard()
        thread.join(30)
    assert seen == [("writes", 0)]
    assert folder.has(DIGEST)


def test_a_blob_that_gets_its_name_meanwhile_leaves_no_empty_partial(tmp_path: Path) -> None:
    class Repaired(BlobFolder):
        """Finds the blob wrong at the first look, and right at the next."""

        looks = 0

        def is_whole(self, digest: Digest) -> bool:
            self.looks += 1
            return self.looks > 1

    folder = Repaired(tmp_path)
    folder.prepare()
    folder.put_bytes(DATA)
    with folder.writer(key="k", expected=DIGEST) as writer:
        assert writer.done is not None
    assert _partials(folder) == []


class Clock:
    """Time that passes only in `sleep`, and what happens meanwhile."""

    def __init__(self, meanwhile: Callable[[int], None]) -> None:
        self.now_s, self.sleeps, self._meanwhile = 0.0, 0, meanwhile

    def monotonic(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += 0.9
        self.sleeps += 1
        self._meanwhile(self.sleeps)


@pytest.mark.parametrize("grows", [True, False])
def test_who_waits_for_a_file_that_grows_waits_longer_than_for_one_that_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, grows: bool
) -> None:
    path = tmp_path / "partial"
    path.write_bytes(b"")
    holder = os.open(path, os.O_RDWR)
    waiter = os.open(path, os.O_RDONLY)
    fcntl.flock(holder, fcntl.LOCK_EX)

    def meanwhile(sleeps: int) -> None:
        if grows:
            os.write(holder, b"more")
        if sleeps == 6:
            fcntl.flock(holder, fcntl.LOCK_UN)

    monkeypatch.setattr("flexinfer.oci.durable.time", Clock(meanwhile))
    try:
        if grows:
            assert wait_for_lock(waiter, path=path, exclusive=True, wait_s=1.0)
        else:
            with pytest.raises(Unavailable, match="no progress"):
                wait_for_lock(waiter, path=path, exclusive=True, wait_s=1.0)
    finally:
        os.close(waiter)
        os.close(holder)


@pytest.mark.parametrize("expected", [DIGEST, ""])
def test_who_waits_for_another_process_finds_the_work_done(
    folder: BlobFolder, expected: str
) -> None:
    with _half_written(folder, expected) as holder:
        thread, seen = _second(folder, expected)
        wait_until(lambda: _has_open(folder.partials))
        assert holder.stdin is not None
        holder.stdin.write(b"\n")
        holder.stdin.flush()
        thread.join(30)
    assert seen == [("done", len(DATA))]
    assert list(folder.digests()) == [DIGEST]


@pytest.mark.parametrize("expected", [DIGEST, ""])
def test_a_killed_writer_blocks_nobody_and_loses_nothing(folder: BlobFolder, expected: str) -> None:
    with _half_written(folder, expected) as holder:
        thread, seen = _second(folder, expected)
        wait_until(lambda: _has_open(folder.partials))
        holder.kill()
        holder.wait()
        thread.join(30)
    assert seen == [("writes", 128_000)]
    assert folder.path(DIGEST).read_bytes() == DATA


def test_who_waits_for_a_writer_that_stands_still_is_told(folder: BlobFolder) -> None:
    with (
        folder.writer(key="k", expected=DIGEST) as first,
        pytest.raises(Unavailable, match="no progress") as caught,
        folder.writer(key="k", expected=DIGEST, wait_s=0),
    ):
        raise AssertionError("entered")
    assert caught.value.code == "store_busy"
    assert first.offset == 0


def test_threads_that_put_the_same_bytes_all_succeed(folder: BlobFolder) -> None:
    found: list[str] = []
    threads = [Thread(target=lambda: found.append(folder.put_bytes(DATA))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [DIGEST] * 8


def test_old_partials_go_and_those_of_living_writers_stay(folder: BlobFolder) -> None:
    with folder.writer(key="dead") as writer:
        writer.write(b"dead")
    with folder.writer(key="alive") as writer:
        writer.write(b"alive")
        now = time.time()
        assert folder.remove_old(max_age_s=3600, now_s=now) == (0, 0)
        assert folder.remove_old(max_age_s=3600, now_s=now + 7200) == (1, 4)
        assert writer.commit().size == 5


def test_a_lock_whose_file_was_replaced_is_taken_on_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    entered: list[int] = []

    def second() -> None:
        with lock(path) as descriptor:
            entered.append(os.fstat(descriptor).st_ino)

    with lock(path):
        thread = Thread(target=second)
        thread.start()
        wait_until(lambda: _open_count(tmp_path) >= 2)
        path.unlink()
    thread.join(30)
    assert entered == [path.stat().st_ino]


def _half_written(folder: BlobFolder, expected: str) -> subprocess.Popen[bytes]:
    holder = subprocess.Popen(
        [sys.executable, "-c", HALF, str(folder.root), expected],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"half\n"
    return holder


def _second(folder: BlobFolder, expected: str) -> tuple[Thread, list[tuple[str, int]]]:
    """Begin a second writer of the same key in a thread; return what it will have seen."""
    seen: list[tuple[str, int]] = []

    def write() -> None:
        wanted = DIGEST if expected else None
        with folder.writer(key="k", expected=wanted, expected_size=len(DATA)) as writer:
            seen.append(("done" if writer.done else "writes", writer.offset))
            if writer.done is None:
                writer.write(DATA[writer.offset :])
            writer.commit()

    thread = Thread(target=write)
    thread.start()
    return thread, seen


def _has_open(folder: Path) -> bool:
    return _open_count(folder) > 0


def _open_count(folder: Path) -> int:
    """How many files in *folder* this process has open."""
    count = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            count += os.readlink(f"/proc/self/fd/{name}").startswith(f"{folder}/")
        except FileNotFoundError:
            continue
    return count


def test_a_disk_that_fills_on_the_way_is_said_with_what_the_whole_file_still_needs(
    folder: BlobFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    with folder.writer(key="file:/m.gguf:39:1", what="/m.gguf") as writer:
        writer.write(b"begun")
        writer.likely_size = 5 + (7 << 20)

        def full(descriptor: int, data: bytes) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr("flexinfer.oci.writer.write_all", full)
        with pytest.raises(ResourceExhausted) as caught:
            writer.write(bytes(1 << 20))
    assert caught.value.code == "disk_full"
    assert f"7.0 MiB ({7 << 20} bytes) needed for /m.gguf, " in caught.value.message
    assert ":39:" not in caught.value.message
