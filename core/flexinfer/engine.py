"""What an engine is to us: pure answers about how to start it, know it is ready, and talk to it.

An engine plug-in is one class. It starts nothing and opens nothing: the operator binds what `launch` returns to
a process or to a pod, the router sends what `path` and `headers` say. The engine's own program runs in its own
tool environment or image and is never imported by us.

Placeholders in `Launch.argv` and `Launch.environment`, bound by whoever starts it:

    {python}         the interpreter of the tool environment
    {program}        the path of the plug-in's own starter script (`Launch.program`)
    {artifact}       the folder with the artifact's files, read only
    {model}          the name that answers carry for the model
    {port:NAME}      the port chosen for NAME in `Launch.ports`
    {secret:NAME}    the path of a file that holds the secret NAME in `Launch.secrets`; never the secret itself
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, ClassVar

from flexinfer.plugins import Registry


class Endpoint(StrEnum):
    """What a client may call, by its path behind `/v1/`."""

    CHAT = "chat/completions"
    COMPLETIONS = "completions"
    EMBEDDINGS = "embeddings"


class Substage(StrEnum):
    """What a loading replica is at. Any change is progress."""

    FETCHING = "Fetching"
    VERIFYING = "Verifying"
    INITIALIZING = "Initializing"
    LOADING_WEIGHTS = "LoadingWeights"
    COMPILING = "Compiling"
    HEALTH_CHECK_PENDING = "HealthCheckPending"


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineArtifact:
    """What an engine must know of the artifact that it is to serve."""

    digest: str
    format: str
    quantization: str
    architecture: str
    files: tuple[str, ...]
    """Paths inside the checkout."""
    size_bytes: int
    context_length: int
    """What the model was trained for, in tokens; 0 where the artifact does not say."""
    has_chat_template: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """What the machine lets this replica use."""

    threads: int
    memory_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one replica takes, from the Model's `config`."""

    context_tokens: int
    """What one request may use: prompt and answer together."""
    slots: int
    """Requests that one replica computes at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A key of `spec.config` that the engine does not accept."""

    key: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """Ready means: GET *path* on *port* answers 200."""

    path: str
    port: str = "http"
    timeout_s: float = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """How to start one replica, with placeholders (see the module)."""

    tool: str
    """The tool environment, and the image's name on a cluster."""
    program: Path
    argv: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    ports: tuple[str, ...] = ("http",)
    secrets: tuple[str, ...] = ("engine-key",)
    readiness: Probe


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineError:
    """An engine's refusal in the terms of OpenAI's API."""

    status: int
    code: str
    message: str
    type: str = "invalid_request_error"
    param: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """Why an engine ended, from its last words."""

    code: str
    message: str
    remedy: str
    retryable: bool


class Engine(ABC):
    """One kind of engine. Stateless; every method is pure."""

    name: ClassVar[str]
    tool: ClassVar[str]
    """The tool environment that it runs in."""
    formats: ClassVar[frozenset[str]]
    """Artifact formats that it loads: `gguf`, `safetensors`."""
    probe_path: ClassVar[str] = "/health"
    """Where a running replica is asked whether it answers; the path of `Launch.readiness`."""

    @abstractmethod
    def problems(self, config: Mapping[str, Any]) -> tuple[Problem, ...]:
        """Return what is wrong with `spec.config`; an unknown key names the nearest known one."""

    @abstractmethod
    def limits(self, config: Mapping[str, Any], artifact: EngineArtifact | None = None) -> Limits:
        """Return what one replica takes. Call it only with a config that has no problems.

        Without *artifact*, a default may be larger than what its model was trained for.
        """

    @abstractmethod
    def endpoints(self, config: Mapping[str, Any], artifact: EngineArtifact) -> frozenset[Endpoint]:
        """Return what clients may call."""

    @abstractmethod
    def launch(
        self, config: Mapping[str, Any], artifact: EngineArtifact, resources: Resources
    ) -> Launch:
        """Return how to start a replica.

        Raises:
            InvalidInput: code `backend_unsupported`: this engine cannot load that format.
        """

    @abstractmethod
    def path(self, endpoint: Endpoint) -> str:
        """Return the path to call on the engine."""

    @abstractmethod
    def headers(self, key: str) -> Mapping[str, str]:
        """Return the headers that prove the router to the engine."""

    @abstractmethod
    def error(self, status: int, body: bytes, endpoint: Endpoint | None = None) -> EngineError:
        """Return what a client is told for an engine's answer with *status* ≥ 400 to a call of *endpoint*."""

    @abstractmethod
    def substage(self, line: str) -> Substage | None:
        """Return what a line of the engine's log says it is at; None if it says nothing."""

    @abstractmethod
    def cause(self, lines: Sequence[str], exit_code: int | None) -> Cause:
        """Return why it ended, from its last lines and exit code (negative: the signal)."""

    @abstractmethod
    def metric_names(self) -> Mapping[str, str]:
        """Return our name for a measurement → the engine's metric: `running`, `waiting`, …

        For whoever scrapes engines: a dashboard, an autoscaler of a cluster. On one machine nobody does; router and
        operator count for themselves what they decide by.
        """


ENGINES: Registry[Engine] = Registry("flexinfer.engines", Engine)
