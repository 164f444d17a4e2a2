"""What `up` starts, and when it starts it again. Pure."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flexinfer.errors import InvalidInput
from flexinfer.programs import BUILD, OPERATOR, PREFECT_SERVER, ROUTER, Reads
from flexinfer.settings import Settings

# A child that ends more often than this within the window will not get better by itself.
MAX_EXITS = 5
WINDOW_S = 60.0
_FIRST_DELAY_S = 0.5
_LONGEST_DELAY_S = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """One child of `up`."""

    name: str
    argv: tuple[str, ...]
    """Behind `python -m flexinfer`."""
    is_essential: bool
    """Without it there is nothing to use: `up` ends when it cannot be kept running."""
    reads: Reads
    """What it gets of the environment."""
    grace_s: float = 7.0
    is_last_to_end: bool = False
    """It ends when the others have: they use it until then."""


def services(settings: Settings, environ: Mapping[str, str]) -> tuple[Service, ...]:
    """Return what to start, in order. A Prefect server of the user's own is used, not started."""
    found = [
        Service(
            name="operator",
            argv=("operator", "--local"),
            is_essential=True,
            reads=OPERATOR,
            # Its engines write the answers that the router drains.
            is_last_to_end=True,
        ),
        Service(
            name="serve",
            argv=("serve",),
            is_essential=True,
            reads=ROUTER,
            grace_s=drain_s(settings) + 2.0,
        ),
    ]
    if settings.prefect.enabled:
        if "PREFECT_API_URL" not in environ:
            found.append(
                Service(
                    name="prefect",
                    argv=("pipelines", "server"),
                    is_essential=False,
                    reads=PREFECT_SERVER,
                )
            )
        found.append(
            Service(
                name="pipelines",
                argv=("pipelines",),
                is_essential=False,
                reads=BUILD,
            )
        )
    return tuple(found)


def drain_s(settings: Settings) -> float:
    """Return how long the router goes on at most once it was told to end, in seconds."""
    return settings.serve.drain_delay_s + settings.serve.drain_timeout_s


def command(service: Service) -> tuple[str, ...]:
    """Return the argv of *service*. `-P` keeps the working folder out of the module path."""
    return (sys.executable, "-P", "-m", "flexinfer", *service.argv)


def restart_delay_s(exits_s: Sequence[float], *, now_s: float, code: int = 1) -> float | None:
    """Return how long to wait before the next start; None: give up.

    *exits_s*: when it ended by itself, ascending, the last one included. *code*: how it ended the last time; what
    was refused as bad input stays bad.
    """
    if code == InvalidInput.exit_code:
        return None
    recent = [at for at in exits_s if now_s - at <= WINDOW_S]
    if len(recent) > MAX_EXITS:
        return None
    return float(min(_FIRST_DELAY_S * 2 ** max(0, len(recent) - 1), _LONGEST_DELAY_S))
