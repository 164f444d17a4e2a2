"""Where weights come from: a source pins what is asked for, lists its files, and streams their bytes.

`resolve` moves no file; `open` streams one from any offset. What a source says of a file (size, digest) is
checked by whoever stores the bytes, never by the source itself.
"""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from flexinfer.plugins import Registry
from flexinfer.resources.source import SourceUri
from flexinfer.settings import Settings
from flexinfer_pipelines.resolved import EPOCH as EPOCH
from flexinfer_pipelines.resolved import Resolved as Resolved
from flexinfer_pipelines.resolved import SourceFile as SourceFile
from flexinfer_pipelines.resolved import resolved_from as resolved_from

Moved = Callable[[int, int | None], None]
"""Told how many bytes of a file have been moved, and how many it has."""


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
