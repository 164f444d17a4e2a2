"""What a client's headers say of its request's way: how long it waits, and where it would like to go."""

from __future__ import annotations

import math

from flexinfer.errors import InvalidInput
from flexinfer.units import parse_duration_s
from flexinfer_serving.client import Client
from flexinfer_serving.routing import Route

_MAX_KEY_CHARS = 128


def patience_s(client: Client) -> float:
    """Return how long the caller waits; infinity where it does not say.

    Raises:
        InvalidInput: with `param` `X-Request-Deadline`.
    """
    header = client.header(b"x-request-deadline")
    if header is None:
        return math.inf
    try:
        return parse_duration_s(header.strip())
    except InvalidInput as error:
        raise InvalidInput(
            f"X-Request-Deadline: expected seconds, found {header[:32]!r}",
            code="invalid_value",
            param="X-Request-Deadline",
        ) from error


def route(client: Client) -> Route:
    """Return the keys that may steer the request."""
    session = client.header(b"x-session-id") or client.header(b"x-conversation-id")
    return Route(session=_key(session), cache_key=_key(client.header(b"x-flexinfer-cache-key")))


def _key(value: str | None) -> str:
    """Return a routing key; one that is too long or not printable is as good as none."""
    return value if value and len(value) <= _MAX_KEY_CHARS and value.isprintable() else ""
