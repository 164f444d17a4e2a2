"""A fleet that is written down: a YAML file of Models and the addresses of their replicas.

    models:
      - name: smollm2-135m-instruct
        aliases: [smol]
        backend: llamacpp
        endpoints: [chat/completions, completions, embeddings]     # this is the default
        contextTokens: 4096                                        # not known where it is left out
        slots: 4
        replicas:
          - url: http://127.0.0.1:9001
            keyFile: engine.key                                    # beside this file, or absolute

The file is read again when it or a key file changes; a bad edit is logged and the old fleet stays. Every replica is
asked again and again whether it answers: one that does is `ready`, one that does not is `loading`, and a Model with a
ready one is `Ready`, else `Pending`. There is no sink: nothing can be woken, so a Model without a replica that answers
is refused at once.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
from dataclasses import replace
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
from flexinfer_serving.probing import Probe

log = get_logger(__name__)

_MAX_FILE_BYTES = 1024 * 1024
_MAX_KEY_BYTES = 4096
# A busy engine may miss one question; what has never answered gets no such credit.
_MISSES = 2
_MAX_ASKED_AT_ONCE = 64
_KEY = re.compile(r"[!-~]+")

Stamps = dict[Path, tuple[int, ...] | None]
"""By file: what differs when its content may; empty: it cannot be looked at; None: nobody has looked yet."""


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
    endpoints: tuple[Endpoint, ...] = Field(default=tuple(Endpoint), min_length=1)
    strategy: str = "least-loaded"
    context_tokens: int | None = Field(default=None, ge=1)
    slots: int = Field(default=4, ge=1, le=4096)
    replicas: tuple[StaticReplica, ...] = Field(min_length=1, max_length=256)


class StaticFleetFile(Part):
    models: tuple[StaticModel, ...] = Field(min_length=1, max_length=1024)


class StaticFleet:
    """The fleet in *file*, and what *probe* says of its replicas, looked at every *rescan_s*."""

    def __init__(self, file: Path, *, probe: Probe, rescan_s: float = 1.0) -> None:
        self._file = file
        self._probe = probe
        self._rescan_s = rescan_s
        self._asking = asyncio.Semaphore(_MAX_ASKED_AT_ONCE)
        self._misses: dict[str, int] = {}
        """Questions in a row without an answer, of each replica that has ever answered."""
        self._key_files: tuple[Path, ...] = ()

    def read(self) -> tuple[FleetModel, ...]:
        """Return the Models as the file says now, before anybody has asked their replicas.

        Raises:
            InvalidInput: codes `fleet_file_unreadable`, `document_invalid` (with file:line:column), `name_taken`,
                `key_file_unreadable`.
        """
        try:
            text = _read(self._file, _MAX_FILE_BYTES)
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidInput(f"{self._file}: {error}", code="fleet_file_unreadable") from error
        document = parse_document(StaticFleetFile, text, str(self._file))
        folder = self._file.parent
        self._key_files = tuple(
            folder / replica.key_file
            for model in document.models
            for replica in model.replicas
            if replica.key_file
        )
        models = tuple(_model(model, folder) for model in document.models)
        names = [name for model in models for name in (model.name, *model.aliases)]
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise InvalidInput(
                f"{self._file}: named twice: {', '.join(sorted(twice))}", code="name_taken"
            )
        return models

    async def run(self, listener: FleetListener) -> None:
        stamps: Stamps | None = None
        written: tuple[FleetModel, ...] = ()
        shown: tuple[FleetModel, ...] = ()
        generation = 0
        while True:
            new = await asyncio.to_thread(self._stamps)
            if new != stamps:
                try:
                    written = await asyncio.to_thread(self.read)
                    listener.connected(True)
                except FlexInferError as error:
                    listener.connected(False)
                    log.error("fleet_file_refused", error=error.message, code=error.code)
                # As they were looked at before the reading; what was not (None) is read once more.
                stamps = {path: new.get(path) for path in (self._file, *self._key_files)}
            seen = await self._seen(written)
            if seen != shown:
                shown = seen
                generation += 1
                listener.applied(FleetSnapshot(generation=generation, models=seen))
            await asyncio.sleep(self._rescan_s)

    def _stamps(self) -> Stamps:
        return {path: _stamp(path) for path in (self._file, *self._key_files)}

    async def _seen(self, models: tuple[FleetModel, ...]) -> tuple[FleetModel, ...]:
        """Return *models* with the phases that their replicas have now."""
        urls = {replica.id for model in models for replica in model.replicas}
        self._misses = {name: count for name, count in self._misses.items() if name in urls}
        found = []
        async with asyncio.TaskGroup() as group:
            for model in models:
                asked = [
                    group.create_task(self._asked(model, replica)) for replica in model.replicas
                ]
                found.append((model, asked))
        return tuple(_with(model, tuple(task.result() for task in asked)) for model, asked in found)

    async def _asked(self, model: FleetModel, replica: FleetReplica) -> FleetReplica:
        async with self._asking:
            is_here = await self._probe(model, replica)
        if is_here:
            self._misses[replica.id] = 0
        elif replica.id in self._misses:
            self._misses[replica.id] += 1
            if self._misses[replica.id] >= _MISSES:
                del self._misses[replica.id]
        return replace(replica, phase="ready" if replica.id in self._misses else "loading")


def _with(model: FleetModel, replicas: tuple[FleetReplica, ...]) -> FleetModel:
    is_ready = any(replica.phase == "ready" for replica in replicas)
    return replace(model, phase="Ready" if is_ready else "Pending", replicas=replicas)


def _model(model: StaticModel, folder: Path) -> FleetModel:
    return FleetModel(
        name=model.name,
        aliases=model.aliases,
        backend=model.backend,
        endpoints=tuple(str(endpoint) for endpoint in model.endpoints),
        strategy=model.strategy,
        phase="Pending",
        context_tokens=model.context_tokens or 0,
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
    return FleetReplica(id=f"r-{digest[:10]}", url=replica.url, phase="loading", key=key)


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
