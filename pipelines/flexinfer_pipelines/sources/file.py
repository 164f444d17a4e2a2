"""A file on this machine."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import ClassVar

from flexinfer.errors import InvalidInput, NotFound
from flexinfer.resources.source import SourceUri
from flexinfer_pipelines.sources import Moved, Resolved, Source, SourceFile

_CHUNK = 1 << 20


class FileSource(Source):
    """`file:///path`: read where it lies. What it is, its hash says; so it has no identity until it is fetched."""

    scheme: ClassVar[str] = "file"

    async def resolve(self, uri: SourceUri) -> Resolved:
        path = Path(uri.path)
        try:
            found = os.stat(path)
        except OSError as error:
            raise NotFound(
                f"{path}: {error.strerror or error}; expected a file", code="source_not_found"
            ) from error
        if not stat.S_ISREG(found.st_mode):
            raise InvalidInput(f"{path}: expected a regular file", code="source_invalid")
        limit = self.tools.settings.build.max_file_bytes
        if found.st_size > limit:
            raise InvalidInput(
                f"{path}: {found.st_size} bytes, at most {limit} are taken (FLEXINFER_BUILD__MAX_FILE_BYTES)",
                code="source_too_large",
            )
        return Resolved(
            uri=str(uri),
            identity=str(uri),
            files=(SourceFile(path=path.name, size=found.st_size),),
        )

    async def open(
        self, resolved: Resolved, file: SourceFile, *, offset: int, moved: Moved
    ) -> AsyncGenerator[bytes, None]:
        path = self.local_path(resolved, file)
        try:
            stream = await asyncio.to_thread(path.open, "rb", 0)
        except OSError as error:
            raise NotFound(f"{path}: {error.strerror}", code="source_not_found") from error
        with stream:
            stream.seek(offset)
            while chunk := await asyncio.to_thread(stream.read, _CHUNK):
                yield chunk

    def local_path(self, resolved: Resolved, file: SourceFile) -> Path:
        return Path(resolved.identity.removeprefix("file://"))
