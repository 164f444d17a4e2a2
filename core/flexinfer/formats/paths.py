"""Which relative paths may name a file of a model: pure text rules, nothing is opened.

A path is refused, never cleaned: what was refused cannot come out as another file.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

from flexinfer.errors import InvalidInput

MAX_PATH_BYTES = 1024
MAX_SEGMENT_BYTES = 255  # what common file systems hold in one directory entry
MAX_DEPTH = 16
# Names that open a device on some systems, whatever extension follows.
_DEVICES = frozenset(
    {"con", "prn", "aux", "nul"} | {f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10)}
)
# Control, invisible format, surrogate, line and paragraph separator.
_REFUSED_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})


def check_path(text: str) -> str:
    """Return *text* unchanged when it is a safe relative POSIX path.

    Raises:
        InvalidInput: `path_unsafe`, naming the path and the rule that it breaks.
    """
    fault = _fault(text)
    if fault is not None:
        raise InvalidInput(f"path {_shown(text)}: {fault}", code="path_unsafe")
    return text


def check_collisions(paths: Iterable[str]) -> None:
    """Refuse two paths that one file system could take for the same, or a file that is a folder.

    Case is folded and Unicode normalized (NFC) before paths are compared.

    Raises:
        InvalidInput: `path_collision`, naming both paths.
    """
    files: dict[str, str] = {}
    folders: dict[str, str] = {}
    for path in paths:
        key = _folded(path)
        if key in files:
            _collide(files[key], path)
        if key in folders:
            _collide(folders[key], path)
        files[key] = path
        parts = key.split("/")
        for depth in range(1, len(parts)):
            folder = "/".join(parts[:depth])
            if folder in files:
                _collide(files[folder], path)
            # The same folder spelled in two ways is two folders here and one folder elsewhere.
            spelled = "/".join(path.split("/")[:depth])
            if _prefix(folders.setdefault(folder, path), depth) != spelled:
                _collide(folders[folder], path)


def _fault(text: str) -> str | None:
    if not text:
        return "is empty"
    encoded_size = len(text.encode("utf-8", "surrogatepass"))
    if encoded_size > MAX_PATH_BYTES:
        return f"expected at most {MAX_PATH_BYTES} bytes, got {encoded_size}"
    for character in text:
        if unicodedata.category(character) in _REFUSED_CATEGORIES:
            return f"has the control or invisible character U+{ord(character):04X}"
    if "\\" in text:
        return "has a backslash; expected / between segments"
    if text.startswith("/"):
        return "is absolute; expected a path inside the model directory"
    if len(text) > 1 and text[1] == ":" and text[0].isascii() and text[0].isalpha():
        return "names a drive; expected a path inside the model directory"
    if not unicodedata.is_normalized("NFC", text):
        return "is not in Unicode normal form C"
    segments = text.split("/")
    if len(segments) > MAX_DEPTH:
        return f"expected at most {MAX_DEPTH} segments, got {len(segments)}"
    for segment in segments:
        fault = _segment_fault(segment)
        if fault is not None:
            return fault
    return None


def _segment_fault(segment: str) -> str | None:
    if segment == "":
        return "has an empty segment"
    if segment == "..":
        return "leaves the model directory"
    if segment == ".":
        return "has the segment '.'"
    if segment[-1] in ". ":
        return f"segment {segment!r} ends in a dot or a space, which some file systems drop"
    if segment[0] == "-":
        return f"segment {segment!r} begins with '-' and would read as an option"
    if segment.split(".", 1)[0].rstrip().lower() in _DEVICES:
        return f"segment {segment!r} is the name of a device"
    size = len(segment.encode())
    if size > MAX_SEGMENT_BYTES:
        return f"expected segments of at most {MAX_SEGMENT_BYTES} bytes, got one of {size}"
    return None


def _folded(path: str) -> str:
    # Folding can undo the normal form, so normalize on both sides of it.
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())


def _prefix(path: str, depth: int) -> str:
    return "/".join(path.split("/")[:depth])


def _collide(first: str, second: str) -> None:
    raise InvalidInput(
        f"paths {_shown(first)} and {_shown(second)} would be one file on some file systems",
        code="path_collision",
    )


def _shown(text: str) -> str:
    return ascii(text if len(text) <= 120 else text[:117] + "...")
