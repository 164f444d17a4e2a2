"""An edit that only the engine refuses keeps the old state as one that is no Model does."""

from __future__ import annotations

from flexinfer.engine import ENGINES
from flexinfer.places import Home
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


def looked_at(home: Home, *texts: str) -> ModelFiles:
    """Return what is known after each of *texts* was there for two looks."""
    files = ModelFiles(home.models, check=lambda found: edit_problems(ENGINES.get, found))
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


def test_an_engine_that_is_not_here_refuses_nothing(home: Home) -> None:
    text = TEXT.replace("  config:", "  backend: nowhere\n  config:")
    files = looked_at(home, TEXT, text)
    assert files.written()["a"].model.spec.backend == "nowhere"
