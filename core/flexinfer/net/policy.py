"""Who may be talked to: hosts that are allowed, addresses that are refused. Pure.

A host is allowed because a source names it as its own (`hosts`: public, https only) or because the user
configured it (`configured`: their mirror, their package index, a test's loopback server), and then at any
address and with plain http if that is what they configured. A redirect changes nothing: each hop is checked.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from flexinfer.errors import InvalidInput

_PORTS = {"http": 80, "https": 443}
_MAX_URL = 8192
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Scheme, host (lower case, no final dot) and port of a URL."""

    scheme: str
    host: str
    port: int

    @property
    def address(self) -> tuple[str, int]:
        return self.host, self.port

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if self.port == _PORTS[self.scheme] else f":{self.port}"
        return f"{self.scheme}://{host}{port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Which origins a client may ask."""

    hosts: tuple[str, ...] = ()
    """`example.org`, or `*.example.org` for what is below it: https on port 443, global addresses."""
    configured: frozenset[Origin] = frozenset()
    """Named by the user: exactly these, wherever they are."""

    @classmethod
    def of(cls, hosts: Iterable[str], *, configured: Iterable[str] = ()) -> Policy:
        """Return the policy for host patterns and for URLs that the user configured."""
        return cls(
            hosts=tuple(hosts),
            configured=frozenset(origin_of(url, userinfo=True) for url in configured),
        )

    def check(self, url: str) -> Origin:
        """Return the origin of *url* if it may be asked.

        Raises:
            InvalidInput: code `source_not_allowed`.
        """
        origin = origin_of(url)
        if origin in self.configured:
            return origin
        if origin.scheme != "https" or origin.port != 443:
            raise _refused(str(origin), "https on port 443, or an address that you configured")
        if not any(_matches(origin.host, pattern) for pattern in self.hosts):
            known = ", ".join([*self.hosts, *sorted(str(one) for one in self.configured)])
            raise _refused(origin.host, f"one of: {known or 'no host is allowed'}")
        if literal_address(origin.host) is not None:
            check_addresses(origin.host, [origin.host])
        return origin

    def is_configured(self, host: str, port: int) -> bool:
        """Return whether the user named this host and port, so that its address is theirs to choose."""
        return any(one.address == (host, port) for one in self.configured)


def origin_of(url: str, *, userinfo: bool = False) -> Origin:
    """Return the origin of an http or https URL.

    Raises:
        InvalidInput: code `source_not_allowed`: another scheme, a user part, no host, control characters.
    """
    if len(url) > _MAX_URL or any(ord(c) <= 32 or ord(c) == 127 for c in url) or "\\" in url:
        raise _refused(url[:80], f"a URL of at most {_MAX_URL} characters without blanks")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise _refused(url[:80], f"a URL ({error})") from error
    scheme = parts.scheme.lower()
    if scheme not in _PORTS or not host:
        raise _refused(f"{scheme or url[:80]!r}", "an http or https URL with a host")
    if not userinfo and (parts.username is not None or parts.password is not None):
        raise _refused(host, "no user or password in the URL")
    try:
        ascii_host = host.rstrip(".").encode("idna").decode().lower() if ":" not in host else host
    except UnicodeError as error:
        raise _refused(host[:80], "a host name") from error
    return Origin(scheme=scheme, host=ascii_host, port=_PORTS[scheme] if port is None else port)


def check_addresses(host: str, addresses: Sequence[str]) -> None:
    """Refuse *host* if any of its *addresses* is not on the public internet.

    All of them must be: an answer that mixes public and private ones is an attack or a mistake.

    Raises:
        InvalidInput: code `source_not_allowed`, naming the address.
    """
    for text in addresses:
        address = literal_address(text)
        if address is None or not _is_global(address):
            raise _refused(f"{host} at {text}", "a public address, or a host that you configured")


def literal_address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return the address that *text* spells; None for a name."""
    try:
        return ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None


def _is_global(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if inner is None and address.teredo is not None:
            inner = address.teredo[1]
        if inner is None and address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return _is_global(inner)
    return address.is_global and not (
        address.is_multicast
        or address.is_private
        or address.is_reserved
        or address.is_unspecified
        or address.is_loopback
        or address.is_link_local
    )


def _matches(host: str, pattern: str) -> bool:
    if pattern.startswith("*."):
        return host.endswith(pattern[1:]) and len(host) > len(pattern) - 1
    return host == pattern


def _refused(found: str, expected: str) -> InvalidInput:
    return InvalidInput(
        f"{found}: not allowed; expected {expected}", code="source_not_allowed", param="source"
    )
