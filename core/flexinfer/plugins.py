"""One way to extend FlexInfer: entry points, loaded by name when first asked for."""

from __future__ import annotations

import difflib
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

from flexinfer.errors import PluginError, PluginNotInstalled, UnknownPlugin

T = TypeVar("T")


def names(group: str) -> tuple[str, ...]:
    """Return every name published under *group*, sorted. Imports nothing."""
    return tuple(sorted(entry_points(group=group).names))


def load(group: str, name: str) -> Any:
    """Import and return what *group* publishes as *name*.

    Raises:
        UnknownPlugin: nothing is published under that name.
        PluginNotInstalled: it is published, but one of its dependencies is missing.
    """
    points: dict[str, EntryPoint] = {p.name: p for p in entry_points(group=group)}
    if name not in points:
        known = ", ".join(sorted(points)) or "none"
        raise UnknownPlugin(
            f"no {group} plug-in named {name!r} (known: {known}){nearest(name, points)}"
        )
    try:
        return points[name].load()
    except ModuleNotFoundError as error:
        if error.name and error.name.split(".")[0].startswith("flexinfer"):
            raise  # our own module is missing: a bug, not an extra that is absent
        raise PluginNotInstalled(f"{group}:{name} needs {error.name!r}") from error


def nearest(name: str, known: Any) -> str:
    """Return `; did you mean 'x'?` for the closest of *known*, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


class Registry(Generic[T]):
    """The classes published under one group, each a subclass of *base*."""

    def __init__(self, group: str, base: type[T]) -> None:
        self.group = group
        self._base = base

    def names(self) -> tuple[str, ...]:
        return names(self.group)

    def get(self, name: str) -> type[T]:
        """Return the class called *name*.

        Raises:
            UnknownPlugin, PluginNotInstalled: as `load`.
            PluginError: what is published is not a subclass of the base.
        """
        found: Any = load(self.group, name)
        if not (isinstance(found, type) and issubclass(found, self._base)):
            raise PluginError(f"{self.group}:{name} is not a {self._base.__name__}")
        return found
