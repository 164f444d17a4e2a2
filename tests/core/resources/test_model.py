"""Models: rules that hold between fields, and names that stay as published."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from flexinfer.resources.model import Metadata, Model


def _model(**spec: Any) -> Model:
    return Model.model_validate(
        {"metadata": {"name": "m"}, "spec": {"source": "pvc://claim/m", **spec}}
    )


def test_the_published_fields_are_there() -> None:
    # Names from the published contract of the resource.
    spec = {
        "backend": "vllm",
        "gpu": {"vendor": "nvidia", "shared": "g", "priority": 1000, "count": 8, "vramEstimateMB": 1},
        "serverless": {"enabled": False, "minReplicas": 1, "idleTimeout": "10m"},
        "cache": {
            "strategy": "SharedPVC",
            "pvcName": "p",
            "storageClass": "s",
            "hostPath": "/h",
            "size": "1Gi",
            "compilationCache": {"enabled": True, "hostPath": "/c", "sizeLimit": "2Gi"},
            "flashLoader": {"enabled": True, "concurrency": 4, "bufferSizeKB": 4096,
                            "verifyIntegrity": True, "tmpfsSizeLimit": "1Gi", "image": "i"},
        },
        "kvCache": {"pressurePolicy": "Evict", "highWatermark": 0.85, "lowWatermark": 0.6,
                    "maxBlockSize": 16, "swapSpace": "4Gi"},
        "litellm": {"enabled": True, "servedModelName": "s", "aliases": ["a"], "copilotAlias": "c"},
        "capabilities": {"toolCalling": True, "vision": False, "imageGeneration": False},
        "resources": {"limits": {"memory": "1Gi", "cpu": 2}, "requests": {}},
        "nodeSelector": {"a": "b"},
        "serviceLabels": ["textgen"],
    }  # fmt: skip
    written = _model(**spec).model_dump(by_alias=True, exclude_unset=True)
    assert set(written["spec"]) == {"source", *spec}
    assert set(written["spec"]["cache"]["flashLoader"]) == set(spec["cache"]["flashLoader"])  # type: ignore[index]


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"serverless": {"minReplicas": 2}}, "minReplicas 2 is above maxReplicas 1"),
        ({"gpu": {"vendor": "cpu", "shared": "g"}}, "vendor cpu takes no GPU"),
        ({"gpu": {"vendor": "cpu", "vramEstimateMB": 1}}, "vendor cpu takes no GPU"),
        ({"kvCache": {"lowWatermark": 0.9}}, "lowWatermark 0.9 is above highWatermark 0.85"),
        ({"cache": {"strategy": "Local"}}, "needs cache.strategy SharedPVC, found Local"),
        ({"quality": {"maxKlLowerBound": float("inf")}}, "finite"),
        ({"aliases": ["with space"]}, "pattern"),
        ({"aliases": ["a"] * 65}, "at most 64"),
        ({"source": 5}, "string"),
    ],
)
def test_fields_that_contradict_each_other_are_refused(spec: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        _model(**spec)


def test_a_claim_needs_no_strategy_to_be_named() -> None:
    assert _model().spec.source == "pvc://claim/m"


@pytest.mark.parametrize("name", ["a", "qwen2.5-0.5b", "a-b.c", "0", "a" * 63])
def test_a_name_is_what_an_object_may_be_called(name: str) -> None:
    assert Metadata(name=name).name == name


@pytest.mark.parametrize(
    "name", ["", "A", "-a", "a-", ".a", "a..b", "a.-b", "a_b", "a" * 64, "a\n", "a/b"]
)
def test_what_no_object_may_be_called_is_refused(name: str) -> None:
    with pytest.raises(ValidationError):
        Metadata(name=name)


def test_the_annotation_wins_over_the_routing_field() -> None:
    model = _model(routing={"strategy": "prefix"})
    assert model.strategy == "prefix"
    annotated = Metadata(name="m", annotations={"flexinfer.ai/routing": "session-affinity"})
    assert model.model_copy(update={"metadata": annotated}).strategy == "session-affinity"


def test_a_resource_does_not_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        _model().spec.backend = "vllm"  # type: ignore[misc]
