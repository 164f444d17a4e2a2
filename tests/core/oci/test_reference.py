from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexinfer.errors import InvalidInput
from flexinfer.oci import Reference, digest_of

DIGEST = digest_of(b"abc")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("smol", Reference(repository="smol")),
        ("smol:q8-0", Reference(repository="smol", tag="q8-0")),
        ("a/b_c/d.e-f:V1.0", Reference(repository="a/b_c/d.e-f", tag="V1.0")),
        (f"smol@{DIGEST}", Reference(repository="smol", digest=DIGEST)),
        (f"smol:x@{DIGEST}", Reference(repository="smol", tag="x", digest=DIGEST)),
    ],
)
def test_a_reference_is_read_and_written_back(text: str, expected: Reference) -> None:
    assert Reference.parse(text) == expected
    assert str(expected) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":tag",
        "Smol:x",
        "smol:",
        "smol:.x",
        "smol:x:y",
        "smol:" + "x" * 129,
        "-smol",
        "smol/",
        "a//b",
        "../a:b",
        "a..b:c",
        "smol\n:x",
        "smol:x\n",
        "a" * 256 + ":x",
    ],
)
def test_what_is_no_reference_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        Reference.parse(text)
    assert caught.value.code == "reference_format"


def test_a_wrong_digest_in_a_reference_has_its_own_code() -> None:
    with pytest.raises(InvalidInput) as caught:
        Reference.parse("smol@sha256:12")
    assert caught.value.code == "digest_format"


def test_only_a_tagged_reference_has_a_name() -> None:
    assert Reference.parse(f"smol:x@{DIGEST}").name == "smol:x"
    with pytest.raises(InvalidInput):
        _ = Reference.parse("smol").name


@given(st.text(max_size=40))
def test_what_is_accepted_comes_back_as_it_was(text: str) -> None:
    try:
        reference = Reference.parse(text)
    except InvalidInput:
        return
    assert str(reference) == text
