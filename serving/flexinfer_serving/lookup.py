"""Find the Model that a request names."""

from __future__ import annotations

from flexinfer.errors import NotFound, Unavailable
from flexinfer.fleet import FleetModel, FleetSnapshot
from flexinfer.spelling import nearest

_MAX_SHOWN = 128


def find(snapshot: FleetSnapshot | None, name: str) -> FleetModel:
    """Return the Model of that name or alias.

    Raises:
        NotFound: code `model_not_found`, with the closest name.
        Unavailable: code `fleet_unknown`: no snapshot has come yet.
    """
    if snapshot is None:
        raise Unavailable(
            "the router has not heard of its fleet yet", code="fleet_unknown", retry_after_s=1.0
        )
    model = snapshot.find(name)
    if model is None:
        known = [one for each in snapshot.offered for one in (each.name, *each.aliases)]
        raise NotFound(
            f"there is no model {name[:_MAX_SHOWN]!r}{nearest(name, known)}",
            code="model_not_found",
            param="model",
        )
    return model
