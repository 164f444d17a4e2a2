"""Dies, or is refused, at each call to the operating system in turn; then looks at what is left.

    python crash_sweep.py kill|error WORK     prints {"calls": …, "problems": […]}

A child process tells the whole story (open a store, ingest, publish, attest, tag, check out) with the calls
below counted. At call number N it is killed, after half of the bytes where that is a write, or the call fails
(`error`). Then the parent, in which nothing is hooked, checks the store and tells the story again.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flexinfer.artifact import FileEntry, ModelConfig, pack, statement
from flexinfer.errors import FlexInferError
from flexinfer.oci import digest_of
from flexinfer.oci.durable import remove_tree
from flexinfer.store import Store

CALLS = (
    "open", "write", "fsync", "rename", "unlink", "mkdir", "rmdir", "fchmod", "chmod", "utime", "link", "ftruncate"
)  # fmt: skip
BYTES = bytes(range(256)) * 400
NAME = "smol:q8-0"
MAX_CALLS = 1000


def story(work: Path) -> str:
    """Publish one artifact and check it out; return its digest."""
    store = Store(work / "store")
    weights = store.ingest_file(work / "model.gguf")
    licence = store.put_bytes(b"Apache")
    files = [
        FileEntry(path="model.gguf", digest=weights, size=len(BYTES)),
        FileEntry(path="docs/LICENSE", digest=licence, size=6),
    ]
    found = store.put_artifact(pack(files, ModelConfig(name="smol"), {}))
    store.attest(found, statement("smol", found.digest, "https://x/y", {"result": "PASSED"}))
    store.tag(NAME, found)
    with store.checkout(found.digest) as checkout:
        assert (checkout.path / "model.gguf").read_bytes() == BYTES
        assert (checkout.path / "docs/LICENSE").read_bytes() == b"Apache"
    return found.digest


def hook(at: int, mode: str) -> Callable[[], int]:
    """Let call number *at* go wrong in this process; return what tells how many there were."""
    count = 0

    def wrap(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            if count == at:
                if mode == "kill" and name == "write":
                    real(args[0], memoryview(args[1])[: len(args[1]) // 2])
                if mode != "error":
                    os.kill(os.getpid(), signal.SIGKILL)
                code = errno.EIO if name in ("fsync", "fchmod", "utime") else errno.ENOSPC
                raise OSError(code, os.strerror(code))
            return real(*args, **kwargs)

        return call

    for name in CALLS:
        setattr(os, name, wrap(name, getattr(os, name)))
    return lambda: count


def child(work: Path, at: int, mode: str, report: int) -> None:
    """Tell the story with call *at* going wrong; write to *report* how it ended."""
    write, calls = os.write, hook(at, mode)
    try:
        story(work)
        ended = "done"
    except FlexInferError as error:
        ended = error.code
    except BaseException as error:
        ended = f"raised {type(error).__name__}: {error}"
    write(report, json.dumps([ended, calls()]).encode())


def run_child(work: Path, at: int, mode: str) -> tuple[str, int]:
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        try:
            child(work, at, mode, writing)
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as stream:
        said = stream.read()
    os.waitpid(pid, 0)
    ended, calls = json.loads(said) if said else ("killed", at)
    return ended, calls


def faults(work: Path) -> list[str]:
    """Return what is wrong with the store as it lies there."""
    root = work / "store"
    found = []
    for blob in (root / "blobs" / "sha256").glob("*"):
        if hashlib.sha256(blob.read_bytes()).hexdigest() != blob.name:
            found.append(f"{blob.name} has other bytes")
    if (root / "index.json").exists():
        for entry in json.loads((root / "index.json").read_bytes())["manifests"]:
            manifest = root / "blobs" / "sha256" / entry["digest"].removeprefix("sha256:")
            if not manifest.exists():
                found.append(f"the index names {entry['digest']}, which is not there")
                continue
            value = json.loads(manifest.read_bytes())
            for part in [value["config"], *value["layers"]]:
                if not (
                    root / "blobs" / "sha256" / part["digest"].removeprefix("sha256:")
                ).exists():
                    found.append(f"a manifest points to {part['digest']}, which is not there")
    return found


def leftovers(work: Path) -> list[str]:
    """Return the unfinished bytes that an error, unlike a death, has no excuse to leave."""
    partials = (work / "store/.flexinfer/partials").glob("*.partial")
    return [path.name for path in partials if path.stat().st_size]


def sweep(mode: str, base: Path) -> dict[str, Any]:
    problems: list[str] = []
    digests = set()
    work = base / "work"
    at = 1
    for at in range(1, MAX_CALLS):
        work.mkdir(parents=True)
        (work / "model.gguf").write_bytes(BYTES)
        ended, calls = run_child(work, at, mode)
        where = f"{mode} at call {at}"
        if ended.startswith("raised") or (mode != "error" and ended not in ("killed", "done")):
            problems.append(f"{where}: {ended}")
        problems += [f"{where}: {fault}" for fault in faults(work)]
        if mode == "error":
            problems += [f"{where}: left {name}" for name in leftovers(work)]
        try:
            digests.add(story(work))
            problems += [f"{where}, again: {fault}" for fault in faults(work)]
            problems += [f"{where}, again: left {name}" for name in leftovers(work)]
        except Exception as error:
            problems.append(f"{where}, again: {type(error).__name__}: {error}")
        remove_tree(work)
        if ended == "done" and calls < at:
            break
    if len(digests) != 1:
        problems.append(f"expected one digest, got {sorted(digests)}")
    return {"calls": at - 1, "problems": problems}


if __name__ == "__main__":
    assert digest_of(BYTES)
    print(json.dumps(sweep(sys.argv[1], Path(sys.argv[2]))))
