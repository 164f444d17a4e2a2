"""Sources: one string, parsed once, with one spelling for each thing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexinfer.errors import InvalidInput
from flexinfer.resources.source import MAX_LENGTH, SourceUri, parse_source

COMMIT = "9217f5db79a29953eb74d5343926648285ec7e67"


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("hf://Org/repo", SourceUri(scheme="hf", name="Org/repo")),
        ("HF://Org/repo@main", SourceUri(scheme="hf", name="Org/repo", revision="main")),
        (
            f"hf://Org/repo@{COMMIT}/sub/m.gguf",
            SourceUri(scheme="hf", name="Org/repo", revision=COMMIT, path="sub/m.gguf"),
        ),
        (
            "hf://Org/repo/name@2x.gguf",
            SourceUri(scheme="hf", name="Org/repo", path="name@2x.gguf"),
        ),
        (
            "hf://Org/repo@refs%2Fpr%2f1/m.gguf",
            SourceUri(scheme="hf", name="Org/repo", revision="refs/pr/1", path="m.gguf"),
        ),
        (
            "pypi://LLM_smol.lm2==0.1.2/pkg/m.gguf",
            SourceUri(scheme="pypi", name="llm-smol-lm2", revision="0.1.2", path="pkg/m.gguf"),
        ),
        ("file:///a/My Model.gguf", SourceUri(scheme="file", name="", path="/a/My Model.gguf")),
        ("file://localhost//a/./b", SourceUri(scheme="file", name="", path="/a/b")),
        ("catalog://entry", SourceUri(scheme="catalog", name="entry")),
        ("catalog://entry/q8-0", SourceUri(scheme="catalog", name="entry", path="q8-0")),
        ("pvc://claim/a/b", SourceUri(scheme="pvc", name="claim", path="a/b")),
        (
            "oci://reg:5000/a/b:1@sha256:ab",
            SourceUri(scheme="oci", name="reg:5000/a/b:1@sha256:ab"),
        ),
        ("ollama://llama3:8b", SourceUri(scheme="ollama", name="llama3:8b")),
    ],
)
def test_each_scheme_is_read_into_its_parts(text: str, source: SourceUri) -> None:
    assert parse_source(text) == source
    assert parse_source(str(source)) == source


@pytest.mark.parametrize(
    "text",
    [
        "", "model.gguf", "hf:/a/b", "hf://a", "hf:///b", "hf://a/b@", "hf://a/b@../x", "hf://a/b@-x",
        "hf://a/b/../c", "hf://a/b//c", "hf://a@main/b", "hf://a/b/c\\d", "hf://a/b ",
        "pypi://a/b", "pypi://a==1", "pypi://a==1/../b", "pypi://a-==1/b", "pypi://a==1/",
        "file://a/b", "file:///", "file:///a/../b", "file:///a/", "file:///a/.", "file:///.",
        "catalog://", "catalog://a/b/c", "catalog://a b", "pvc://a/../b", "oci://", "oci://a/../b",
        "ollama://a b", "file:///a\nb", "file:///a\x00", "file:///a\u2028b", "file:///\ud800",
        "file:///" + "a" * MAX_LENGTH,
    ],
)  # fmt: skip
def test_what_names_no_source_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput, match="expected") as refused:
        parse_source(text)
    assert (refused.value.code, refused.value.param) == ("source_invalid", "source")
    assert len(refused.value.message) < 500


def test_an_unknown_scheme_names_the_nearest() -> None:
    with pytest.raises(InvalidInput, match="did you mean 'pypi'"):
        parse_source("pypy://a==1/b")


@pytest.mark.parametrize(
    ("address", "source"),
    [
        ("https://huggingface.co/Org/repo/blob/main/sub/m.gguf", "hf://Org/repo/sub/m.gguf"),
        ("https://huggingface.co/Org/repo/resolve/main/m.gguf?download=true", "hf://Org/repo/m.gguf"),
        (f"http://hf.co/Org/repo/resolve/{COMMIT}/m.gguf", f"hf://Org/repo@{COMMIT}/m.gguf"),
        ("https://huggingface.co/Org/repo/blob/refs%2Fpr%2F1/m.gguf", "hf://Org/repo@refs%2Fpr%2F1/m.gguf"),
        ("https://huggingface.co/Org/repo/blob/main/My%20Model.gguf", "hf://Org/repo/My Model.gguf"),
        ("https://huggingface.co/Org/repo/tree/v1", "hf://Org/repo@v1"),
        ("https://huggingface.co/Org/repo/", "hf://Org/repo"),
    ],
)  # fmt: skip
def test_an_address_of_the_hub_is_refused_with_its_source(address: str, source: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        parse_source(address)
    assert refused.value.message.endswith(f"; did you mean {source!r}?")
    assert parse_source(source)


@pytest.mark.parametrize(
    "address",
    [
        "https://example.com/Org/repo/blob/main/m.gguf", "https://huggingface.co/Org",
        "https://huggingface.co/datasets/Org/repo/blob/main/m.gguf", "https://huggingface.co/a b/c",
        "https://huggingface.co/Org/repo/blob/main/%2e%2e/m.gguf", "https://huggingface.co.evil/a/b",
        "https://huggingface.co/Org/repo/blob/main/%00.gguf",
    ],
)  # fmt: skip
def test_an_address_of_anything_else_is_refused_with_the_schemes(address: str) -> None:
    with pytest.raises(InvalidInput, match=r"a scheme of file, hf$"):
        parse_source(address, advised=("file", "hf"))


@given(
    st.text(max_size=60)
    | st.builds(
        "{}://{}".format,
        st.sampled_from(["hf", "pypi", "file", "catalog", "pvc", "oci", "ollama", "HF"]),
        st.text("aB1./@=:-_%2F \\é", max_size=40),
    )
)
def test_what_is_read_is_written_in_a_form_that_reads_the_same(text: str) -> None:
    try:
        source = parse_source(text)
    except InvalidInput:
        return
    assert parse_source(str(source)) == source
    assert ".." not in source.path.split("/")
