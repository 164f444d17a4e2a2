"""Have it at hand: on one machine, the folder that an engine will be given."""

from __future__ import annotations

from flexinfer.oci import Digest
from flexinfer.oci.layout_target import in_thread
from flexinfer_pipelines.steps import Context


async def warm(context: Context, digest: Digest) -> None:
    """Check the artifact out once, so that the first start finds its folder made.

    Raises:
        IntegrityError: what was just published is not whole.
    """
    lease = await in_thread(context.store.checkout, digest)
    lease.close()
