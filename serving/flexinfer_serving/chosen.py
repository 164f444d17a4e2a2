"""The strategy that a Model names, made safe: whatever a plug-in does wrong, traffic goes on as least-loaded."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from flexinfer.errors import FlexInferError
from flexinfer.log import get_logger
from flexinfer_serving.routing import STRATEGIES, Candidate, Choice, Route, Strategy
from flexinfer_serving.routing.least_loaded import LeastLoaded

log = get_logger(__name__)

_MAX_SHOWN = 500


class Chosen:
    """The strategies of one router's Models.

    A name is looked up once: that reads the metadata of every installed package. A fault is logged once for each
    Model and name; that a name is wrong is also the Model's condition, told by the operator.
    """

    def __init__(self, named: Callable[[str], type[Strategy]] | None = None) -> None:
        self._named = named or STRATEGIES.get
        self._made: dict[str, Strategy | Exception] = {}
        self._told: set[tuple[str, str]] = set()

    def find(self, model: str, name: str) -> Strategy:
        """Return what picks for *model*: the plug-in *name*, or least-loaded where it is of no use."""
        if name not in self._made:
            self._made[name] = self._make(name)
        made = self._made[name]
        if isinstance(made, Exception):
            self._tell(model, name, made)
            return LeastLoaded()
        if isinstance(made, LeastLoaded):
            return made
        return _Guarded(made, lambda error: self._tell(model, name, error))

    def forget(self, model: str) -> None:
        """The Model is gone."""
        self._told = {one for one in self._told if one[0] != model}

    def _make(self, name: str) -> Strategy | Exception:
        try:
            return self._named(name)()
        except Exception as error:  # a stranger's module and constructor: anything may come out
            return error

    def _tell(self, model: str, name: str, error: Exception) -> None:
        if (model, name) in self._told:
            return
        self._told.add((model, name))
        what = error.message if isinstance(error, FlexInferError) else repr(error)
        log.error("strategy_failed", model=model, strategy=name, error=what[:_MAX_SHOWN])


class _Guarded(Strategy):
    """A plug-in whose faults cost nobody a request."""

    name = "guarded"

    def __init__(self, inner: Strategy, failed: Callable[[Exception], None]) -> None:
        self._inner = inner
        self._failed = failed
        self._spare = LeastLoaded()

    def pick(self, candidates: Sequence[Candidate], route: Route) -> Choice:
        try:
            choice = self._inner.pick(candidates, route)
            if choice.replica in {one.replica for one in candidates}:
                return choice
            self._failed(ValueError(f"picked {choice.replica!r}, which is no candidate"))
        except Exception as error:  # as above
            self._failed(error)
        return self._spare.pick(candidates, route)
