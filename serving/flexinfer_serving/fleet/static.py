"""A fleet that is written down: a YAML file of Models and the addresses of their replicas.

    models:
      - name: smollm2-135m-instruct
        aliases: [smol]
        backend: llamacpp
        endpoints: [chat/completions, completions, embeddings]     # this is the default
        contextTokens: 4096
        slots: 4
        replicas:
          - url: http://127.0.0.1:9001
            keyFile: engine.key                                    # beside this file, or absolute

The file is read again when it changes; a bad edit is logged and the old fleet stays. There is no sink: nothing can
be woken, so a Model without a replica that answers is refused at once.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field

from flexinfer.engine import ENGINES, Endpoint
from flexinfer.errors import FlexInferError, InvalidInput
from flexinfer.fleet import FleetModel, FleetReplica, FleetSnapshot
from flexinfer.log import get_logger
from flexinfer.resources.document import parse_document
from flexinfer.resources.model import Name, Part
from flexinfer.spelling import nearest
from flexinfer_serving.fleet import FleetListener

log = get_logger(__name__)

_MAX_FILE_BYTES = 1024 * 1024
_MAX_KEY_BYTES = 4096
_KEY = re.compile(r"[!-~]+")


def _url(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username:
        raise ValueError("expected http://host:port or https://host:port, without a user")
    if parts.query or parts.fragment:
        raise ValueError("expected no query and no fragment")
    return value.rstrip("/")


def _backend(value: str) -> str:
    known = ENGINES.names()
    if value not in known:
        raise ValueError(
            f"no engine named {value!r} (known: {', '.join(known)})" + nearest(value, known)
        )
    return value


class StaticReplica(Part):
    url: Annotated[str, AfterValidator(_url)]
    key_file: str = ""


class StaticModel(Part):
    name: Name
    aliases: tuple[str, ...] = Field(default=(), max_length=64)
    backend: Annotated[str, AfterValidator(_backend)] = "llamacpp"
    endpoints: tuple[Endpoint, ...] = tuple(Endpoint)
    strategy: str = "least-loaded"
    context_tokens: int = Field(default=4096, ge=1)
    slots: int = Field(default=4, ge=1, le=4096)
    replicas: tuple[StaticReplica, ...] = Field(default=(), max_length=256)


class StaticFleetFile(Part):
    models: tuple[StaticModel, ...] = Field(max_length=1024)


class StaticFleet:
    """The fleet in *file*, looked at every *rescan_s*."""

    def __init__(self, file: Path, *, rescan_s: float = 1.0) -> None:
        self._file = file
        self._rescan_s = rescan_s
        self._generation = 0

    def read(self) -> FleetSnapshot:
        """Return the fleet as the file says now.

        Raises:
            InvalidInput: codes `fleet_file_unreadable`, `document_invalid` (with file:line:column), `name_taken`,
                `key_file_unreadable`.
        """
        try:
            text = _read(self._file, _MAX_FILE_BYTES)
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidInput(f"{self._file}: {error}", code="fleet_file_unreadable") from error
        document = parse_document(StaticFleetFile, text, str(self._file))
        self._generation += 1
        models = tuple(_model(model, self._file.parent) for model in document.models)
        names = [name for model in models for name in (model.name, *model.aliases)]
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise InvalidInput(
                f"{self._file}: named twice: {', '.join(sorted(twice))}", code="name_taken"
            )
        return FleetSnapshot(generation=self._generation, models=models)

    async def run(self, listener: FleetListener) -> None:
        stamp: tuple[int, ...] | None = None
        while True:
            new = await asyncio.to_thread(_stamp, self._file)
            if new != stamp:
                stamp = new
                try:
                    listener.applied(await asyncio.to_thread(self.read))
                    listener.connected(True)
                except FlexInferError as error:
                    listener.connected(False)
                    log.error("fleet_file_refused", error=error.message, code=error.code)
            await asyncio.sleep(self._rescan_s)


def _model(model: StaticModel, folder: Path) -> FleetModel:
    return FleetModel(
        name=model.name,
        aliases=model.aliases,
        backend=model.backend,
        endpoints=tuple(str(endpoint) for endpoint in model.endpoints),
        strategy=model.strategy,
        phase="Ready" if model.replicas else "Idle",
        context_tokens=model.context_tokens,
        slots=model.slots,
        cold_start_timeout_s=0.0,
        scales_from_zero=False,
        replicas=tuple(_replica(replica, folder) for replica in model.replicas),
    )


def _replica(replica: StaticReplica, folder: Path) -> FleetReplica:
    key = ""
    if replica.key_file:
        path = folder / replica.key_file
        try:
            key = _read(path, _MAX_KEY_BYTES).strip()
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidInput(f"keyFile {path}: {error}", code="key_file_unreadable") from error
        if not _KEY.fullmatch(key):
            raise InvalidInput(
                f"keyFile {path}: expected one line of printable ASCII", code="key_file_unreadable"
            )
    digest = hashlib.sha256(replica.url.encode()).hexdigest()
    return FleetReplica(id=f"r-{digest[:10]}", url=replica.url, phase="ready", key=key)


def _read(path: Path, limit: int) -> str:
    with path.open("rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise InvalidInput(f"{path}: expected at most {limit} bytes", code="fleet_file_unreadable")
    return data.decode("utf-8")


def _stamp(file: Path) -> tuple[int, ...]:
    try:
        found = os.stat(file)
    except OSError:
        return ()
    return (found.st_ino, found.st_size, found.st_mtime_ns)
