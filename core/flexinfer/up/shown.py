"""The logs in a home, read from near their ends and followed; how they look is decided in `reading`."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

from flexinfer.errors import NotFound
from flexinfer.places import Home
from flexinfer.process import LogReader
from flexinfer.process.logfile import aside
from flexinfer.spelling import nearest
from flexinfer.up.reading import Said, engine_logs, merged, models_with_logs, read_line, timed

_LAST_BYTES = 256 * 1024
# The newest: a home that was used for years has no more open at once than this.
_MAX_LOGS = 100
_LOOK_AGAIN_S = 1.0


class ShownLogs:
    """What a person asked to see: one log, a Model's engines, or all."""

    def __init__(self, home: Home, name: str, *, is_routine_shown: bool) -> None:
        """Look what is there.

        Raises:
            NotFound: code `log_not_found`; no log and no Model's engine is called *name*.
        """
        self._home = home
        self._name = name
        self._is_routine_shown = is_routine_shown
        self._readers: dict[str, LogReader] = {}
        self._looked_s = 0.0
        self._look(from_start=False)

    def last(self, lines: int) -> list[Said]:
        """Return the last *lines*. What follows them is `new`."""
        logs = []
        for log, reader in self._readers.items():
            before = aside(reader.path)
            earlier = () if reader.is_cut else LogReader(before, last_bytes=_LAST_BYTES).read()
            found = [read_line(log, line) for line in (*earlier, *reader.read())]
            kept = (line for line in found if self._is_shown(line))
            logs.append(timed(kept, before=_last_written(reader.path)))
        return merged(logs, last=lines)

    def new(self) -> Iterator[Said]:
        """Yield what was written since the last call, in the order of time; new logs are found within a second."""
        if time.monotonic() - self._looked_s > _LOOK_AGAIN_S:
            self._look(from_start=True)
        logs = []
        for log, reader in self._readers.items():
            found = (read_line(log, line) for line in reader.read())
            kept = [line for line in found if self._is_shown(line)]
            if kept:
                logs.append(timed(kept, before=_last_written(reader.path)))
        yield from merged(logs, last=sum(map(len, logs)))

    def _is_shown(self, line: Said) -> bool:
        return self._is_routine_shown or not line.is_routine

    def _look(self, *, from_start: bool) -> None:
        self._looked_s = time.monotonic()
        for log, path in self._wanted(_log_files(self._home.logs)).items():
            if log not in self._readers:
                self._readers[log] = LogReader(path, last_bytes=0 if from_start else _LAST_BYTES)

    def _wanted(self, files: Mapping[str, Path]) -> Mapping[str, Path]:
        if not self._name:
            return files
        if self._name in files:
            return {self._name: files[self._name]}
        if engines := engine_logs(self._name, files) or (
            (f"engine-{self._name}",) if f"engine-{self._name}" in files else ()
        ):
            return {log: files[log] for log in engines}
        if self._readers:
            return {}  # pruned meanwhile
        if self._home.model_file(self._name).is_file():
            raise NotFound(
                f"Model {self._name!r} has not run yet: no log; "
                f"see `flexinfer model describe {self._name}`, and `flexinfer logs operator-build` for its build",
                code="log_not_found",
            )
        known = (
            *(log for log in files if not log.startswith("engine-")),
            *models_with_logs(files),
        )
        raise NotFound(
            f"no log and no Model with an engine's log is called {self._name!r} in {self._home.logs} "
            f"(there: {', '.join(known) or 'none yet'}){nearest(self._name, known)}",
            code="log_not_found",
        )


def _log_files(folder: Path) -> dict[str, Path]:
    found = []
    for file in folder.rglob("*.log") if folder.is_dir() else ():
        try:
            found.append((file.stat().st_mtime, file))
        except OSError:
            continue  # pruned meanwhile
    newest = sorted(file for _, file in sorted(found, reverse=True)[:_MAX_LOGS])
    return {str(file.relative_to(folder)).removesuffix(".log"): file for file in newest}


def _last_written(path: Path) -> str:
    try:
        written_s = path.stat().st_mtime
    except OSError:
        return ""
    return datetime.fromtimestamp(written_s, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
