"""Whether the router would let strangers in. Pure."""

from __future__ import annotations

import ipaddress

from flexinfer.errors import InvalidInput
from flexinfer.settings import ServeSection

_LOOPBACK_NAMES = frozenset({"localhost", "localhost.localdomain", "ip6-localhost"})


def is_loopback(host: str) -> bool:
    """Return whether *host* names this machine only."""
    name = host.strip("[]").rstrip(".").lower()
    if name in _LOOPBACK_NAMES or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def check(section: ServeSection) -> None:
    """Refuse settings that would let strangers in.

    Raises:
        InvalidInput: code `bind_without_keys`.
    """
    for name, host in (("HOST", section.host), ("ADMIN_HOST", section.admin_host)):
        if not is_loopback(host) and not section.api_keys:
            raise InvalidInput(
                f"FLEXINFER_SERVE__{name}={host} lets other machines in without a key; "
                "set FLEXINFER_SERVE__API_KEYS, or listen on 127.0.0.1",
                code="bind_without_keys",
            )
