"""An edit that only the engine refuses keeps the old state as one that is no Model does."""

from __future__ import annotations

import pytest

from flexinfer.engine import ENGINES, EngineArtifact
from flexinfer.errors import NotFound
from flexinfer.places import Home
from flexinfer.resources.model import Model
from flexinfer_operator.facts import edit_problems
from flexinfer_operator.local.models import ModelFiles

TEXT = """\
apiVersion: ai.flexinfer/v1alpha2
kind: Model
metadata: {name: a}
spec:
  source: file:///m.gguf
  config:
    contextTokens: 512
"""


BUILT = EngineArtifact(
    digest="sha256:" + "a" * 64,
    format="gguf",
    quantization="Q8_0",
    architecture="llama",
    files=("m.gguf",),
    size_bytes=1,
    context_length=2048,
    has_chat_template=True,
)


def offered(source: str) -> EngineArtifact | None:
    """A machine where `m` is built, `n` is not, and nothing else means anything."""
    if source == "file:///m.gguf":
        return BUILT
    if source == "file:///n.gguf":
        return None
    raise NotFound(f"no such thing as {source}", code="variant_not_found")


def looked_at(home: Home, *texts: str, said: list[str] | None = None) -> ModelFiles:
    """Return what is known after each of *texts* was there for two looks."""
    files = ModelFiles(
        home.models,
        check=lambda found: edit_problems(ENGINES.get, found, offered),
        on_fault=lambda fault, _: None if said is None else said.append(fault),
    )
    for count, text in enumerate(texts):
        (home.models / "a.yaml").write_text(text + "\n" * count, "utf-8")
        files.scan()
        files.scan()
    return files


def test_a_misspelt_key_of_the_engine_is_refused_with_its_place(home: Home) -> None:
    files = looked_at(home, TEXT, TEXT.replace("contextTokens", "contextToken"))
    one = files.written()["a"]
    assert one.model.spec.config == {"contextTokens": 512}
    assert "a.yaml:7:5: config.contextToken" in one.fault
    assert "contextTokens" in one.fault


def test_a_value_that_the_engine_refuses_is_refused(home: Home) -> None:
    files = looked_at(home, TEXT, TEXT.replace("512", "-1"))
    assert files.written()["a"].model.spec.config == {"contextTokens": 512}


def test_a_mended_edit_is_taken(home: Home) -> None:
    files = looked_at(home, TEXT, TEXT.replace("Tokens", "Token"), TEXT.replace("512", "1024"))
    assert files.written()["a"].fault == ""
    assert files.written()["a"].model.spec.config == {"contextTokens": 1024}


def test_a_new_file_that_only_the_engine_refuses_is_a_model(home: Home) -> None:
    files = looked_at(home, TEXT.replace("contextTokens", "contextToken"))
    assert files.written()["a"].fault == ""


@pytest.mark.parametrize(
    ("before", "after", "place", "words"),
    [
        ("  config:", "  backend: nowhere\n  config:", "a.yaml:6:12: backend", "known: llamacpp"),
        ("m.gguf", "o.gguf", "a.yaml:5:11: source", "no such thing"),
        ("512", "4096", "a.yaml:7:5: config", "2048"),
        (
            "  config:",
            "  routing: {strategy: leest-loaded}\n  config:",
            "a.yaml:6:23:",
            "least-loaded",
        ),
    ],
)
def test_an_edit_that_means_nothing_here_is_refused_with_its_place(
    home: Home, before: str, after: str, place: str, words: str
) -> None:
    said: list[str] = []
    files = looked_at(home, TEXT, TEXT.replace(before, after), said=said)
    one = files.written()["a"]
    assert one.model.spec.config == {"contextTokens": 512}
    assert (one.model.spec.backend, one.model.spec.source) == ("llamacpp", "file:///m.gguf")
    assert place in one.fault and words in one.fault
    assert said == [one.fault]


def test_an_edit_to_what_is_not_built_yet_is_taken(home: Home) -> None:
    files = looked_at(home, TEXT, TEXT.replace("m.gguf", "n.gguf"))
    assert files.written()["a"].model.spec.source == "file:///n.gguf"


def test_a_refused_edit_is_taken_once_it_means_something(home: Home) -> None:
    is_there = False

    def found(source: str) -> EngineArtifact | None:
        return None if is_there else offered(source)

    check = lambda one: edit_problems(ENGINES.get, one, found)  # noqa: E731
    files = ModelFiles(home.models, check=check)
    for text in (TEXT, TEXT.replace("m.gguf", "later.gguf")):
        (home.models / "a.yaml").write_text(text, "utf-8")
        files.scan()
        files.scan()
    assert not files.reconsider()
    assert files.written()["a"].model.spec.source == "file:///m.gguf"
    is_there = True
    assert files.reconsider()
    assert files.written()["a"].model.spec.source == "file:///later.gguf"
    assert files.written()["a"].fault == ""


def test_the_file_that_was_there_first_keeps_the_name(home: Home) -> None:
    said: list[tuple[str, bool]] = []
    files = ModelFiles(home.models, on_fault=lambda *told: said.append(told))
    (home.models / "b.yaml").write_text(TEXT, "utf-8")
    files.scan()
    files.written()
    (home.models / "a.yaml").write_text(TEXT.replace("512", "1024"), "utf-8")
    files.scan()
    one = files.written()["a"]
    assert one.file.name == "b.yaml"
    assert "a.yaml: Model 'a' is defined in" in one.fault
    files.written()
    assert said == [(one.fault, True)]


def test_a_new_file_that_is_refused_has_no_old_state(home: Home) -> None:
    said: list[tuple[str, bool]] = []
    files = ModelFiles(home.models, on_fault=lambda *told: said.append(told))
    (home.models / "a.yaml").write_text("kind: Model\n", "utf-8")
    files.scan()
    files.scan()
    assert [has_old_state for _, has_old_state in said] == [False]


def test_a_file_that_is_refused_at_the_start_holds_what_an_earlier_operator_knew(
    home: Home,
) -> None:
    (good,) = looked_at(home, TEXT).written().values()
    (home.models / "a.yaml").write_text(TEXT.replace("spec:", "spec: {"), "utf-8")
    asked: list[str] = []

    def recall(name: str) -> Model | None:
        asked.append(name)
        return good.model if name == "a.yaml" else None

    files = ModelFiles(home.models, recall=recall)
    files.scan()
    files.scan()
    one = files.written()["a"]
    assert one.model == good.model
    assert "a.yaml:6:" in one.fault
    assert asked == ["a.yaml"]
    assert files.is_whole
