"""One instance at a time; a dead one never stands in the way."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from flexinfer.errors import Conflict, InvalidInput
from flexinfer.process import SingleInstance, holder

Wait = Callable[[Callable[[], object], str], None]

HOLDER = """
import sys, time
from pathlib import Path
from flexinfer.process import SingleInstance
held = SingleInstance.acquire(Path(sys.argv[1]), {"what": "flexinfer up", "address": "http://127.0.0.1:8080"})
print("held", flush=True)
time.sleep(1000)
"""
UPDATER = """
import os, sys
from pathlib import Path
from flexinfer.process import SingleInstance
held = SingleInstance.acquire(Path(sys.argv[1]), {"what": "short"})
print("held", flush=True)
for _ in range(30_000):
    held.update({"what": 400 * "x"})
    held.update({"what": "short"})
os._exit(0)  # without a release, which empties the file while it is locked
"""
ABOUT = {"what": "flexinfer up", "address": "http://127.0.0.1:8080"}


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    return tmp_path / "up.lock"


def test_a_second_instance_is_told_who_holds_it_and_a_killed_one_holds_nothing(lock: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(lock)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"held\n"
        try:
            with pytest.raises(Conflict) as caught:
                SingleInstance.acquire(lock, ABOUT)
        finally:
            process.kill()
    assert caught.value.code == "already_running"
    assert caught.value.message.startswith(
        f"flexinfer up is already running at http://127.0.0.1:8080 (pid {process.pid} since 2"
    )
    assert holder(lock) is None  # its words are still there, its lock is not
    with SingleInstance.acquire(lock, ABOUT):
        assert holder(lock) == {**(holder(lock) or {}), **ABOUT, "pid": os.getpid()}


def test_the_lock_is_free_after_release(lock: Path) -> None:
    for _ in range(2):
        held = SingleInstance.acquire(lock, ABOUT)
        held.release()
        held.release()
    assert holder(lock) is None


def test_the_address_can_be_told_later(lock: Path) -> None:
    with SingleInstance.acquire(lock, {"what": "up", "address": "a much longer address"}) as held:
        began = (holder(lock) or {})["started"]
        second = time.time() + 1.1
        while time.time() < second:
            held.update({"what": "up", "address": "http://[::1]:1"})
        assert (holder(lock) or {})["address"] == "http://[::1]:1"
        assert (holder(lock) or {})["started"] == began


def test_who_reads_while_the_text_gets_shorter_reads_the_old_or_the_new(lock: Path) -> None:
    command = [sys.executable, "-c", UPDATER, str(lock)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"held\n"
        seen = set()
        while process.poll() is None:
            found = holder(lock)
            if found is not None:
                seen.add(len(str(found.get("what", ""))))
    assert process.returncode == 0
    assert seen <= {5, 400}


def test_a_holder_that_did_not_say_who_it_is_still_holds(lock: Path) -> None:
    with SingleInstance.acquire(lock, ABOUT):
        lock.write_bytes(b"\xff not JSON")
        assert holder(lock) == {}
        with pytest.raises(Conflict, match=r"up\.lock is held"):
            SingleInstance.acquire(lock, ABOUT)


def test_a_lock_file_that_was_deleted_and_made_anew_is_another_lock(lock: Path) -> None:
    with SingleInstance.acquire(lock, ABOUT):
        lock.unlink()
        with SingleInstance.acquire(lock, ABOUT):
            with pytest.raises(Conflict):
                SingleInstance.acquire(lock, ABOUT)


def test_a_file_that_was_deleted_while_it_was_locked_is_not_the_lock(
    lock: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    flock = fcntl.flock

    def deleted_just_before(descriptor: int, operation: int) -> None:
        if not calls:
            lock.unlink()
        calls.append(operation)
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", deleted_just_before)
    with SingleInstance.acquire(lock, ABOUT):
        with pytest.raises(Conflict):
            SingleInstance.acquire(lock, ABOUT)


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidInput, match=r"file/up\.lock") as caught:
        SingleInstance.acquire(tmp_path / "file" / "up.lock", ABOUT)
    assert caught.value.code == "home_not_writable"


def test_nobody_holds_a_file_that_is_not_there(lock: Path) -> None:
    assert holder(lock) is None


_ON_A_FULL_DISK = """
import resource, sys
from pathlib import Path
from flexinfer.errors import ResourceExhausted
from flexinfer.process import SingleInstance, holder

path, other = Path(sys.argv[1]), Path(sys.argv[2])
held = SingleInstance.acquire(path, {"what": "up"})
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), resource.RLIM_INFINITY))
for attempt in (lambda: held.update({"what": "up" * 99}), lambda: SingleInstance.acquire(other, {})):
    try:
        attempt()
    except ResourceExhausted as error:
        print(error.code, error.message)
print(holder(path) is not None, holder(other))
held.release()
print(holder(path))
"""


@pytest.mark.parametrize("room", [0, 10])
def test_a_full_disk_is_said_and_the_lock_stays_what_it_was(
    tmp_path: Path, lock: Path, room: int
) -> None:
    other = tmp_path / "other.lock"
    result = subprocess.run(
        [sys.executable, "-c", _ON_A_FULL_DISK, str(lock), str(other), str(room)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    first, second, *rest = result.stdout.splitlines()
    assert first.startswith(f"disk_full {lock}: disk full")
    assert second.startswith(f"disk_full {other}: disk full")
    assert rest == ["True None", "None"]
    SingleInstance.acquire(lock, ABOUT).release()
    SingleInstance.acquire(other, ABOUT).release()


def test_a_disk_that_cannot_empty_the_file_frees_the_lock(
    lock: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = SingleInstance.acquire(lock, ABOUT)

    def full(descriptor: int, length: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as faulty:
        faulty.setattr(os, "ftruncate", full)
        held.release()
    assert holder(lock) is None
    SingleInstance.acquire(lock, ABOUT).release()
