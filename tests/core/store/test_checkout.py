from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from flexinfer.errors import IntegrityError, NotFound, Unavailable
from flexinfer.oci import digest_of
from flexinfer.store import Errand, Store
from flexinfer.store.checkout import copy_verified
from flexinfer.store.stamps import hash_file
from flexinfer.testing.locks import held_elsewhere
from flexinfer.testing.running import wait_until

Flip = Callable[[Path], None]

HOLD = """
import sys
from pathlib import Path
from flexinfer.store import Store
lease = Store(Path(sys.argv[1])).checkout(sys.argv[2])
print(lease.path, flush=True)
sys.stdin.read()
"""


def _names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_a_checkout_has_the_files_under_their_own_names_read_only(published: Any) -> None:
    with published.store.checkout(published.manifest.digest) as checkout:
        assert _names(checkout.path) == {"model.gguf", "docs/LICENSE"}
        model = checkout.path / "model.gguf"
        assert model.stat().st_mode & 0o777 == 0o444
        assert checkout.path.stat().st_mode & 0o777 == 0o555
        assert model.stat().st_ino == published.store.path(published.weights).stat().st_ino


def test_links_of_our_own_do_not_cost_a_hash(published: Any) -> None:
    for _ in range(2):
        published.store.checkout(published.manifest.digest).close()
        assert published.store.ensure_verified(published.weights).hashed_bytes == 0
        assert published.store.collect_partials(3600).checkouts == 1
        assert published.store.ensure_verified(published.weights).hashed_bytes == 0


def test_a_link_of_somebody_else_costs_one_hash(published: Any, tmp_path: Path) -> None:
    os.link(published.store.path(published.weights), tmp_path / "theirs")
    assert published.store.ensure_verified(published.weights).hashed_bytes == 512_000


def test_a_link_does_not_launder_a_touched_blob(published: Any, flip: Flip) -> None:
    published.store.checkout(published.manifest.digest).close()
    flip(published.store.path(published.weights))
    published.store.collect_partials(3600)
    with pytest.raises(IntegrityError):
        published.store.checkout(published.manifest.digest)


def test_a_leased_folder_stays_and_a_free_one_goes(published: Any) -> None:
    lease = published.store.checkout(published.manifest.digest)
    other = published.store.checkout(published.manifest.digest)
    lease.close()
    assert published.store.collect_partials(3600).checkouts == 0
    assert other.path.exists()
    other.close()
    assert published.store.collect_partials(3600).checkouts == 1
    assert not other.path.exists()


def test_another_checkout_tidies_up_what_nobody_leases(published: Any, publish: Any) -> None:
    first = published.store.checkout(published.manifest.digest)
    second = publish(published.store, name="smol:other", weights=b"other")
    published.store.checkout(second.manifest.digest).close()
    assert first.path.exists()
    first.close()
    published.store.checkout(second.manifest.digest).close()
    assert not first.path.exists()


def test_the_lease_of_a_dead_process_is_free_at_once(published: Any) -> None:
    command = [sys.executable, "-c", HOLD, str(published.store.root), published.manifest.digest]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        folder = Path(holder.stdout.readline().decode().strip())
        assert published.store.collect_partials(3600).checkouts == 0
        assert folder.exists()
        holder.kill()
        holder.wait()
        assert published.store.collect_partials(3600).checkouts == 1
        assert not folder.exists()


def test_a_child_that_inherits_the_lease_holds_it(published: Any) -> None:
    lease = published.store.checkout(published.manifest.digest)
    with subprocess.Popen(
        [sys.executable, "-c", "import sys; sys.stdin.read()"],
        stdin=subprocess.PIPE,
        pass_fds=[lease.lease_fd],
    ) as child:
        lease.close()
        assert published.store.collect_partials(3600).checkouts == 0
        child.kill()
        child.wait()
    assert published.store.collect_partials(3600).checkouts == 1


@pytest.mark.parametrize("damage", ["missing", "replaced", "extra", "folder"])
def test_a_folder_that_is_not_whole_is_made_again(published: Any, damage: str) -> None:
    folder = published.store.checkout(published.manifest.digest).path
    for parent in (folder, folder / "docs"):
        parent.chmod(0o755)
    if damage == "missing":
        (folder / "docs/LICENSE").unlink()
    elif damage == "replaced":
        (folder / "model.gguf").unlink()
        (folder / "model.gguf").write_bytes(b"other")
    elif damage == "extra":
        (folder / "modeling.py").write_bytes(b"import os")
    else:
        (folder / "docs").rename(folder / "elsewhere")
    with published.store.checkout(published.manifest.digest) as checkout:
        assert _names(checkout.path) == {"model.gguf", "docs/LICENSE"}
        assert digest_of((checkout.path / "model.gguf").read_bytes()) == published.weights


def test_flipped_bytes_leave_every_checkout(published: Any, flip: Flip) -> None:
    with published.store.checkout(published.manifest.digest) as checkout:
        flip(published.store.path(published.weights))
        with pytest.raises(IntegrityError) as caught:
            published.store.checkout(published.manifest.digest)
        assert "model.gguf" in caught.value.message
        assert published.manifest.digest in caught.value.message
        assert _names(checkout.path) == {"docs/LICENSE"}


def test_bytes_flipped_through_the_checkout_are_found(published: Any, flip: Flip) -> None:
    with published.store.checkout(published.manifest.digest) as checkout:
        flip(checkout.path / "model.gguf")
        with pytest.raises(IntegrityError):
            published.store.checkout(published.manifest.digest)


def test_an_unknown_artifact_is_not_found(store: Store) -> None:
    with pytest.raises(NotFound) as caught:
        store.checkout(digest_of(b"x"))
    assert caught.value.code == "artifact_not_found"


def test_a_wait_for_the_hash_of_another_process_is_seen_and_can_be_given_up(
    published: Any,
) -> None:
    store, errand = published.store, Errand()
    with ThreadPoolExecutor(1) as threads, held_elsewhere(store.path(published.weights)):
        work = threads.submit(store.checkout, published.manifest.digest, errand=errand)
        wait_until(lambda: published.weights in errand.waits_for, "it waits", limit_s=20)
        assert "verification" in errand.waits_for and not work.done()
        errand.give_up()
        with pytest.raises(Unavailable) as caught:
            work.result(20)
        assert caught.value.code == "given_up" and errand.waits_for == ""
        assert os.listdir(store.root / "checkouts") == []
        assert store.leased() == frozenset()


def test_a_wait_that_is_not_given_up_ends_with_the_hash_of_another_process(published: Any) -> None:
    store, errand = published.store, Errand()
    with ThreadPoolExecutor(1) as threads:
        with held_elsewhere(store.path(published.weights)):
            work = threads.submit(store.checkout, published.manifest.digest, errand=errand)
            wait_until(lambda: bool(errand.waits_for), "it waits", limit_s=20)
            before_s = errand.waited_s
        with work.result(20) as checkout:
            assert _names(checkout.path) == {"model.gguf", "docs/LICENSE"}
    assert errand.waits_for == "" and errand.waited_s > before_s


def test_a_hash_that_is_given_up_ends_at_once_and_is_no_verdict(published: Any) -> None:
    path, errand = published.store.path(published.weights), Errand()
    errand.give_up()
    with closing(path.open("rb")) as stream, pytest.raises(Unavailable) as caught:
        hash_file(stream.fileno(), path=path, errand=errand)
    assert caught.value.code == "given_up"


def test_many_threads_share_one_folder(published: Any) -> None:
    paths, failures = set(), []

    def lease() -> None:
        try:
            with published.store.checkout(published.manifest.digest) as checkout:
                assert (checkout.path / "model.gguf").stat().st_size == 512_000
                paths.add(checkout.path)
        except BaseException as error:
            failures.append(error)

    threads = [Thread(target=lease) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(paths) == 1


def test_a_copy_where_links_cannot_be_is_verified(published: Any, tmp_path: Path) -> None:
    source = published.store.path(published.weights)
    copy_verified(source, tmp_path / "copy", published.weights)
    assert (tmp_path / "copy").read_bytes() == source.read_bytes()
    assert (tmp_path / "copy").stat().st_mode & 0o777 == 0o444
    with pytest.raises(IntegrityError):
        copy_verified(source, tmp_path / "wrong", digest_of(b"other"))
    assert not (tmp_path / "wrong").exists()


def test_a_checkout_in_another_file_system_is_a_copy_and_is_known_again(
    published: Any, tmp_path: Path
) -> None:
    other = Path("/dev/shm")
    if not other.is_dir() or other.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("needs a second file system at /dev/shm")
    folder = published.store.root / "checkouts"
    folder.rmdir()
    elsewhere = other / f"flexinfer-{os.getpid()}-{tmp_path.name}"
    elsewhere.mkdir()
    folder.symlink_to(elsewhere)
    try:
        with published.store.checkout(published.manifest.digest) as first:
            model = first.path / "model.gguf"
            inode = model.stat().st_ino
            assert digest_of(model.read_bytes()) == published.weights
            with published.store.checkout(published.manifest.digest) as second:
                assert (second.path / "model.gguf").stat().st_ino == inode
            os.utime(model)
            with published.store.checkout(published.manifest.digest) as third:
                assert (third.path / "model.gguf").stat().st_ino != inode
    finally:
        published.store.collect_partials(3600)
        elsewhere.rmdir()


def test_an_old_folder_is_taken_away_after_the_hash_that_reads_its_blob(published: Any) -> None:
    """Its blob was restored, so the folder is made anew while a scrub reads; that may take minutes."""
    store, errand = published.store, Errand()
    store.checkout(published.manifest.digest).close()
    blob = store.path(published.weights)
    data = blob.read_bytes()
    blob.unlink()
    blob.write_bytes(data)
    with ThreadPoolExecutor(1) as threads:
        with held_elsewhere(blob):
            work = threads.submit(store.checkout, published.manifest.digest, errand=errand)
            wait_until(lambda: bool(errand.waits_for) or work.done(), "it waits", limit_s=20)
            longer_than_gc_waits = time.monotonic() + 1.5
            wait_until(
                lambda: work.done() or time.monotonic() > longer_than_gc_waits,
                "it waits",
                limit_s=20,
            )
            assert not work.done()
        work.result(20).close()
