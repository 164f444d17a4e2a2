"""What is written down of a child, so that it is found again after a crash of ours."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from flexinfer.errors import InvalidInput
from flexinfer.files import replace_file
from flexinfer.process import procfs
from flexinfer.process.child import Child

_MAX_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A process, named so that another can never be taken for it: number, start time, boot.

    mark: what its descendants bear (`Child.mark`), so that they are found when it is gone itself. log_start: how
    much of its log was of earlier starts when this was written; that much of its own is passed over where the log
    was emptied since and has grown beyond it. extra: the owner's own, for example the port.
    """

    name: str
    pid: int
    start_ticks: int
    boot_id: str
    log_path: Path | None = None
    mark: str = ""
    log_start: int = 0
    extra: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, child: Child, extra: Mapping[str, str] | None = None) -> Record:
        """Return the record of *child*."""
        return cls(
            name=child.spec.name, pid=child.pid, start_ticks=child.started_at,
            boot_id=procfs.boot_id(), log_path=child.spec.log_path, mark=child.mark,
            log_start=child.log_start, extra=dict(extra or {}),
        )  # fmt: skip

    def to_json(self) -> str:
        """Return it as one line of JSON."""
        fields = {
            "name": self.name, "pid": self.pid, "start_ticks": self.start_ticks,
            "boot_id": self.boot_id, "log_path": str(self.log_path) if self.log_path else None,
            "mark": self.mark, "log_start": self.log_start, "extra": dict(self.extra),
        }  # fmt: skip
        return json.dumps(fields, sort_keys=True, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Record:
        """Return what `to_json` wrote.

        Raises:
            InvalidInput: code `process_record`; it is something else.
        """
        try:
            fields = json.loads(text)
            log_path = fields["log_path"]
            record = cls(
                name=_text(fields["name"]), pid=_number(fields["pid"]),
                start_ticks=_number(fields["start_ticks"]), boot_id=_text(fields["boot_id"]),
                log_path=None if log_path is None else Path(_text(log_path)),
                mark=_text(fields.get("mark", "")),
                log_start=max(0, _number(fields.get("log_start", 0))),
                extra={_text(key): _text(value) for key, value in fields["extra"].items()},
            )  # fmt: skip
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise InvalidInput(
                f"process record {text[:200]!r}: {error!r}", code="process_record"
            ) from error
        if record.pid < 2:  # 0 and 1 would mean "our own group" and "everything"
            raise InvalidInput(
                f"process record: pid {record.pid} is no child's", code="process_record"
            )
        return record

    def write(self, path: Path) -> None:
        """Put it into the file *path*, wholly or not at all.

        Raises:
            ResourceExhausted: code `disk_full` or `disk_error`.
        """
        # It means nothing after a restart of the machine.
        replace_file(path, (self.to_json() + "\n").encode(), durable=False)

    @classmethod
    def read(cls, path: Path) -> Record | None:
        """Return the record in the file *path*; None if there is none.

        Raises:
            InvalidInput: code `process_record`; the message names the file.
        """
        try:
            with path.open(encoding="utf-8", errors="replace") as file:
                return cls.from_json(file.read(_MAX_BYTES))
        except FileNotFoundError:
            return None
        except InvalidInput as error:
            raise InvalidInput(f"{path}: {error.message}", code=error.code) from error


def own_record(name: str, *, extra: Mapping[str, str]) -> Record:
    """Return the record of this process itself."""
    pid = os.getpid()
    own = procfs.stat(pid)
    return Record(
        name=name, pid=pid, start_ticks=own.started_at if own else 0,
        boot_id=procfs.boot_id(), extra=dict(extra),
    )  # fmt: skip


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"expected text, found {value!r}")
    return value


def _number(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"expected a whole number, found {value!r}")
    return value
