from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexinfer.errors import InvalidInput
from flexinfer.oci import MEDIA_EMPTY, MEDIA_INDEX, MEDIA_MANIFEST, Descriptor, Manifest, digest_of

CONFIG = Descriptor.of(b"{}", media_type="application/vnd.cncf.model.config.v1+json")
LAYER = Descriptor(
    media_type="application/vnd.cncf.model.weight.v1.raw",
    digest=digest_of(b"weights"),
    size=7,
    annotations={"org.opencontainers.image.title": "m.gguf", "a": "ü"},
)

# Written by hand from image-spec 1.1.
GOLDEN = (
    b'{"annotations":{"b":"2"},"artifactType":"application/vnd.cncf.model.manifest.v1+json",'
    b'"config":{"digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a",'
    b'"mediaType":"application/vnd.cncf.model.config.v1+json","size":2},"layers":[{"annotations":'
    b'{"a":"\xc3\xbc","org.opencontainers.image.title":"m.gguf"},"digest":'
    b'"sha256:9a129038d9a00aed0cf6a7ea059ca50a813449061ab87848cf1a13eafdf33b2c","mediaType":'
    b'"application/vnd.cncf.model.weight.v1.raw","size":7}],"mediaType":'
    b'"application/vnd.oci.image.manifest.v1+json","schemaVersion":2}'
)


def _manifest() -> Manifest:
    return Manifest(
        config=CONFIG,
        layers=(LAYER,),
        artifact_type="application/vnd.cncf.model.manifest.v1+json",
        annotations={"b": "2"},
    )


def _value(**changes: Any) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(_manifest().to_bytes())
    value.update(changes)
    return {key: one for key, one in value.items() if one is not ...}


def _refused(value: Any, *, content_type: str | None = None) -> str:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    with pytest.raises(InvalidInput) as caught:
        Manifest.parse(data, content_type=content_type)
    return caught.value.code


def test_the_bytes_are_the_golden_ones() -> None:
    assert _manifest().to_bytes() == GOLDEN
    assert _manifest().describe().digest == "sha256:" + hashlib.sha256(GOLDEN).hexdigest()


def test_the_order_of_annotations_does_not_matter() -> None:
    one = Manifest(config=CONFIG, layers=(), annotations={"a": "1", "b": "2"})
    two = Manifest(config=CONFIG, layers=(), annotations={"b": "2", "a": "1"})
    assert one.to_bytes() == two.to_bytes()


def test_bytes_come_back_as_the_same_manifest() -> None:
    manifest = Manifest(config=CONFIG, layers=(LAYER, LAYER), subject=_manifest().describe())
    assert Manifest.parse(manifest.to_bytes(), content_type=MEDIA_MANIFEST) == manifest


def test_each_blob_is_named_once() -> None:
    assert Manifest(config=CONFIG, layers=(LAYER, LAYER)).blobs == (CONFIG, LAYER)


def test_an_empty_config_does_not_say_what_the_artifact_is() -> None:
    empty = Descriptor.of(b"{}", media_type=MEDIA_EMPTY)
    assert Manifest(config=empty, layers=()).kind is None
    assert Manifest(config=CONFIG, layers=()).kind == CONFIG.media_type


@pytest.mark.parametrize(
    ("changes", "content_type"),
    [
        ({"manifests": []}, None),
        ({"manifests": [], "layers": ..., "mediaType": MEDIA_INDEX}, None),
        ({"mediaType": MEDIA_INDEX}, None),
        ({"mediaType": ["x"]}, None),
        ({}, MEDIA_INDEX),
        ({"mediaType": ...}, "application/json"),
    ],
)
def test_what_could_be_two_things_is_refused(changes: Any, content_type: str | None) -> None:
    assert _refused(_value(**changes), content_type=content_type) == "manifest_ambiguous"


def test_a_key_that_occurs_twice_is_refused() -> None:
    assert _refused(GOLDEN[:-1] + b',"schemaVersion":2}') == "manifest_invalid"


def test_one_digest_with_two_sizes_is_refused() -> None:
    other = LAYER.to_json() | {"size": 8}
    assert _refused(_value(layers=[LAYER.to_json(), other])) == "manifest_ambiguous"


@pytest.mark.parametrize(
    "changes",
    [
        {"schemaVersion": 1},
        {"schemaVersion": True},
        {"schemaVersion": ...},
        {"layers": {}},
        {"layers": ...},
        {"layers": [7]},
        {"config": ...},
        {"config": []},
        {"config": CONFIG.to_json() | {"size": -1}},
        {"config": CONFIG.to_json() | {"size": True}},
        {"config": CONFIG.to_json() | {"size": 1.5}},
        {"config": CONFIG.to_json() | {"size": 1 << 63}},
        {"config": CONFIG.to_json() | {"mediaType": "x"}},
        {"config": CONFIG.to_json() | {"mediaType": "a/b c"}},
        {"annotations": {"a": 1}},
        {"annotations": {"a": "\ud800"}},
        {"annotations": []},
        {"artifactType": 7},
        {"subject": []},
    ],
)
def test_a_field_of_another_type_is_refused(changes: Any) -> None:
    assert _refused(_value(**changes)) == "manifest_invalid"


def test_a_wrong_digest_in_a_layer_is_named() -> None:
    value = _value(layers=[LAYER.to_json() | {"digest": "sha256:../x"}])
    with pytest.raises(InvalidInput, match="layer 0") as caught:
        Manifest.parse(json.dumps(value).encode())
    assert caught.value.code == "digest_format"


@pytest.mark.parametrize("data", [b"", b"null", b"[]", b"\xff", b"{", b"[" * 100_000, b'{"a":NaN}'])
def test_what_is_no_json_object_is_refused(data: bytes) -> None:
    assert _refused(data) == "manifest_invalid"


def test_too_many_layers_are_refused() -> None:
    assert _refused(_value(layers=[CONFIG.to_json()] * 4097)) == "manifest_too_large"
    Manifest.parse(json.dumps(_value(layers=[CONFIG.to_json()] * 4096)).encode())


def test_too_many_bytes_are_refused() -> None:
    assert _refused(b" " * (4 * 1024 * 1024 + 1)) == "manifest_too_large"


def test_too_large_annotations_are_refused() -> None:
    assert _refused(_value(annotations={"a": "x" * (256 * 1024)})) == "manifest_too_large"


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_any_bytes_are_refused_with_a_code(data: bytes) -> None:
    with pytest.raises(InvalidInput):
        Manifest.parse(data)


_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
_DESCRIPTORS = st.builds(
    Descriptor,
    media_type=st.just("application/x"),
    digest=st.binary(max_size=4).map(digest_of),
    size=st.just(5),
    annotations=st.dictionaries(_TEXT, _TEXT, max_size=3),
)


@given(
    st.builds(
        Manifest,
        config=_DESCRIPTORS,
        layers=st.lists(_DESCRIPTORS, max_size=4).map(tuple),
        annotations=st.dictionaries(_TEXT, _TEXT, max_size=3),
        subject=st.none() | _DESCRIPTORS,
    )
)
def test_every_manifest_comes_back_and_has_one_byte_form(manifest: Manifest) -> None:
    data = manifest.to_bytes()
    assert Manifest.parse(data) == manifest
    assert Manifest.parse(data).to_bytes() == data
    canonical = json.dumps(
        json.loads(data), sort_keys=True, separators=(",", ":"), ensure_ascii=False
    )
    assert data == canonical.encode()
