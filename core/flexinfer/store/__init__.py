"""The content-addressed store: ingest, verification, leases, repair, on an OCI image layout."""

from flexinfer.oci.durable import Errand
from flexinfer.store.checkout import Checkout
from flexinfer.store.garbage import Sweep
from flexinfer.store.statements import Evidence
from flexinfer.store.store import Collected, ScrubReport, Store
from flexinfer.store.verify import VerifyFailure, VerifyReport, VerifyResult

__all__ = [
    "Checkout",
    "Collected",
    "Errand",
    "Evidence",
    "ScrubReport",
    "Store",
    "Sweep",
    "VerifyFailure",
    "VerifyReport",
    "VerifyResult",
]
