"""The Models that a user wrote: `models/*.yaml`, and what became of each file's newest edit.

An edit that is no Model, or whose source, backend, strategy or setting means nothing here, changes nothing: the
file's last good state holds, and the edit's fault is shown. A new file of which only that is wrong is a Model, whose
condition says why.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from flexinfer.errors import InvalidInput
from flexinfer.log import get_logger
from flexinfer.places import is_model_file
from flexinfer.resources.document import Document, DocumentInvalid, parse_located
from flexinfer.resources.located import Problem
from flexinfer.resources.model import Model

log = get_logger(__name__)

MAX_FILES = 2000
MAX_FILE_BYTES = 1024 * 1024

Signature = tuple[int, int, int, int]
Check = Callable[[Document[Model]], Sequence[Problem]]
"""What is wrong with a Model beyond its schema, with places."""


Recall = Callable[[str], Model | None]
"""The name of a file → the last good state that an earlier operator knew of it."""

Owner = Callable[[str], str]
"""The name of a Model → the name of the file that defined it for an earlier operator; empty: not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenModel:
    """One Model as its file has it. `fault`: why the newest edit of the file is refused; empty: it is not."""

    model: Model
    file: Path
    fault: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class _File:
    signature: Signature
    model: Model | None = None
    fault: str = ""
    doubt: str = ""
    """A fault that was seen once: an editor may not have finished writing."""
    is_unread: bool = False
    """The disk refused: the file is read again, whether it changes or not."""


class ModelFiles:
    """The folder *folder*, looked at by `scan`. Not for two threads at once. *on_fault* hears each
    refusal once, and whether there is an old state that holds."""

    def __init__(
        self,
        folder: Path,
        *,
        on_fault: Callable[[str, bool], None] | None = None,
        check: Check | None = None,
        recall: Recall | None = None,
        owner: Owner = lambda _: "",
    ) -> None:
        self._folder = folder
        self._check = check
        self._recall = recall
        self._owner = owner
        self._on_fault = on_fault
        self._files: dict[Path, _File] = {}
        self._owners: dict[str, Path] = {}
        """By Model: the file that defined it first."""
        self._doubles: dict[Path, str] = {}
        """Files that define a Model that another file has, and the sentence that says so."""
        self._missed: frozenset[Path] = frozenset()
        """Files that were not there at the last look: an editor may be about to put a new one in the place."""
        self._unseen: dict[Path, str] = {}
        """What the disk would not tell of at the last look, the folder itself or files in it, and why."""

    def scan(self) -> bool:
        """Look again, reading only files that changed; return whether anything is different now.

        A file is gone when two looks in a row did not find it, and the disk let both look.
        """
        found, unseen = _look(self._folder, self._files)
        for path in unseen.keys() - self._unseen.keys():
            log.warning("model_file_unseen", file=str(path), error=unseen[path])
        self._unseen = unseen
        absent: frozenset[Path] = frozenset()
        if self._folder not in unseen:
            absent = frozenset(self._files.keys() - found.keys() - unseen.keys())
        gone = absent & self._missed
        self._missed = absent - gone
        for file in gone:
            del self._files[file]
        changed = bool(gone)
        for file, signature in found.items():
            before = self._files.get(file)
            if before is not None and before.signature == signature:
                if before.is_unread:
                    again = self._read(file, signature, before)
                    if not again.is_unread:
                        self._files[file] = again
                        changed = changed or not again.doubt
                        continue
                if before.doubt:
                    self._files[file] = replace(before, fault=before.doubt, doubt="")
                    self._say(before.doubt, before.model is not None)
                    changed = True
                continue
            now = self._read(file, signature, before)
            self._files[file] = now
            if before is not None and before.fault and not now.doubt:
                log.info("model_file_accepted", file=str(file), human=f"{file}: accepted")
            changed = changed or not now.doubt
        return changed

    def reconsider(self) -> bool:
        """Read refused files again: what they lacked may be there now. Return whether anything is different."""
        changed = False
        for file, before in list(self._files.items()):
            if not before.fault:
                continue
            now = self._read(file, before.signature, before)
            if not now.doubt:
                self._files[file] = now
                log.info("model_file_accepted", file=str(file), human=f"{file}: accepted")
                changed = True
            elif not now.is_unread and now.doubt != before.fault:
                self._files[file] = replace(before, fault=now.doubt)
                self._say(now.doubt, now.model is not None)
                changed = True
        return changed

    def _say(self, fault: str, has_old_state: bool) -> None:
        if self._on_fault is not None:
            self._on_fault(fault, has_old_state)

    def _read(self, file: Path, signature: Signature, before: _File | None) -> _File:
        model = None if before is None else before.model
        if before is None and self._recall is not None:
            model = self._recall(file.name)
        try:
            document = _parse(file)
            is_edit = model is not None and document.value != model
            if is_edit and self._check is not None:
                if problems := self._check(document):
                    raise DocumentInvalid(str(file), problems)
            return _File(signature=signature, model=document.value)
        except InvalidInput as error:
            return _File(signature=signature, model=model, doubt=error.message)
        except OSError as error:
            return _File(
                signature=signature, model=model, doubt=f"{file}: {error.strerror}", is_unread=True
            )

    def written(self) -> dict[str, WrittenModel]:
        """Return the Models by name. Where two files define one, the file's is taken that did so first."""
        found: dict[str, list[Path]] = {}
        for file in sorted(self._files):
            model = self._files[file].model
            if model is not None:
                found.setdefault(model.metadata.name, []).append(file)
        self._owners = {name: self._first_of(name, files) for name, files in found.items()}
        doubles = {
            file: f"{file}: Model {name!r} is defined in {self._owners[name]} already"
            for name, files in found.items()
            for file in files
            if file != self._owners[name]
        }
        for file in doubles.keys() - self._doubles.keys():
            self._say(doubles[file], True)
        self._doubles = doubles
        return {
            name: self._written(file, [one for one in found[name] if one in doubles])
            for name, file in self._owners.items()
        }

    def _first_of(self, name: str, files: Sequence[Path]) -> Path:
        held = self._owners.get(name) or self._folder / self._owner(name)
        return held if held in files else files[0]

    def _written(self, file: Path, doubles: Sequence[Path]) -> WrittenModel:
        known = self._files[file]
        assert known.model is not None
        fault = known.fault or next((self._doubles[one] for one in doubles), "")
        return WrittenModel(model=known.model, file=file, fault=fault)

    @property
    def is_whole(self) -> bool:
        """Whether every file is a Model: what is not among `written` has no file then."""
        return not self._unseen and all(known.model is not None for known in self._files.values())

    def faults(self) -> dict[Path, str]:
        """Return what is wrong with each file that is refused or cannot be looked at, and with the folder."""
        refused = {file: known.fault for file, known in self._files.items() if known.fault}
        return refused | self._unseen


def _look(folder: Path, known: Collection[Path]) -> tuple[dict[Path, Signature], dict[Path, str]]:
    """Return the files of *folder*, and what could not be looked at, which may be *folder*, with the reason.

    Of too many files the *known* ones are looked at first.
    """
    found: dict[Path, Signature] = {}
    unseen: dict[Path, str] = {}
    try:
        names = sorted(
            (name for name in os.listdir(folder) if is_model_file(name)),
            key=lambda name: (folder / name not in known, name),
        )
    except FileNotFoundError:
        return {}, {}
    except OSError as error:
        return {}, {folder: f"{folder}: {error.strerror}"}
    for name in names:
        path = folder / _escaped(name)
        if path.name != name:
            unseen[path] = f"{path}: its name is not UTF-8: rename it"
            continue
        try:
            at = os.stat(path)
        except FileNotFoundError:
            continue  # gone meanwhile
        except OSError as error:
            unseen[path] = f"{path}: {error.strerror}"
            continue
        if not stat.S_ISREG(at.st_mode):
            continue
        if len(found) >= MAX_FILES:
            unseen[path] = f"{path}: not read: {folder} holds more than {MAX_FILES} files"
            break
        found[path] = (at.st_mtime_ns, at.st_ctime_ns, at.st_size, at.st_ino)
    return found, unseen


def _escaped(name: str) -> str:
    """Return a file's name with the bytes that are no UTF-8 written out."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _parse(file: Path) -> Document[Model]:
    with file.open("rb") as stream:
        data = stream.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise InvalidInput(f"{file}: larger than {MAX_FILE_BYTES} bytes", code="document_invalid")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        message = f"{file}: not UTF-8 at byte {error.start}"
        raise InvalidInput(message, code="document_invalid") from error
    return parse_located(Model, text, str(file))
