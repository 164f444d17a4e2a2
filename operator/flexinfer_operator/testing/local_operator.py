"""An operator in a process of its own, with the small engine: for tests that kill it.

python -m flexinfer_operator.testing.local_operator HOME
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from flexinfer import log
from flexinfer.clock import Clock
from flexinfer.places import Home
from flexinfer.settings import LogSection, Settings
from flexinfer.testing.local_engine import lookup
from flexinfer_operator.local.cluster import LocalCluster
from flexinfer_operator.local.run import run_local
from flexinfer_operator.testing.world import ThisPython


def _made(home: Home, settings: Settings, clock: Clock) -> LocalCluster:
    return LocalCluster(home, settings, clock, engines=lookup, tools=ThisPython())


def main(home: Path) -> None:
    log.configure(LogSection())
    asyncio.run(run_local(Home(home).prepare(), Settings(), make=_made))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
