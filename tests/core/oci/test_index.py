from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexinfer.errors import InvalidInput
from flexinfer.oci import MEDIA_MANIFEST, Descriptor, digest_of
from flexinfer.oci.index import Index


def _manifest(number: int) -> Descriptor:
    return Descriptor.of(str(number).encode(), media_type=MEDIA_MANIFEST)


def _with(*numbers: int) -> Index:
    index = Index.empty()
    for number in numbers:
        index = index.with_manifest(_manifest(number), subject=None)
    return index


def test_a_name_moves_and_the_old_manifest_stays_known() -> None:
    index = _with(1, 2).with_tag("a:x", _manifest(1).digest).with_tag("a:x", _manifest(2).digest)
    assert index.named("a:x") == _manifest(2)
    assert index.known(_manifest(1).digest) == _manifest(1)
    assert index.tags() == (("a:x", _manifest(2)),)


def test_a_manifest_with_two_names_has_two_entries_and_none_without_a_name() -> None:
    index = _with(1).with_tag("a:x", _manifest(1).digest).with_tag("a:y", _manifest(1).digest)
    entries = json.loads(index.to_bytes())["manifests"]
    names = [entry["annotations"]["org.opencontainers.image.ref.name"] for entry in entries]
    assert names == ["a:x", "a:y"]


def test_the_same_name_again_changes_nothing() -> None:
    index = _with(1).with_tag("a:x", _manifest(1).digest)
    assert index.with_tag("a:x", _manifest(1).digest) is index
    assert index.with_manifest(_manifest(1), subject=None) is index
    assert index.without_tag("a:z") is index


def test_a_manifest_without_its_only_name_is_still_known() -> None:
    index = _with(1).with_tag("a:x", _manifest(1).digest).without_tag("a:x")
    assert index.named("a:x") is None
    assert index.known(_manifest(1).digest) == _manifest(1)
    assert len(json.loads(index.to_bytes())["manifests"]) == 1


def test_what_others_wrote_is_kept() -> None:
    foreign = {
        "schemaVersion": 2,
        "x-field": 1,
        "manifests": [
            {
                **_manifest(1).to_json(),
                "platform": {"os": "linux"},
                "annotations": {"k": "v", "org.opencontainers.image.ref.name": "latest"},
            }
        ],
    }
    index = Index.parse(json.dumps(foreign).encode())
    assert index.named("latest") == _manifest(1)
    changed = json.loads(index.with_tag("a:x", _manifest(1).digest).to_bytes())
    assert changed["x-field"] == 1
    assert [entry["platform"] for entry in changed["manifests"]] == [{"os": "linux"}] * 2
    assert changed["manifests"][1]["annotations"]["k"] == "v"


def test_referrers_are_known_without_reading_and_strangers_are_named_as_such() -> None:
    subject = digest_of(b"subject")
    index = _with(1).with_manifest(_manifest(2), subject=subject)
    stranger = {"schemaVersion": 2, "manifests": [_manifest(3).to_json()]}
    entries = json.loads(index.to_bytes())["manifests"] + stranger["manifests"]
    both = Index.parse(json.dumps({"schemaVersion": 2, "manifests": entries}).encode())
    assert both.referrers(subject) == ((_manifest(2),), (_manifest(3),))


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "index_invalid"),
        (b"{}", "index_invalid"),
        (b'{"manifests":[7]}', "index_invalid"),
        (b'{"manifests":[{"mediaType":"a/b","digest":"x","size":1}]}', "digest_format"),
    ],
)
def test_a_damaged_index_is_refused(data: bytes, code: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        Index.parse(data)
    assert caught.value.code == code


_STEPS = st.lists(
    st.tuples(
        st.sampled_from(["enter", "tag", "untag"]),
        st.integers(0, 3),
        st.sampled_from(["a:x", "a:y", "b:z"]),
    ),
    max_size=25,
)


@given(_STEPS)
def test_an_index_tells_what_a_dictionary_would(steps: list[tuple[str, int, str]]) -> None:
    index, known, names = Index.empty(), set[int](), dict[str, int]()
    for step, number, name in steps:
        if step == "enter":
            index = index.with_manifest(_manifest(number), subject=None)
            known.add(number)
        elif step == "tag" and number in known:
            index = index.with_tag(name, _manifest(number).digest)
            names[name] = number
        elif step == "untag":
            index = index.without_tag(name)
            names.pop(name, None)
        index = Index.parse(index.to_bytes())
        assert dict(index.tags()) == {name: _manifest(n) for name, n in names.items()}
        assert set(index.manifests()) == {_manifest(n) for n in known}
        entries = json.loads(index.to_bytes())["manifests"]
        assert len(entries) == len(names) + len(known - set(names.values()))
