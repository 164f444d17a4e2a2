"""Where weights come from: a source pins what is asked for, lists its files, and streams their bytes.

`resolve` moves no file; `open` streams one from any offset. What a source says of a file (size, digest) is
checked by whoever stores the bytes, never by the source itself.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from flexinfer.plugins import Registry
from flexinfer.resources.source import SourceUri
from flexinfer.settings import Settings

EPOCH = "1970-01-01T00:00:00Z"
Moved = Callable[[int, int | None], None]
"""Told how many bytes of a file have been moved, and how many it has."""


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


def resolved_from(tree: Mapping[str, Any]) -> Resolved:
    """Return what `to_tree` wrote.

    Raises:
        TypeError, KeyError: it is not that.
    """
    rest = {name: value for name, value in tree.items() if name != "files"}
    return Resolved(files=tuple(SourceFile(**one) for one in tree["files"]), **rest)


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceTools:
    """What a source may use. `scratch` is a folder for what it must keep between tries."""

    settings: Settings
    environ: Mapping[str, str]
    scratch: Path
    chance: random.Random

    def allowed_urls(self) -> list[str]:
        """Return what the user allows beside the sources' own hosts (FLEXINFER_BUILD__ALLOWED_HOSTS)."""
        return [h if "://" in h else f"https://{h}" for h in self.settings.build.allowed_hosts]


class Source(ABC):
    """One kind of source. Made for one build; `close` it."""

    scheme: ClassVar[str]

    def __init__(self, tools: SourceTools) -> None:
        self.tools = tools

    @abstractmethod
    async def resolve(self, uri: SourceUri) -> Resolved:
        """Return what *uri* is today, without moving a file.

        Raises:
            NotFound: code `source_not_found`. Unauthorized: code `gated`. TransferError, Unavailable: try later.
        """

    @abstractmethod
    def open(
        self, resolved: Resolved, file: SourceFile, *, offset: int, moved: Moved
    ) -> AsyncGenerator[bytes, None]:
        """Stream *file* from *offset* on. *moved* hears of bytes that are fetched before any can be yielded.

        Raises:
            NotFound: code `source_not_found`. SourceChanged: start again from 0. TransferError.
        """

    def local_path(self, resolved: Resolved, file: SourceFile) -> Path | None:
        """Return where *file* lies on this machine, if it does: it is then read there."""
        return None

    async def close(self) -> None:  # noqa: B027  # most have nothing to do
        """Let go of connections; what `scratch` holds stays for the next try."""

    async def finish(self, resolved: Resolved) -> None:  # noqa: B027  # most have nothing to do
        """Everything is in the store: drop what `scratch` holds for *resolved*."""


SOURCES: Registry[Source] = Registry("flexinfer.sources", Source)
