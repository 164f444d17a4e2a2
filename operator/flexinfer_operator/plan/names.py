"""Who may be called what: revisions, replicas, aliases."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from flexinfer_operator.plan.view import ModelView


def revision_of(view: ModelView) -> str:
    """Return the hash of what makes a replica: the artifact's digest, the engine, its config and its hardware.

    What only the operator or the router reads, such as `idleTimeout`, changes no running replica.
    """
    spec = view.model.spec
    parts = {
        "digest": view.bound.digest,
        "backend": spec.backend,
        "config": spec.config,
        "gpu": [spec.gpu.vendor, spec.gpu.count],
    }
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def replica_name(view: ModelView, revision: str) -> str:
    """Return the next replica's name: the same for the same picture, so that it is never started twice."""
    return f"{view.name}-{revision[:6]}-{view.starts + 1}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Aliases:
    """What each Model is called beside its name, and what it may not be called."""

    kept: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    conflicts: Mapping[str, str] = field(default_factory=dict)
    """One sentence for each Model that lost an alias."""


def share_aliases(models: Sequence[ModelView]) -> Aliases:
    """Return each Model's aliases. A name wins over an alias; of two equal aliases the older Model's wins."""
    owners = {view.name: view.name for view in models}
    kept: dict[str, tuple[str, ...]] = {}
    conflicts: dict[str, str] = {}
    for view in sorted(models, key=lambda view: (view.created_unix_s, view.name)):
        mine: list[str] = []
        lost: list[str] = []
        for alias in view.model.spec.aliases:
            owner = owners.setdefault(alias, view.name)
            if owner == view.name:
                if alias != view.name and alias not in mine:
                    mine.append(alias)
            else:
                lost.append(f"alias {alias!r} is taken by Model {owner!r}")
        kept[view.name] = tuple(mine)
        if lost:
            conflicts[view.name] = "; ".join(lost)
    return Aliases(kept=kept, conflicts=conflicts)
