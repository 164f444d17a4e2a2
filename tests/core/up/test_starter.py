"""The starter's Model file: written once, whole, and a Model that means what it says."""

from __future__ import annotations

from flexinfer.places import Home
from flexinfer.resources.document import parse_document
from flexinfer.resources.model import Model
from flexinfer.up import starter


def test_an_empty_home_wants_the_starter(home: Home) -> None:
    assert starter.is_wanted(home)


def test_it_is_a_model_that_parses(home: Home) -> None:
    path = starter.write(home)
    model = parse_document(Model, path.read_text("utf-8"), str(path))
    assert model.metadata.name == starter.MODEL
    assert model.spec.source == f"catalog://{starter.TARGET}"
    assert model.spec.quality.require == "attestation"


def test_who_deletes_it_does_not_get_it_back(home: Home) -> None:
    starter.write(home).unlink()
    assert not starter.is_wanted(home)


def test_who_has_models_of_their_own_does_not_get_it(home: Home) -> None:
    (home.models / "mine.yaml").write_text("x")
    assert not starter.is_wanted(home)


def test_nothing_else_is_left_behind(home: Home) -> None:
    path = starter.write(home)
    assert {f.name for f in home.models.iterdir()} == {path.name, ".starter-written"}
    assert list(home.run.iterdir()) == []
