"""Where the router learns of the fleet, and where it says what it wants of it.

The router keeps its last snapshot while its source is gone. A source without a sink can wake nothing.
"""

from __future__ import annotations

from typing import Protocol

from flexinfer.fleet import DemandLease, FleetSnapshot


class FleetListener(Protocol):
    """What a source tells."""

    def applied(self, snapshot: FleetSnapshot) -> None:
        """Take a complete snapshot, newer than the last one."""
        ...

    def connected(self, is_connected: bool) -> None:
        """Take that the source is reached, or no longer."""
        ...


class FleetSource(Protocol):
    async def run(self, listener: FleetListener) -> None:
        """Tell *listener* of every change, until cancelled. Survives every fault of the source."""
        ...


class DemandSink(Protocol):
    def renew(self, lease: DemandLease) -> None:
        """Send *lease* soon. Never waits; of two leases for one Model the later one counts.

        What a lease tells only once, its first tokens, is not lost with the earlier one.
        """
        ...
