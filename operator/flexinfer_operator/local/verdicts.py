"""Builds that ended well, until a look that began after their end says what they left.

A look that was under way may have bound their Models before, and proves nothing. Until one does, a build counts as
running, so that those who wait are held.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from dataclasses import replace

from flexinfer_operator.local.builds import Builder
from flexinfer_operator.local.shelf import Known
from flexinfer_operator.plan.view import Builds


class Verdicts:
    """By source. For one event loop."""

    def __init__(self, builder: Builder) -> None:
        self._builder = builder
        self._unseen: set[str] = set()

    def ended(self, source: str) -> None:
        """Note that a build ended well."""
        self._unseen.add(source)

    def unseen(self) -> frozenset[str]:
        """Return the sources that the next look judges; to be taken before it begins."""
        return frozenset(self._unseen)

    def state(self, source: str) -> Builds:
        builds = self._builder.state(source)
        return replace(builds, is_running=True) if source in self._unseen else builds

    def settle(
        self, unseen: Iterable[str], models: Iterable[Known], *, bound: Container[str]
    ) -> tuple[str, ...]:
        """Judge *unseen* by the *models* that a look *bound*; return the sources of which it told anything."""
        living = [one for one in models if not one.is_deleted]
        settled: list[str] = []
        for source in unseen:
            named = [one for one in living if one.model.spec.source == source]
            told = [
                one.bound for one in named if one.name in bound and one.bound.unreadable is None
            ]
            if named and not told:
                continue  # the disk or the store refuses: the next look may tell
            self._unseen.discard(source)
            settled.append(source)
            if told and not told[0].is_cached:
                why = told[0].damage or f"nothing is published as {told[0].reference}"
                self._builder.ended_incomplete(source, why)
        return tuple(settled)
