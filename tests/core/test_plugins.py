"""Plug-ins: found by name, imported when asked for, refused in words."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from flexinfer import plugins
from flexinfer.errors import PluginError, PluginNotInstalled, UnknownPlugin

GROUP = "flexinfer.test_things"


class Thing:
    """What the group's plug-ins derive from."""


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A distribution with entry points, as pip would leave it on disk."""
    about = tmp_path / "acme-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(
        f"[{GROUP}]\n"
        "good = acme_things:Good\n"
        "inner = acme_things:Box.inner\n"
        "stranger = acme_things:Stranger\n"
        "gone = acme_things:Gone\n"
        "needy = acme_needy:Needy\n"
        "absent = flexinfer_acme_absent:Absent\n"
        "ours = flexinfer.not_there:Ours\n"
    )
    (tmp_path / "acme_things.py").write_text(
        "import sys\n"
        "Thing = next(m.Thing for n, m in sys.modules.items() if n.endswith('test_plugins'))\n"
        "class Good(Thing): pass\n"
        "class Stranger: pass\n"
        "class Box:\n    inner = Good\n"
    )
    (tmp_path / "acme_needy.py").write_text("import torch_that_is_not_here\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    for name in ("acme_things", "acme_needy"):
        sys.modules.pop(name, None)


pytestmark = pytest.mark.usefixtures("published")


def registry() -> plugins.Registry[Thing]:
    return plugins.Registry(GROUP, Thing)


def test_names_are_listed_without_importing_anything() -> None:
    assert registry().names() == ("absent", "gone", "good", "inner", "needy", "ours", "stranger")
    assert "acme_things" not in sys.modules


def test_a_class_is_imported_when_it_is_asked_for() -> None:
    assert issubclass(registry().get("good"), Thing)
    assert registry().get("inner") is registry().get("good")


def test_an_unknown_name_lists_the_known_and_the_nearest() -> None:
    with pytest.raises(UnknownPlugin, match=r"known: absent, .*did you mean 'good'\?") as refused:
        registry().get("godo")
    assert refused.value.code == "unknown_plugin"


def test_a_missing_dependency_is_named() -> None:
    with pytest.raises(PluginNotInstalled, match="needs 'torch_that_is_not_here'") as refused:
        registry().get("needy")
    assert refused.value.code == "plugin_not_installed"


def test_a_missing_module_of_another_distribution_is_not_our_bug() -> None:
    with pytest.raises(PluginNotInstalled, match="flexinfer_acme_absent"):
        registry().get("absent")


def test_a_missing_module_of_our_own_is_a_bug_and_shows_as_one() -> None:
    with pytest.raises(ModuleNotFoundError, match=r"flexinfer\.not_there"):
        registry().get("ours")


def test_a_name_that_the_module_lacks_is_a_broken_contract() -> None:
    with pytest.raises(PluginError, match="acme_things has no 'Gone'"):
        registry().get("gone")


def test_what_is_not_of_the_base_is_a_broken_contract() -> None:
    with pytest.raises(PluginError, match="stranger is not a Thing"):
        registry().get("stranger")


def test_an_empty_group_says_that_nothing_is_known() -> None:
    with pytest.raises(UnknownPlugin, match="known: none"):
        plugins.load("flexinfer.nothing", "x")
