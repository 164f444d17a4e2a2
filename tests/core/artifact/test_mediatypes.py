from __future__ import annotations

import pytest

from flexinfer.artifact import classify
from flexinfer.artifact.mediatypes import KIND_ORDER, kind_of_layer, layer_type
from flexinfer.errors import InvalidInput


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("model.safetensors", "weight"),
        ("sub/Model-Q8_0.GGUF", "weight"),
        ("params_shard_0.bin", "weight"),
        ("config.json", "weight.config"),
        ("model.safetensors.index.json", "weight.config"),
        ("tokenizer.model", "weight.config"),
        ("merges.txt", "weight.config"),
        ("chat_template.jinja", "weight.config"),
        ("README.md", "doc"),
        ("LICENSE", "doc"),
        ("LICENSE.txt", "doc"),
        ("NOTICE", "doc"),
        ("USE_POLICY.md", "doc"),
        ("modeling_x.py", "code"),
    ],
)
def test_a_file_has_the_kind_of_its_name(path: str, kind: str) -> None:
    assert classify(path) == kind


@pytest.mark.parametrize("path", ["pytorch_model.bin", "a.pt", "x.ckpt", "w.pkl", "d.npz"])
def test_a_pickle_is_refused_by_its_name(path: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        classify(path)
    assert caught.value.code == "pickle_refused"


@pytest.mark.parametrize("path", ["model.h5", "weights", "a.gguf.part", "README/x", "x.exe"])
def test_nothing_unknown_is_taken_for_a_weight(path: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        classify(path)
    assert caught.value.code == "file_kind_unknown"


def test_a_layer_type_tells_its_kind() -> None:
    assert [kind_of_layer(layer_type(kind)) for kind in KIND_ORDER] == list(KIND_ORDER)
    assert kind_of_layer("application/vnd.cnai.model.doc.v1.raw") == "doc"
    assert kind_of_layer("application/vnd.cncf.model.weight.v1.tar") is None
