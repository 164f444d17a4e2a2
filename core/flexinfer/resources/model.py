"""The Model resource: what shall be served, under what name, with what policy.

Group `ai.flexinfer`, version `v1alpha2`; names and meanings follow the published contract of FlexInfer's Model.
The same type is a custom resource on a cluster and a YAML file in `models/` on one machine.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel

from flexinfer.errors import InvalidInput
from flexinfer.resources import patterns
from flexinfer.resources.source import parse_source
from flexinfer.units import parse_duration_s, parse_size_bytes


def _duration(value: Any) -> Any:
    return _parsed(parse_duration_s, value) if _is_measure(value) else value


def _size(value: Any) -> Any:
    return _parsed(parse_size_bytes, value) if _is_measure(value) else value


def _source(value: Any) -> Any:
    if isinstance(value, str):
        _parsed(parse_source, value)
    return value


def _is_measure(value: Any) -> bool:
    """Return whether a unit parser is to judge it; what else it is, its type says."""
    return isinstance(value, (str, int, float)) and not isinstance(value, bool)


def _parsed(parse: Callable[[Any], Any], value: Any) -> Any:
    try:
        return parse(value)
    except InvalidInput as error:
        raise ValueError(error.message) from error


Duration = Annotated[
    float,
    BeforeValidator(_duration, json_schema_input_type=str | float),
    Field(json_schema_extra={"examples": ["90s", "5m", "1h30m"]}),
]
"""Seconds; written as `5m`."""
Size = Annotated[
    int,
    BeforeValidator(_size, json_schema_input_type=str | int),
    Field(json_schema_extra={"examples": ["50Gi", "64MiB", "10GB"]}),
]
"""Bytes; written as `50Gi`."""
SourceText = Annotated[str, BeforeValidator(_source, json_schema_input_type=str)]
Name = Annotated[str, Field(pattern=patterns.NAME, max_length=patterns.NAME_LENGTH)]
Alias = Annotated[str, Field(pattern=patterns.ALIAS)]
Share = Annotated[float, Field(ge=0, le=1)]


class Part(BaseModel):
    """A part of a resource: camelCase outside, closed, immutable."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
    )


class Metadata(Part):
    name: Name
    labels: dict[str, str] = Field(default_factory=dict)
    annotations: dict[str, str] = Field(default_factory=dict)
    namespace: str | None = None


class Gpu(Part):
    vendor: Literal["auto", "nvidia", "amd", "cpu"] = "auto"
    count: int = Field(default=1, ge=1, le=8)
    shared: str = ""
    """The GPU group: Models that share GPUs."""
    priority: int = Field(default=100, ge=0, le=1000)
    vram_estimate_mb: int = Field(default=0, ge=0, alias="vramEstimateMB")
    swap_cooldown: Duration = 300.0

    @model_validator(mode="after")
    def _cpu_has_no_gpu(self) -> Gpu:
        if self.vendor == "cpu" and (self.count > 1 or self.shared or self.vram_estimate_mb):
            raise ValueError(
                "vendor cpu takes no GPU: expected count 1, no shared group and no vramEstimateMB"
            )
        return self


class Serverless(Part):
    enabled: bool = True
    min_replicas: int = Field(default=0, ge=0, le=64)
    max_replicas: int = Field(default=1, ge=1, le=64)
    idle_timeout: Duration = 300.0
    cold_start_timeout: Duration = 60.0
    """How long a request may be held while no replica is ready."""
    load_stall_timeout: Duration = 60.0
    """A load without any progress for this long has failed."""

    @model_validator(mode="after")
    def _ordered(self) -> Serverless:
        if self.min_replicas > self.max_replicas:
            raise ValueError(
                f"minReplicas {self.min_replicas} is above maxReplicas {self.max_replicas}"
            )
        return self


class CompilationCache(Part):
    """Compiled kernels that outlive a replica."""

    enabled: bool = False
    host_path: str = ""
    size_limit: Size = 2 * 1024**3


class FlashLoader(Part):
    """Copies the artifact into memory, in parallel, before the engine starts."""

    enabled: bool | None = None
    """Absent: where the cache strategy profits from it."""
    tmpfs: bool = False
    tmpfs_size_limit: Size | None = None
    """Absent: `cache.size`."""
    concurrency: int = Field(default=4, ge=1, le=64)
    buffer_size_kb: int = Field(default=4096, ge=32, le=16384, alias="bufferSizeKB")
    verify_integrity: bool = True
    image: str = ""


class Cache(Part):
    strategy: Literal["Memory", "SharedPVC", "Local", "None"] = "Local"
    size: Size = 50 * 1024**3
    pvc_name: str = ""
    storage_class: str = ""
    host_path: str = ""
    compilation_cache: CompilationCache = CompilationCache()
    flash_loader: FlashLoader = FlashLoader()


class KvCache(Part):
    pressure_policy: Literal["Observe", "Reconfigure", "Evict"] = "Observe"
    high_watermark: Share = 0.85
    low_watermark: Share = 0.60
    max_block_size: int | None = Field(default=None, ge=1)
    swap_space: Size | None = None

    @model_validator(mode="after")
    def _ordered(self) -> KvCache:
        if self.low_watermark > self.high_watermark:
            raise ValueError(
                f"lowWatermark {self.low_watermark} is above highWatermark {self.high_watermark}"
            )
        return self


class LiteLlm(Part):
    enabled: bool = True
    served_model_name: str = ""
    aliases: tuple[str, ...] = ()
    copilot_alias: str = ""


class Capabilities(Part):
    """What consumers may rely on. What is absent is inferred from engine and artifact."""

    tool_calling: bool | None = None
    vision: bool | None = None
    image_generation: bool | None = None


class ComputeResources(Part):
    """Kubernetes' resource requirements, GPUs excepted: those are asked for in `gpu`."""

    limits: dict[str, str | int] = Field(default_factory=dict)
    requests: dict[str, str | int] = Field(default_factory=dict)


class Routing(Part):
    strategy: str = "least-loaded"


class Quality(Part):
    """Evidence that must be there before a replica may serve. What is absent is not asked."""

    require: Literal["none", "attestation"] = "none"
    min_same_top: Share | None = None
    max_kl_lower_bound: float | None = Field(default=None, ge=0)
    max_perplexity_ratio: float | None = Field(default=None, ge=0)


class ModelSpec(Part):
    source: SourceText
    backend: str = "llamacpp"
    aliases: tuple[Alias, ...] = Field(default=(), max_length=64)
    config: dict[str, Any] = Field(default_factory=dict)
    """Open here, closed by the engine's plug-in."""
    gpu: Gpu = Gpu()
    serverless: Serverless = Serverless()
    cache: Cache = Cache()
    kv_cache: KvCache = KvCache()
    litellm: LiteLlm = LiteLlm()
    routing: Routing = Routing()
    quality: Quality = Quality()
    capabilities: Capabilities = Capabilities()
    resources: ComputeResources = ComputeResources()
    node_selector: dict[str, str] = Field(default_factory=dict)
    service_labels: tuple[str, ...] = Field(default=(), max_length=10)

    @model_validator(mode="after")
    def _claim_is_shared(self) -> ModelSpec:
        chosen = "strategy" in self.cache.model_fields_set
        if self.source.lower().startswith("pvc://") and chosen:
            if self.cache.strategy != "SharedPVC":
                raise ValueError(
                    f"a pvc:// source needs cache.strategy SharedPVC, found {self.cache.strategy}"
                )
        return self


Phase = Literal["Idle", "Pending", "Loading", "Ready", "Preempted", "Failed"]
ConditionType = Literal["Cached", "Loaded", "Ready", "Schedulable", "ConfigValid", "Verified"]


class Condition(Part):
    type: ConditionType
    status: Literal["True", "False", "Unknown"] = "Unknown"
    reason: str = ""
    message: str = ""
    last_transition_time: str = ""


class ArtifactStatus(Part):
    digest: str
    reference: str
    format: str
    quantization: str
    size_bytes: int


class ColdStartPhases(Part):
    """Seconds."""

    fetch: float = 0.0
    verify: float = 0.0
    start: float = 0.0
    load: float = 0.0
    first_token: float = 0.0


class ColdStartStatus(Part):
    p50_seconds: float
    p95_seconds: float
    phases: ColdStartPhases


class ModelStatus(Part):
    phase: Phase = "Idle"
    observed_generation: int = 0
    replicas: int = 0
    artifact: ArtifactStatus | None = None
    conditions: tuple[Condition, ...] = ()
    cold_start: ColdStartStatus | None = None
    loading_substage: str = ""
    loading_progress_at: str = ""
    last_active_time: str = ""
    message: str = ""


class Model(Part):
    """A Model, as written by its owner and as observed."""

    api_version: Literal["ai.flexinfer/v1alpha2"] = "ai.flexinfer/v1alpha2"
    kind: Literal["Model"] = "Model"
    metadata: Metadata
    spec: ModelSpec
    status: ModelStatus | None = None

    @property
    def strategy(self) -> str:
        """Return the routing strategy: the annotation `flexinfer.ai/routing` wins over the field."""
        return self.metadata.annotations.get("flexinfer.ai/routing") or self.spec.routing.strategy
