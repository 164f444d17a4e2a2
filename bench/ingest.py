"""How long the store takes for a local file, against `cp` and `sha256sum` of the same file in the same run.

    python bench/ingest.py [MODEL.gguf] [--rounds 5] [--max-ratio 1.3]

Each round does both, in turn, each into a folder of its own that is removed afterwards; the median counts.
`cp` does not wait for the disk and the store does, so `synced` gives `cp`, `sync` and `sha256sum` beside it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from flexinfer.artifact import FileEntry, ModelConfig, pack
from flexinfer.oci.durable import remove_tree
from flexinfer.store import Store
from flexinfer.testing import starter


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestFigures:
    """Medians, in seconds. *ratio*: the store's time by that of `cp` and `sha256sum`."""

    size_bytes: int
    store_s: float
    plain_s: float
    synced_s: float
    ratio: float
    checkout_s: float


def measure_ingest(source: Path, work: Path, *, rounds: int) -> IngestFigures:
    """Return the figures for *source*; *work* is in the file system to measure."""
    source.read_bytes()  # every round finds the source in the page cache
    stored, plain, synced, checkouts = [], [], [], []
    for number in range(rounds):
        folder = work / str(number)
        folder.mkdir()
        plain.append(_timed(partial(_plain, source, folder / "plain", sync=False)))
        synced.append(_timed(partial(_plain, source, folder / "synced", sync=True)))
        store = Store(folder / "store")
        stored.append(_timed(partial(store.ingest_file, source)))
        checkouts.append(_checkout_s(store, source))
        remove_tree(folder)
    return IngestFigures(
        size_bytes=source.stat().st_size,
        store_s=statistics.median(stored),
        plain_s=statistics.median(plain),
        synced_s=statistics.median(synced),
        ratio=statistics.median(stored) / statistics.median(plain),
        checkout_s=statistics.median(checkouts),
    )


def _plain(source: Path, place: Path, *, sync: bool) -> None:
    subprocess.run(["cp", str(source), str(place)], check=True)
    if sync:
        subprocess.run(["sync", str(place)], check=True)
    subprocess.run(["sha256sum", str(place)], check=True, stdout=subprocess.DEVNULL)


def _checkout_s(store: Store, source: Path) -> float:
    """Return how long a checkout takes of what has just been stored, the first one, which makes the links."""
    digest = store.ingest_file(source)
    entry = FileEntry(path="model.gguf", digest=digest, size=source.stat().st_size)
    manifest = store.put_artifact(pack([entry], ModelConfig(name="bench"), {}))

    def lease() -> None:
        with store.checkout(manifest.digest):
            pass

    return _timed(lease)


def _timed(step: Callable[[], object]) -> float:
    begun = time.perf_counter()
    step()
    return time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", type=Path, nargs="?", help="without one: the starter's source")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--max-ratio", type=float, default=1.3)
    parser.add_argument("--work", type=Path, help="a folder in the file system to measure")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=chosen.work) as work:
        figures = measure_ingest(chosen.source or starter.gguf(), Path(work), rounds=chosen.rounds)
    print(json.dumps(asdict(figures), indent=2))
    if figures.ratio > chosen.max_ratio:
        sys.exit(
            f"ingest takes {figures.ratio:.2f} x of cp + sha256sum; {chosen.max_ratio} allowed"
        )


if __name__ == "__main__":
    main()
