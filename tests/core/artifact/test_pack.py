from __future__ import annotations

import hashlib
import json
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexinfer.artifact import FileEntry, ModelConfig, pack, unpack
from flexinfer.errors import FlexInferError, IntegrityError, InvalidInput
from flexinfer.oci import MEDIA_EMPTY, Descriptor, Manifest, digest_of

FILES = (
    FileEntry(path="README.md", digest=digest_of(b"readme"), size=6),
    FileEntry(path="model-00002.safetensors", digest=digest_of(b"two"), size=3),
    FileEntry(path="model-00001.safetensors", digest=digest_of(b"one"), size=3),
    FileEntry(path="tokenizer.json", digest=digest_of(b"tok"), size=3),
    FileEntry(path="config.json", digest=digest_of(b"conf"), size=4),
)
CONFIG = ModelConfig(
    name="acme-8b",
    family="acme",
    architecture="llama",
    format="safetensors",
    quantization="awq",
    precision="float16",
    param_size="8b",
    licenses=("Apache-2.0",),
    source_url="https://example.org/acme",
    revision="0123456789abcdef0123456789abcdef01234567",
    created_at="2026-08-21T00:00:00Z",
    capabilities={"inputTypes": ["text"], "outputTypes": ["text"]},
)

# Written by hand from the rules of modelpack/model-spec, one file; hashed below by the standard library.
GOLDEN_CONFIG = (
    b'{"config":{"architecture":"llama","format":"gguf","quantization":"Q8_0"},'
    b'"descriptor":{"createdAt":"1970-01-01T00:00:00Z","name":"smol"},'
    b'"modelfs":{"diffIds":["sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"],'
    b'"type":"layers"}}'
)
GOLDEN_METADATA = (
    r"{\"gid\":0,\"mode\":420,\"mtime\":\"1970-01-01T00:00:00Z\",\"name\":\"m.gguf\","
    r"\"size\":3,\"typeflag\":48,\"uid\":0}"
)
GOLDEN_MANIFEST = (
    '{"annotations":{"ai.flexinfer.build.key":"k","ai.flexinfer.format":"gguf",'
    '"ai.flexinfer.quantization":"Q8_0"},'
    '"artifactType":"application/vnd.cncf.model.manifest.v1+json",'
    f'"config":{{"digest":"sha256:{hashlib.sha256(GOLDEN_CONFIG).hexdigest()}",'
    f'"mediaType":"application/vnd.cncf.model.config.v1+json","size":{len(GOLDEN_CONFIG)}}},'
    '"layers":[{"annotations":{'
    f'"org.cncf.model.file.mediatype.untested":"false","org.cncf.model.file.metadata+json":"{GOLDEN_METADATA}",'
    '"org.cncf.model.filepath":"m.gguf","org.opencontainers.image.title":"m.gguf"},'
    '"digest":"sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",'
    '"mediaType":"application/vnd.cncf.model.weight.v1.raw","size":3}],'
    '"mediaType":"application/vnd.oci.image.manifest.v1+json","schemaVersion":2}'
).encode()


def _paths(manifest: Manifest) -> list[str]:
    return [layer.annotations["org.cncf.model.filepath"] for layer in manifest.layers]


def _foreign(**changes: Any) -> tuple[Manifest, bytes]:
    """A ModelPack of another writer: no metadata, no annotations of ours."""
    layer = {
        "mediaType": "application/vnd.cncf.model.weight.v1.raw",
        "digest": digest_of(b"abc"),
        "size": 3,
        "annotations": {"org.cncf.model.filepath": "m.gguf"},
    } | changes.pop("layer", {})
    value = {
        "schemaVersion": 2,
        "artifactType": "application/vnd.cncf.model.manifest.v1+json",
        "config": {
            "mediaType": "application/vnd.cncf.model.config.v1+json",
            "digest": digest_of(GOLDEN_CONFIG),
            "size": len(GOLDEN_CONFIG),
        },
        "layers": [layer],
    } | changes
    return Manifest.parse(json.dumps(value).encode()), GOLDEN_CONFIG


def test_the_bytes_are_the_golden_ones() -> None:
    file = FileEntry(path="m.gguf", digest=digest_of(b"abc"), size=3)
    config = ModelConfig(name="smol", architecture="llama", format="gguf", quantization="Q8_0")
    packed = pack([file], config, {"ai.flexinfer.build.key": "k"})
    assert packed.config_bytes == GOLDEN_CONFIG
    assert packed.manifest_bytes == GOLDEN_MANIFEST
    assert packed.descriptor.digest == "sha256:" + hashlib.sha256(GOLDEN_MANIFEST).hexdigest()


def test_configuration_comes_first_then_weights_then_documents() -> None:
    assert _paths(pack(FILES, CONFIG, {}).manifest) == [
        "config.json",
        "tokenizer.json",
        "model-00001.safetensors",
        "model-00002.safetensors",
        "README.md",
    ]


def test_the_order_of_the_inputs_does_not_matter() -> None:
    shuffled = list(FILES)
    random.Random(1).shuffle(shuffled)
    one = pack(FILES, CONFIG, {"a": "1", "b": "2"})
    assert pack(shuffled, CONFIG, {"b": "2", "a": "1"}) == one


def test_diff_ids_are_the_digests_of_the_layers_in_their_order() -> None:
    packed = pack(FILES, CONFIG, {})
    diff_ids = json.loads(packed.config_bytes)["modelfs"]["diffIds"]
    assert diff_ids == [layer.digest for layer in packed.manifest.layers]


def test_the_config_has_no_key_that_the_schema_lacks() -> None:
    value = json.loads(pack(FILES, CONFIG, {"ai.flexinfer.x": "y"}).config_bytes)
    assert set(value) == {"descriptor", "config", "modelfs"}
    assert set(value["modelfs"]) == {"type", "diffIds"}
    assert set(value["config"]) <= {
        "architecture", "format", "paramSize", "precision", "quantization", "capabilities"
    }  # fmt: skip
    assert set(value["descriptor"]) <= {
        "createdAt", "name", "family", "title", "version", "revision", "vendor", "sourceURL", "licenses"
    }  # fmt: skip


def test_source_revision_and_licence_stand_in_the_manifest_too() -> None:
    notes = pack(FILES, CONFIG, {}).manifest.annotations
    assert notes["org.opencontainers.image.source"] == "https://example.org/acme"
    assert notes["org.opencontainers.image.revision"] == CONFIG.revision
    assert notes["org.opencontainers.image.licenses"] == "Apache-2.0"


def test_what_was_packed_is_unpacked() -> None:
    packed = pack(FILES, CONFIG, {"ai.flexinfer.build.key": "k"})
    artifact = unpack(packed.manifest, packed.config_bytes)
    assert set(artifact.files) == set(FILES)
    assert artifact.config == CONFIG
    assert artifact.annotations["ai.flexinfer.build.key"] == "k"
    assert artifact.size_bytes == 19
    assert artifact.notes == ()


def test_what_nobody_checked_says_so() -> None:
    file = FileEntry(path="m.gguf", digest=digest_of(b"abc"), size=3, is_checked=False)
    packed = pack([file], CONFIG, {})
    layer = packed.manifest.layers[0]
    assert layer.annotations["org.cncf.model.file.mediatype.untested"] == "true"
    assert unpack(packed.manifest, packed.config_bytes).files == (file,)


@pytest.mark.parametrize(
    ("paths", "code"),
    [
        (["../m.gguf"], "path_unsafe"),
        (["/m.gguf"], "path_unsafe"),
        (["a/./m.gguf"], "path_unsafe"),
        (["a\\m.gguf"], "path_unsafe"),
        (["config.json", "Config.json"], "path_collision"),
        (["m.gguf", "m.gguf/x.json"], "path_collision"),
        (["m.gguf", "m.gguf"], "path_collision"),
        (["pytorch_model.bin"], "pickle_refused"),
        (["model.xyz"], "file_kind_unknown"),
        (["modeling.py"], "remote_code"),
        ([], "model_config_invalid"),
    ],
)
def test_what_must_not_be_published_is_refused(paths: list[str], code: str) -> None:
    files = [FileEntry(path=path, digest=digest_of(b"abc"), size=3) for path in paths]
    with pytest.raises(InvalidInput) as caught:
        pack(files, CONFIG, {})
    assert caught.value.code == code


def test_code_that_somebody_allowed_by_its_digest_is_packed_last() -> None:
    code = FileEntry(path="a.py", digest=digest_of(b"code"), size=4)
    packed = pack([code, *FILES], CONFIG, {}, trusted_code=frozenset({code.digest}))
    assert _paths(packed.manifest)[-1] == "a.py"
    with pytest.raises(InvalidInput):
        pack([code], CONFIG, {}, trusted_code=frozenset({digest_of(b"other")}))


@pytest.mark.parametrize("time", ["", "now", "2026-08-21", "2026-08-21T00:00:00"])
def test_a_time_that_is_none_is_refused(time: str) -> None:
    with pytest.raises(InvalidInput):
        pack(FILES, ModelConfig(name="x", created_at=time), {})


def test_an_artifact_of_another_writer_is_taken() -> None:
    artifact = unpack(*_foreign())
    assert artifact.files == (
        FileEntry(path="m.gguf", digest=digest_of(b"abc"), size=3, is_checked=False),
    )


def test_older_names_are_read() -> None:
    layer = {
        "mediaType": "application/vnd.cnai.model.weight.v1.raw",
        "annotations": {"org.cnai.model.filepath": "m.gguf"},
    }
    assert unpack(*_foreign(layer=layer)).files[0].path == "m.gguf"


def test_an_empty_config_is_taken_with_a_note() -> None:
    empty = {"mediaType": MEDIA_EMPTY, "digest": digest_of(b"{}"), "size": 2}
    manifest, _ = _foreign(config=empty)
    artifact = unpack(manifest, b"{}")
    assert artifact.config == ModelConfig()
    assert len(artifact.notes) == 1


def test_a_title_that_disagrees_is_a_note_on_others_and_an_error_on_ours() -> None:
    notes = {"org.cncf.model.filepath": "m.gguf", "org.opencontainers.image.title": "x.gguf"}
    assert unpack(*_foreign(layer={"annotations": notes})).notes != ()
    with pytest.raises(InvalidInput) as caught:
        unpack(*_foreign(layer={"annotations": notes}, annotations={"ai.flexinfer.x": "y"}))
    assert caught.value.code == "path_disagree"


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"layer": {"annotations": {"org.cncf.model.filepath": "../../x"}}}, "path_unsafe"),
        ({"layer": {"annotations": {}}}, "path_unsafe"),
        ({"layer": {"mediaType": "application/vnd.cncf.model.weight.v1.tar"}}, "layer_unsupported"),
        (
            {
                "artifactType": "application/x",
                "config": Descriptor.of(GOLDEN_CONFIG, media_type="a/b").to_json(),
            },
            "not_a_model",
        ),
        ({"layer": {"digest": digest_of(b"other")}}, "digest_mismatch"),
    ],
)
def test_what_is_unsafe_or_no_model_is_refused(changes: Any, code: str) -> None:
    with pytest.raises(FlexInferError) as caught:
        unpack(*_foreign(**changes))
    assert caught.value.code == code


def test_two_layers_with_one_name_are_refused() -> None:
    manifest, config = _foreign()
    twice = Manifest(
        config=manifest.config,
        layers=manifest.layers * 2,
        artifact_type=manifest.artifact_type,
    )
    with pytest.raises(InvalidInput) as caught:
        unpack(twice, config)
    assert caught.value.code == "path_collision"


def test_another_config_is_refused() -> None:
    manifest, _ = _foreign()
    with pytest.raises(IntegrityError):
        unpack(manifest, b"{}")


@pytest.mark.parametrize(
    "config", [b"[]", b"{", b'{"config":[]}', b'{"config":{"format":1}}', b'{"modelfs":{"diffIds":[1]}}']
)  # fmt: skip
def test_a_config_of_another_shape_is_refused(config: bytes) -> None:
    descriptor = Descriptor.of(config, media_type="application/vnd.cncf.model.config.v1+json")
    manifest, _ = _foreign(config=descriptor.to_json())
    with pytest.raises(InvalidInput) as caught:
        unpack(manifest, config)
    assert caught.value.code == "model_config_invalid"


_NAMES = st.sampled_from(["a.gguf", "b.json", "c/README.md", "d.safetensors", "e.jinja"])


@given(
    st.dictionaries(_NAMES, st.binary(max_size=5), min_size=1),
    st.dictionaries(st.sampled_from(["ai.flexinfer.a", "x"]), st.text("ab", max_size=3)),
)
def test_every_artifact_comes_back(files: dict[str, bytes], notes: dict[str, str]) -> None:
    entries = [
        FileEntry(path=path, digest=digest_of(data), size=len(data)) for path, data in files.items()
    ]
    packed = pack(entries, CONFIG, notes)
    artifact = unpack(Manifest.parse(packed.manifest_bytes), packed.config_bytes)
    assert set(artifact.files) == set(entries)
    assert artifact.config == CONFIG
    assert notes.items() <= artifact.annotations.items()
