"""From a Model's source to an artifact in the store: reference → digest → files and evidence, by looking only."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from flexinfer.artifact import PREDICATE_TEST_RESULT, Artifact
from flexinfer.artifact.evidence import TestResult, parse_test_result
from flexinfer.catalog import Catalog, search_paths
from flexinfer.catalog.binding import wanted
from flexinfer.catalog.folder import entry_files
from flexinfer.engine import EngineArtifact
from flexinfer.errors import FlexInferError, InvalidInput, NotFound, Unavailable
from flexinfer.fleet import Failure
from flexinfer.launching import engine_artifact
from flexinfer.log import get_logger
from flexinfer.oci import Digest, parse_digest
from flexinfer.places import Home
from flexinfer.resources.model import Model, ModelStatus
from flexinfer.resources.source import parse_source
from flexinfer.settings import CatalogSection
from flexinfer.store import Store
from flexinfer_operator.facts import EngineLookup, engine_facts, strategy_problems
from flexinfer_operator.plan.view import Bound, EngineFacts

log = get_logger(__name__)

Marks = tuple[tuple[str, int, int], ...]
BlobState = Literal["stamped", "touched", "missing"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Binding:
    """What a Model is bound to, and what its engine says of it."""

    bound: Bound
    engine: EngineFacts
    artifact: EngineArtifact | None = None
    """What the engine is told; None where it is not all here."""


class Binder:
    """The store and the catalog of one home. Blocking; not for two threads at once."""

    def __init__(
        self, home: Home, section: CatalogSection, *, store: Store, engines: EngineLookup
    ) -> None:
        self._home = home
        self._section = section
        self._store = store
        self._engines = engines
        self._catalog: Catalog | None = None
        self._catalog_marks: Marks = ()
        self._store_marks: Marks = ()
        self._blobs: dict[str, dict[Digest, BlobState]] = {}
        """By Model: each blob of its artifact as it was when the Model was bound."""

    def has_news(self, *, with_catalog: bool) -> bool:
        """Return whether names, blobs or (*with_catalog*) entries may have changed since the last call.

        A call that raises leaves its news to the next one.
        """
        store_marks = _marks((self._store.root / "index.json", self._store.root / "quarantine"))
        news = store_marks != self._store_marks or self._has_touched_blobs()
        if with_catalog or self._catalog is None:
            files, _ = entry_files(self._paths())
            marks = _marks(files)
            if self._catalog is None or marks != self._catalog_marks:
                self._catalog = Catalog.load(self._paths())
                self._catalog_marks = marks
                news = True
        self._store_marks = store_marks
        return news

    def bind(self, model: Model, status: ModelStatus | None) -> Binding:
        """Return what *model* is bound to. *status* holds the digest that it was bound to before.

        Raises:
            OSError, FlexInferError: the disk or the store cannot tell now.
        """
        self._blobs.pop(model.metadata.name, None)
        bound, artifact = self._bound(model, status)
        engine = engine_facts(self._engines, model.spec, artifact)
        problems = (*engine.problems, *strategy_problems(model))
        return Binding(bound=bound, engine=replace(engine, problems=problems), artifact=artifact)

    def offered(self, source: str) -> EngineArtifact | None:
        """Return the artifact that *source* stands for; None: it is not built.

        Raises:
            NotFound, InvalidInput: it means nothing here, by the catalog as it is now.
            OSError, FlexInferError: the disk or the store cannot tell now.
        """
        parsed = parse_source(source)
        try:
            reference = wanted(parsed, self._loaded())[2]
        except NotFound:  # the entry may be as new as whoever asks
            self._catalog = Catalog.load(self._paths())
            reference = wanted(parsed, self._catalog)[2]
        try:
            digest = self._digest(reference, None)
            return None if digest is None else engine_artifact(self._store.artifact(digest), digest)
        except (NotFound, InvalidInput) as error:  # of the store, not of the source
            raise Unavailable(
                f"the store cannot be read now: {error.message}", code="store_unreadable"
            ) from error

    def keep_only(self, models: Collection[str]) -> None:
        """Watch the blobs of *models* and of no others."""
        for name in self._blobs.keys() - set(models):
            del self._blobs[name]

    def _loaded(self) -> Catalog:
        if self._catalog is None:
            self._catalog = Catalog.load(self._paths())
        return self._catalog

    def _has_touched_blobs(self) -> bool:
        return any(
            self._blob_state(digest) != state
            for blobs in self._blobs.values()
            for digest, state in blobs.items()
        )

    def _blob_state(self, digest: Digest) -> BlobState:
        if self._store.is_stamped(digest):
            return "stamped"
        with suppress(OSError):  # whoever binds the Model says why
            return "touched" if self._store.has(digest) else "missing"
        return "missing"

    def _paths(self) -> tuple[Path, ...]:
        return search_paths(self._section, self._home, Path.cwd())

    def _bound(
        self, model: Model, status: ModelStatus | None
    ) -> tuple[Bound, EngineArtifact | None]:
        try:
            _, _, reference = wanted(parse_source(model.spec.source), self._loaded())
        except FlexInferError as error:
            return Bound(fault=Failure(code=error.code, message=error.message)), None
        digest = self._digest(reference, status)
        if digest is None:
            return Bound(reference=reference), None
        try:
            return self._looked_at(model.metadata.name, reference, digest)
        except FlexInferError as error:
            if _may_pass(error):
                raise
            return Bound(reference=reference, digest=digest, damage=error.message), None

    def _digest(self, reference: str, status: ModelStatus | None) -> Digest | None:
        """Return what the name points to now; where the name is gone, what it pointed to when it was bound."""
        try:
            return self._store.resolve(reference).digest
        except NotFound:
            pinned = None if status is None else status.artifact
            if pinned is None or pinned.reference != reference:
                return None
            digest = parse_digest(pinned.digest)
            return digest if self._store.has(digest) else None

    def _looked_at(
        self, model: str, reference: str, digest: Digest
    ) -> tuple[Bound, EngineArtifact | None]:
        # Their state is taken first: what changes while the files are looked at is news for the next look.
        manifest = self._store.manifest(digest)
        parts = (digest, manifest.config.digest, *(layer.digest for layer in manifest.layers))
        blobs = {part: self._blob_state(part) for part in parts}
        self._blobs[model] = blobs
        artifact = self._store.artifact(digest)
        known = engine_artifact(artifact, digest)
        missing = [f for f in artifact.files if not self._store.has(f.digest, f.size)]
        damage = "; ".join(self._absence(f.path, f.digest) for f in missing[:3])
        bound = Bound(
            reference=reference,
            digest=digest,
            is_cached=not missing,
            damage=damage,
            doubt=_doubt(artifact, blobs),
            format=known.format,
            quantization=known.quantization,
            size_bytes=known.size_bytes,
            evidence=self._evidence(digest),
        )
        return bound, None if missing else known

    def _absence(self, path: str, digest: Digest) -> str:
        if any(one.expected == digest for one in self._store.quarantined()):
            return f"{path} ({digest}) was not what its digest says and is in quarantine"
        return f"{path} ({digest}) is not in the store"

    def _evidence(self, digest: Digest) -> tuple[TestResult, ...]:
        """Return the test results bound to *digest*. What cannot be believed is as if it were not there."""
        try:
            evidence = self._store.evidence(digest)
        except FlexInferError as error:
            if _may_pass(error):
                raise
            log.warning("evidence_unreadable", digest=digest, code=error.code, error=error.message)
            return ()
        for one in evidence.damaged:
            log.warning("evidence_damaged", digest=digest, code=one.code, error=one.message)
        found: list[TestResult] = []
        for _, said in evidence.statements:
            if said.predicate_type != PREDICATE_TEST_RESULT:
                continue
            try:
                found.append(parse_test_result(said.predicate))
            except FlexInferError as error:
                log.warning("evidence_ignored", digest=digest, error=error.message)
        return tuple(found)


def _may_pass(error: FlexInferError) -> bool:
    """Say whether it tells of the disk or of another process, not of the artifact."""
    return isinstance(error, Unavailable) or error.code == "disk_error"


def _doubt(artifact: Artifact, blobs: Mapping[Digest, BlobState]) -> str:
    """Say which of an artifact's blobs were touched since they were last right; empty: none."""
    paths = {file.digest: file.path for file in artifact.files}
    touched = [digest for digest, state in blobs.items() if state == "touched"]
    if not touched:
        return ""
    named = ", ".join(
        f"{paths.get(digest, 'manifest or config')} ({digest})" for digest in touched[:3]
    )
    more = f" and {len(touched) - 3} more" if len(touched) > 3 else ""
    return f"{named}{more}: touched since the bytes were last found right; the next start hashes it"


def _marks(paths: tuple[Path, ...] | list[Path]) -> Marks:
    found = []
    for path in paths:
        try:
            stat = os.stat(path)
        except OSError:
            continue
        found.append((str(path), stat.st_mtime_ns, stat.st_ino))
    return tuple(found)
