"""Builds that run, whoever started them: read from the records that they keep in `Home.build_records`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from flexinfer.places import Home
from flexinfer.process import living


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningBuild:
    pid: int
    target: str
    stage: str
    """Empty: none has begun."""
    share: float | None
    """Of the stage, 0 to 1; None: it does not say."""

    @property
    def words(self) -> str:
        share = "" if self.share is None else f" {self.share:.0%}"
        return f"building {self.target}: {self.stage or 'starting'}{share}"

    def as_tree(self) -> dict[str, Any]:
        return {"target": self.target, "stage": self.stage, "share": self.share}


def running_builds(home: Home) -> tuple[RunningBuild, ...]:
    """Return the builds that run. A record that makes no sense is left out, and so is a share that is none."""
    return tuple(
        RunningBuild(
            pid=record.pid,
            target=record.extra.get("target", ""),
            stage=record.extra.get("stage", ""),
            share=_share(record.extra.get("share", "")),
        )
        for record in living(home.build_records)
    )


def _share(text: str) -> float | None:
    try:
        share = float(text)
    except ValueError:
        return None
    return share if math.isfinite(share) and 0.0 <= share <= 1.0 else None
