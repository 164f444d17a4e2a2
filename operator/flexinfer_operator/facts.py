"""What plug-ins say of a Model, asked with care: one that breaks its contract fails one Model only."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from flexinfer.engine import Engine, EngineArtifact, Resources
from flexinfer.errors import (
    FlexInferError,
    InvalidInput,
    NotFound,
    PluginNotInstalled,
    UnknownPlugin,
)
from flexinfer.fleet import Failure
from flexinfer.log import get_logger
from flexinfer.plugins import names
from flexinfer.resources.document import Document
from flexinfer.resources.located import Problem, find
from flexinfer.resources.model import Model, ModelSpec
from flexinfer.spelling import nearest
from flexinfer_operator.plan.view import EngineFacts

log = get_logger(__name__)

STRATEGY_GROUP = "flexinfer.strategies"
ROUTING_ANNOTATION = "flexinfer.ai/routing"
_ROUTING_FIELD = "spec.routing.strategy"

EngineLookup = Callable[[str], type[Engine]]
"""Name of a backend → its class; raises as `Registry.get`."""

Offered = Callable[[str], EngineArtifact | None]
"""A source → its artifact; None: not built yet. Raises NotFound or InvalidInput for a source that means nothing."""

# For a launch that is only asked whether it could be.
_ANY = Resources(threads=1, memory_bytes=1 << 30)


def engine_facts(
    lookup: EngineLookup, spec: ModelSpec, artifact: EngineArtifact | None
) -> EngineFacts:
    """Return what the plug-in of `spec.backend` says. *artifact* None: it is not here yet."""
    try:
        engine = lookup(spec.backend)()
        problems = engine.problems(spec.config)
        if problems:
            sentences = tuple(f"spec.config.{one.key}: {one.message}" for one in problems)
            return EngineFacts(formats=engine.formats, problems=sentences)
        limits = engine.limits(spec.config, artifact)
        assumed = artifact or _assumed(engine)
        endpoints = tuple(sorted(one.value for one in engine.endpoints(spec.config, assumed)))
        is_loadable = artifact is not None and artifact.format in engine.formats
        fault = _launch_fault(engine, spec, artifact) if artifact and is_loadable else None
        return EngineFacts(limits=limits, endpoints=endpoints, formats=engine.formats, fault=fault)
    except FlexInferError as error:
        return EngineFacts(fault=Failure(code=error.code, message=error.message))
    except Exception as error:
        log.error("engine_plugin_failed", backend=spec.backend, exc_info=error)
        message = f"backend {spec.backend!r}: its plug-in failed: {type(error).__name__}: {error}"
        return EngineFacts(fault=Failure(code="plugin_error", message=message))


def edit_problems(
    lookup: EngineLookup, document: Document[Model], offered: Offered
) -> tuple[Problem, ...]:
    """Return why *document* may not take the place of a Model that is there, each reason at its place: a source, a
    backend, a strategy or a setting that means nothing here. What cannot be said now refuses nothing: the Model's
    conditions say so."""
    spec = document.value.spec
    problems = _strategy_edit(document)
    artifact = None
    try:
        artifact = offered(spec.source)
    except (NotFound, InvalidInput) as error:
        problems.append(document.problem(("spec", "source"), f"source: {error.message}"))
    except (FlexInferError, OSError) as error:
        log.warning("edit_source_unread", source=spec.source, error=str(error))
    return (*problems, *_engine_edit(lookup, document, artifact))


def _strategy_edit(document: Document[Model]) -> list[Problem]:
    where = ("metadata", "annotations", ROUTING_ANNOTATION)
    if not document.value.metadata.annotations.get(ROUTING_ANNOTATION):
        where = ("spec", "routing", "strategy")
    return [document.problem(where, one) for one in strategy_problems(document.value)]


def _engine_edit(
    lookup: EngineLookup, document: Document[Model], artifact: EngineArtifact | None
) -> list[Problem]:
    spec, root = document.value.spec, document.root
    backend = ("spec", "backend")
    try:
        engine = lookup(spec.backend)()
        found = engine.problems(spec.config)
    except (UnknownPlugin, PluginNotInstalled) as error:
        return [document.problem(backend, f"backend: {error.message}")]
    except Exception:  # engine_facts asks it too, and logs what it did
        return []
    if found:
        marks = [find(root, ("spec", "config", one.key))[0] for one in found]
        return [
            Problem(mark, f"config.{one.key}: {one.message}")
            for mark, one in zip(marks, found, strict=True)
        ]
    if artifact is None:
        return []
    if artifact.format not in engine.formats:
        loads = ", ".join(sorted(engine.formats))
        message = f"backend: {spec.backend} loads {loads}; the source is {artifact.format}"
        return [document.problem(backend, message)]
    fault = engine_facts(lookup, spec, artifact).fault
    if fault is None or fault.code == "plugin_error":
        return []
    return [document.problem(("spec", "config"), f"config: {fault.message}")]


def strategy_problems(model: Model) -> tuple[str, ...]:
    """Return what is wrong with the routing strategy that *model* asks for, in one sentence, or nothing."""
    name, known = model.strategy, _strategies()
    if name in known:
        return ()
    is_annotated = bool(model.metadata.annotations.get(ROUTING_ANNOTATION))
    where = f"metadata.annotations.{ROUTING_ANNOTATION}" if is_annotated else _ROUTING_FIELD
    listed = ", ".join(known) or "none"
    return (f"{where}: no strategy {name!r} (known: {listed}){nearest(name, known)}",)


@cache
def _strategies() -> tuple[str, ...]:
    """Return the names; what is installed does not change while a process runs, and finding it takes long."""
    return names(STRATEGY_GROUP)


def _launch_fault(engine: Engine, spec: ModelSpec, artifact: EngineArtifact) -> Failure | None:
    try:
        engine.launch(spec.config, artifact, _ANY)
    except FlexInferError as error:
        return Failure(code=error.code, message=error.message)
    return None


def _assumed(engine: Engine) -> EngineArtifact:
    """Return an artifact that offers all that the engine could: the true one is not known yet."""
    return EngineArtifact(
        digest="",
        format=min(engine.formats, default=""),
        quantization="",
        architecture="",
        files=(),
        size_bytes=0,
        context_length=0,
        has_chat_template=True,
    )
