"""What a build has done so far, so that the next try goes on there. One small JSON file, replaced atomically."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flexinfer.files import replace_json

_VERSION = 1
_MAX_BYTES = 16 * 1024 * 1024


class Journal:
    """The record of one build key in its work folder. Written by the holder of the build's lock only."""

    def __init__(self, folder: Path, key: str) -> None:
        """Open the journal in *folder*; one that is unreadable, or of another key, is as good as none."""
        self.folder = folder
        self._key = key
        self._path = folder / "journal.json"
        self._steps: dict[str, Any] = {}
        folder.mkdir(parents=True, exist_ok=True)
        try:
            if self._path.stat().st_size <= _MAX_BYTES:
                tree = json.loads(self._path.read_text("utf-8"))
                if tree.get("version") == _VERSION and tree.get("key") == key:
                    self._steps = dict(tree["steps"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            self._steps = {}

    def read(self, step: str) -> Mapping[str, Any] | None:
        """Return what *step* left; None: it was not done."""
        found = self._steps.get(step)
        return found if isinstance(found, dict) else None

    def write(self, step: str, result: Mapping[str, Any]) -> None:
        """Remember, durably, that *step* was done, and with what result.

        Raises:
            ResourceExhausted: code `disk_full` or `disk_error`.
        """
        self._steps.pop(step, None)
        self._steps[step] = dict(result)
        replace_json(self._path, {"version": _VERSION, "key": self._key, "steps": self._steps})

    def forget(self, step: str) -> None:
        """Let *step* be done again. Written with the next `write`."""
        self._steps.pop(step, None)

    def remove(self) -> None:
        """The build is published: drop the work folder."""
        shutil.rmtree(self.folder, ignore_errors=True)
