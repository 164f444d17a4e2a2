"""What a look at this machine finds: the Models as written, and what each is bound to by now.

A change counts as seen once every Model was bound after it. One that cannot be bound fails alone, and is tried again
at every look.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from flexinfer.errors import FlexInferError
from flexinfer.fleet import Failure
from flexinfer.log import get_logger
from flexinfer.resources.model import ModelStatus
from flexinfer_operator.local.binding import Binder, Binding
from flexinfer_operator.local.models import ModelFiles, WrittenModel
from flexinfer_operator.plan.view import Bound, EngineFacts

log = get_logger(__name__)

# Looks in a row that may fail before a Model that was bound well is called unreadable.
PATIENCE = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """*bindings* holds the Models that were bound anew; what is absent stays as it is."""

    written: Mapping[str, WrittenModel]
    bindings: Mapping[str, Binding]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Good:
    source: str
    engine: EngineFacts


@dataclass(slots=True, kw_only=True)
class _Trouble:
    looks: int = 0
    message: str = ""


@dataclass(slots=True, kw_only=True)
class Sight:
    """See the module. For one event loop, one look at a time."""

    files: ModelFiles
    binder: Binder
    _is_stale: bool = True
    _good: dict[str, _Good] = field(default_factory=dict)
    """By Model: the last time that it was bound without trouble."""
    _troubles: dict[str, _Trouble] = field(default_factory=dict)

    async def look(
        self,
        status: Callable[[str], ModelStatus | None],
        *,
        with_catalog: bool,
        is_asked: bool,
    ) -> Seen | None:
        """Return what is different, or None where nothing is and *is_asked* is not set.

        *status* tells what a Model was bound to before.
        """
        await asyncio.to_thread(self._notice, with_catalog)
        is_whole = self._is_stale or is_asked
        if not is_whole and not self._troubles:
            return None
        written = self.files.written()
        self._forget_others(written)
        wanted = {n: w for n, w in written.items() if is_whole or n in self._troubles}
        statuses = {name: status(name) for name in wanted}
        found = await asyncio.to_thread(
            lambda: {name: self._bind(one, statuses[name]) for name, one in wanted.items()}
        )
        if is_whole:
            self._is_stale = False
        bindings = {name: one for name, one in found.items() if one is not None}
        return Seen(written=written, bindings=bindings)

    def _notice(self, with_catalog: bool) -> None:
        # Each is kept at once: the other may fail.
        if self.files.scan():
            self._is_stale = True
        if self.binder.has_news(with_catalog=with_catalog):
            self._is_stale = True
            self.files.reconsider()

    def _forget_others(self, written: Mapping[str, WrittenModel]) -> None:
        self.binder.keep_only(written)
        for known in (self._good, self._troubles):
            for name in known.keys() - written.keys():
                known.pop(name, None)

    def _bind(self, one: WrittenModel, status: ModelStatus | None) -> Binding | None:
        """Return what *one* is bound to; None: it cannot be said now, and what was said last is fresh enough."""
        name, source = one.model.metadata.name, one.model.spec.source
        try:
            binding = self.binder.bind(one.model, status)
        except FlexInferError as error:
            failure = Failure(code=error.code, message=error.message)
        except OSError as error:
            failure = Failure(code="store_unreadable", message=f"{source}: {error}")
        except Exception as error:
            log.error("bind_failed", model=name, exc_info=error)
            message = f"{source}: {type(error).__name__}: {error}"
            failure = Failure(code="store_unreadable", message=message)
        else:
            self._troubles.pop(name, None)
            self._good[name] = _Good(source=source, engine=binding.engine)
            return binding
        trouble = self._troubles.setdefault(name, _Trouble())
        trouble.looks += 1
        if trouble.message != failure.message:
            trouble.message = failure.message
            log.warning("model_not_bound", model=name, code=failure.code, error=failure.message)
        good = self._good.get(name)
        if good is not None and good.source == source and trouble.looks < PATIENCE:
            return None
        # What its engine offers is still so: replicas that run go on answering.
        engine = EngineFacts() if good is None else good.engine
        return Binding(bound=Bound(unreadable=failure), engine=engine)
