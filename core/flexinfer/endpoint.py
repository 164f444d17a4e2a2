"""Where this machine's own programs ask its router, and with which key."""

from __future__ import annotations

from dataclasses import dataclass

from flexinfer.places import Home
from flexinfer.process import holder
from flexinfer.settings import Settings

KEY_ADVICE = "set FLEXINFER_SERVE__API_KEYS as `flexinfer up` has it"
"""What mends `invalid_api_key` where the settings' key was sent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """The router: *url* is what an OpenAI client is given (`…/v1`), *headers* hold the key, if there is one."""

    url: str
    headers: dict[str, str]
    is_up: bool
    """Whether `flexinfer up` runs in this home: *url* is where it listens, whatever the settings say here."""


def find_endpoint(home: Home, settings: Settings) -> Endpoint:
    """Return where the `flexinfer up` of *home* listens, or, where none runs, what the settings say."""
    running = holder(home.up_lock)
    told = running.get("address") if running else None
    return Endpoint(
        url=str(told or settings.serve.base_url),
        headers=settings.serve.authorization,
        is_up=running is not None,
    )
