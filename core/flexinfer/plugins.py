"""One way to extend FlexInfer: entry points, loaded by name when first asked for."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

from flexinfer.errors import PluginError, PluginNotInstalled, UnknownPlugin
from flexinfer.spelling import nearest as nearest

T = TypeVar("T")

_OURS = ("flexinfer", "flexinfer_pipelines", "flexinfer_serving", "flexinfer_operator")


def names(group: str) -> tuple[str, ...]:
    """Return every name published under *group*, sorted. Imports nothing."""
    return tuple(sorted(entry_points(group=group).names))


def load(group: str, name: str) -> Any:
    """Import and return what *group* publishes as *name*.

    Raises:
        UnknownPlugin: nothing is published under that name.
        PluginNotInstalled: it is published, but one of its dependencies is missing.
        PluginError: its module does not hold what the entry point names.
    """
    points: dict[str, EntryPoint] = {p.name: p for p in entry_points(group=group)}
    if name not in points:
        known = ", ".join(sorted(points)) or "none"
        raise UnknownPlugin(
            f"no {group} plug-in named {name!r} (known: {known}){nearest(name, points)}"
        )
    point = points[name]
    try:
        found: Any = import_module(point.module)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in _OURS:
            raise  # our own module is missing: a bug, not an extra that is absent
        raise PluginNotInstalled(f"{group}:{name} needs {error.name or str(error)!r}") from error
    for attribute in filter(None, point.attr.split(".")):
        if not hasattr(found, attribute):
            raise PluginError(f"{group}:{name}: {point.module} has no {point.attr!r}")
        found = getattr(found, attribute)
    return found


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
