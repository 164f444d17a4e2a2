"""What the commands say of Models agrees with what the operator holds."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from flexinfer.errors import InvalidInput
from flexinfer.places import Home
from flexinfer_operator.local.overview import overview
from flexinfer_operator.plan.view import ModelView, Snapshot
from flexinfer_operator.testing.world import LocalWorld

Play = Callable[..., None]


def tiny(picture: Snapshot) -> ModelView | None:
    return next((view for view in picture.models if view.name == "tiny"), None)


async def refused(world: LocalWorld) -> None:
    """Wait until the operator keeps an old state, and has written so."""

    def is_told(picture: Snapshot) -> bool:
        view = tiny(picture)
        status = None if view is None else view.status
        return status is not None and any(c.reason == "EditRefused" for c in status.conditions)

    await world.until("a refused edit", is_told)


def test_a_copy_that_sorts_first_takes_no_model_not_even_over_a_restart(
    play: Play, home: Home
) -> None:
    async def first(world: LocalWorld) -> None:
        await world.put("tiny", aliases=["old"])
        text = (home.models / "tiny.yaml").read_text().replace("old", "new")
        (home.models / "a.yaml").write_text(text)
        await refused(world)

    async def second(world: LocalWorld) -> None:
        view = tiny(await world.until("tiny", lambda picture: tiny(picture) is not None))
        assert view is not None and view.model.spec.aliases == ("old",)
        await refused(world)

    def shown() -> None:
        (one,) = overview(home).models
        assert (one.file.name, one.aliases) == ("tiny.yaml", ("old",))
        assert "a.yaml: Model 'tiny' is defined in" in one.fault

    play(first)
    shown()
    play(second)
    shown()


def test_what_the_operator_refuses_is_not_shown_as_in_force(play: Play, home: Home) -> None:
    async def scene(world: LocalWorld) -> None:
        await world.put("tiny", aliases=["old"])
        file = home.models / "tiny.yaml"
        text = file.read_text().replace("old", "new")
        assert '"spec": {' in text
        text = text.replace('"spec": {', '"spec": {"config": {"slotz": 3}, ')
        file.write_text(text)
        await refused(world)

    play(scene)
    (one,) = overview(home).models
    assert one.model is not None and "slotz" not in one.model.spec.config
    assert one.aliases == ("old",)
    assert "slotz" in one.fault


def test_a_deleted_model_is_shown_until_its_engine_has_ended(play: Play, home: Home) -> None:
    async def scene(world: LocalWorld) -> None:
        await world.put("tiny", serverless={"minReplicas": 1})
        await world.ready("tiny")
        await world.remove("tiny")  # the router of this world does not say that it let go
        (one,) = overview(home).models
        assert (one.name, one.is_deleted, len(one.replicas)) == ("tiny", True, 1)
        assert one.message.startswith("deleted: ")

    play(scene)
    assert overview(home).models == ()


def test_models_that_cannot_be_listed_are_those_that_the_operator_knew(
    play: Play, home: Home
) -> None:
    async def scene(world: LocalWorld) -> None:
        await world.put("tiny")

    play(scene)
    home.models.rename(home.models.with_name("aside"))
    home.models.write_text("no folder")
    (one,) = overview(home).models
    assert (one.name, one.file.name) == ("tiny", "tiny.yaml")
    assert one.fault == f"{home.models}: Not a directory"


def test_models_that_cannot_be_listed_and_were_never_known_are_an_error(home: Home) -> None:
    home.models.rmdir()
    home.models.write_text("no folder")
    with pytest.raises(InvalidInput, match="Not a directory"):
        overview(home)
