"""What a source is today: its pinned identity and its files. Values; `sources` makes them, the plan reads them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_DOCUMENT = re.compile(r"(?i)(licen[cs]e|notice)(\.(txt|md))?|readme\.md")
EPOCH = "1970-01-01T00:00:00Z"


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceFile:
    """One file that a source offers. `path` is its name in the artifact."""

    path: str
    size: int | None = None
    digest: str = ""
    """`sha256:…` or `git-sha1:…`, as the source says; empty: it does not say."""
    identity: str = ""
    """What names these bytes for ever: a digest, or `wheel-sha256:…!/member`. Empty: known when fetched."""
    inner: str = ""
    """Where it is inside the source, if that is not `path`."""
    is_optional: bool = False
    """A document that may turn out to be absent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """A source, pinned."""

    uri: str
    """As it was asked for."""
    identity: str
    """The same with everything that may move pinned."""
    files: tuple[SourceFile, ...]
    license: str = ""
    """SPDX identifier that the source states; empty: it states none."""
    revision: str = ""
    created_at: str = EPOCH
    """When upstream made it, RFC 3339; the epoch where upstream does not say."""
    url: str = ""
    """The page for people."""
    is_pinned: bool = False
    """`uri` names the same bytes for ever, so this may be remembered."""
    location: str = field(default="", compare=False)
    """Where the bytes come from today: no part of what they are."""

    def to_tree(self) -> dict[str, Any]:
        """Return this as a JSON tree; `resolved_from` reads it back."""
        names = ("uri", "identity", "license", "revision", "created_at", "url", "is_pinned")
        return {
            **{name: getattr(self, name) for name in names},
            "location": self.location,
            "files": [{k: getattr(f, k) for k in SourceFile.__slots__} for f in self.files],
        }


def is_document(path: str) -> bool:
    """Say whether the file at *path* is one that goes with the weights: a licence, a notice, the model card."""
    return _DOCUMENT.fullmatch(path) is not None


def resolved_from(tree: Mapping[str, Any]) -> Resolved:
    """Return what `to_tree` wrote.

    Raises:
        TypeError, KeyError: it is not that.
    """
    rest = {name: value for name, value in tree.items() if name != "files"}
    return Resolved(files=tuple(SourceFile(**one) for one in tree["files"]), **rest)
