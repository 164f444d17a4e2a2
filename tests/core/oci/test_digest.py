from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexinfer.errors import IntegrityError, InvalidInput
from flexinfer.oci import Hasher, Verifier, digest_of, hex_of, parse_digest

# FIPS 180-2, appendix B.1.
ABC = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_the_digest_of_abc_is_that_of_the_standard() -> None:
    assert digest_of(b"abc") == ABC
    assert hex_of(digest_of(b"abc")) == ABC.removeprefix("sha256:")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "sha256:",
        ABC.upper(),
        ABC + "0",
        ABC[:-1],
        ABC + "\n",
        "sha512:" + "0" * 64,
        "sha256:../../../../etc/passwd" + "0" * 40,
        "sha256:" + "٠" * 64,
        "../" + ABC,
        None,
        7,
        b"sha256:",
    ],
)
def test_what_is_no_digest_never_becomes_a_name(text: object) -> None:
    with pytest.raises(InvalidInput) as caught:
        parse_digest(text, what="layer 3 digest")
    assert caught.value.code == "digest_format"
    assert "layer 3 digest" in caught.value.message


@given(st.lists(st.binary(max_size=100), max_size=20))
def test_bytes_in_pieces_have_the_digest_of_the_whole(pieces: list[bytes]) -> None:
    hasher = Hasher()
    for piece in pieces:
        hasher.update(piece)
    whole = b"".join(pieces)
    assert hasher.digest == "sha256:" + hashlib.sha256(whole).hexdigest()
    assert hasher.size == len(whole)


def test_a_verifier_accepts_what_was_promised() -> None:
    verifier = Verifier(expected=parse_digest(ABC), size=3)
    verifier.update(b"a")
    verifier.update(b"bc")
    verifier.finish()


def test_a_verifier_stops_at_the_first_byte_too_many() -> None:
    verifier = Verifier(expected=parse_digest(ABC), size=3)
    with pytest.raises(IntegrityError, match="expected 3 bytes, got more"):
        verifier.update(b"abcd")


@pytest.mark.parametrize(
    ("data", "words"), [(b"ab", "expected 3 bytes, got 2"), (b"abd", "expected " + ABC)]
)
def test_a_verifier_names_both_values(data: bytes, words: str) -> None:
    verifier = Verifier(expected=parse_digest(ABC), size=3, what="model.gguf")
    verifier.update(data)
    with pytest.raises(IntegrityError, match=words) as caught:
        verifier.finish()
    assert caught.value.code == "digest_mismatch"
    assert "model.gguf" in caught.value.message
