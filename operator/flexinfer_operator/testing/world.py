"""Worlds to test the loop in: a cluster with hands that write Models, speak as a router, and break engines.

`LocalWorld` is this machine: real files, a real socket, real processes of a small engine. `SimulatedWorld` is memory,
with a task that does what engines would.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from flexinfer import unixsocket
from flexinfer.artifact import ANNOTATION_FORMAT, FileEntry, ModelConfig, pack, statement
from flexinfer.artifact.evidence import PREDICATE_TEST_RESULT, TestResult
from flexinfer.catalog import Catalog
from flexinfer.catalog.binding import wanted
from flexinfer.clock import SystemClock
from flexinfer.fleet import DemandLease, FleetSnapshot, lease_to_line, parse_line
from flexinfer.oci import Descriptor
from flexinfer.places import Home
from flexinfer.resources.model import Model, ModelStatus
from flexinfer.resources.source import parse_source
from flexinfer.settings import OperatorSection, Settings
from flexinfer.store import Store
from flexinfer.testing.local_engine import lookup
from flexinfer_operator.cluster import Cluster
from flexinfer_operator.local.builds import BuildCommand
from flexinfer_operator.local.cluster import LocalCluster
from flexinfer_operator.local.hearing import DEFAULT_PACE, Pace
from flexinfer_operator.plan.view import ReplicaView, Snapshot
from flexinfer_operator.reconcile import Reconciler
from flexinfer_operator.testing.simulated import SimulatedCluster

LIMIT_S = 20.0


class World(Protocol):
    """What a contract test needs of a cluster's surroundings."""

    @property
    def cluster(self) -> Cluster: ...

    async def put(self, name: str, **spec: Any) -> None:
        """Write a Model whose artifact is there; return when the cluster shows it as written."""
        ...

    async def remove(self, name: str) -> None: ...

    async def say(self, lease: DemandLease) -> None:
        """Speak as the one router; return when it was heard."""
        ...

    def told(self) -> FleetSnapshot | None:
        """Return what the router was told last."""
        ...

    async def until(self, what: str, holds: Callable[[Snapshot], bool]) -> Snapshot:
        """Return the first picture for which *holds*, within a limit."""
        ...


async def until(cluster: Cluster, what: str, holds: Callable[[Snapshot], bool]) -> Snapshot:
    """Return the first picture of *cluster* for which *holds*.

    Raises:
        AssertionError: there was none within LIMIT_S; the message shows the last one.
    """
    snapshot = cluster.observe()
    try:
        async with asyncio.timeout(LIMIT_S):
            while not holds(snapshot):
                await asyncio.sleep(0.005)
                snapshot = cluster.observe()
    except TimeoutError as error:
        raise AssertionError(f"never came: {what}; last: {snapshot}") from error
    return snapshot


def replicas_of(snapshot: Snapshot, model: str) -> tuple[ReplicaView, ...]:
    return tuple(one for one in snapshot.replicas if one.model == model)


class ThisPython:
    """The interpreter that runs the test, for engines that need nothing else."""

    def ready(self, tool: str) -> Path | None:
        return Path(sys.executable)

    async def ensure(self, tool: str) -> Path:
        return Path(sys.executable)


class SimulatedWorld:
    """Engines are ready as soon as they are started, and gone as soon as they are stopped."""

    def __init__(self) -> None:
        self.cluster = SimulatedCluster(SystemClock())
        self._work: asyncio.Task[None] | None = None

    async def __aenter__(self) -> SimulatedWorld:
        self.cluster.book.connected(1)
        self._work = asyncio.create_task(self._engines())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._work is not None
        self._work.cancel()
        await asyncio.gather(self._work, return_exceptions=True)

    async def _engines(self) -> None:
        while True:
            for one in self.cluster.replicas:
                if one.state == "loading":
                    self.cluster.ready(one.id)
                elif one.state == "stopping":
                    self.cluster.ended(one.id)
            await asyncio.sleep(0.002)

    async def put(self, name: str, **spec: Any) -> None:
        tree = {"metadata": {"name": name}, "spec": {"source": f"catalog://{name}", **spec}}
        self.cluster.put(Model.model_validate(tree))

    async def remove(self, name: str) -> None:
        self.cluster.remove(name)

    async def say(self, lease: DemandLease) -> None:
        self.cluster.lease(lease)

    def told(self) -> FleetSnapshot | None:
        return self.cluster.fleet

    async def until(self, what: str, holds: Callable[[Snapshot], bool]) -> Snapshot:
        return await until(self.cluster, what, holds)


class LocalWorld:
    """This machine, in *home*. `loop=True` runs the reconciler as well."""

    def __init__(
        self,
        home: Home,
        *,
        loop: bool = False,
        max_loaded: int = 4,
        grace_s: float = 5.0,
        build: BuildCommand | None = None,
        pace: Pace = DEFAULT_PACE,
    ) -> None:
        self.home = home
        section = OperatorSection(max_loaded_models=max_loaded, stop_grace_s=grace_s)
        more = {} if build is None else {"build": build}
        self.cluster = LocalCluster(
            home,
            Settings(operator=section),
            SystemClock(),
            engines=lookup,
            tools=ThisPython(),
            pace=pace,
            **more,
        )
        self._has_loop = loop
        self._stack = AsyncExitStack()
        self._snapshot: FleetSnapshot | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> LocalWorld:
        await self._stack.enter_async_context(self.cluster)
        reader, self._writer = await unixsocket.connect(self.cluster.socket)
        self._tasks.append(asyncio.create_task(self._listen(reader)))
        await self.until("the router", lambda picture: bool(picture.routers))
        if self._has_loop:
            work = Reconciler(self.cluster, SystemClock()).run()
            self._tasks.append(asyncio.create_task(work))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for task in reversed(self._tasks):
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await self.leave()
        await self._stack.aclose()

    async def leave(self) -> None:
        """Hang up, as a router that is gone."""
        if self._writer is not None:
            self._writer.close()
            with suppress(OSError):
                await self._writer.wait_closed()
            self._writer = None

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        while line := await _line(reader):
            said = parse_line(line)
            assert isinstance(said, FleetSnapshot)
            self._snapshot = said

    async def put(self, name: str, **spec: Any) -> None:
        text = write_model(self.home, name, **spec)
        self.cluster.look_soon()
        await self.until(
            f"{name} as written",
            lambda picture: any(
                view.name == name and not view.is_deleted and view.model == text
                for view in picture.models
            ),
        )

    async def remove(self, name: str) -> None:
        (self.home.models / f"{name}.yaml").unlink()

        def is_removed(picture: Snapshot) -> bool:
            self.cluster.look_soon()  # one look that does not find it is not enough
            return all(view.name != name or view.is_deleted for view in picture.models)

        await self.until(f"{name} removed", is_removed)

    async def say(self, lease: DemandLease) -> None:
        assert self._writer is not None
        self._writer.write(lease_to_line(lease))
        await self.until(
            "the lease", lambda picture: any(one.lease == lease for one in picture.leases)
        )

    def told(self) -> FleetSnapshot | None:
        return self._snapshot

    async def until(self, what: str, holds: Callable[[Snapshot], bool]) -> Snapshot:
        return await until(self.cluster, what, holds)

    async def phase(self, name: str, phase: str) -> ModelStatus:
        """Return the status of *name* once it has *phase*."""

        def status(picture: Snapshot) -> ModelStatus | None:
            return next((view.status for view in picture.models if view.name == name), None)

        def holds(picture: Snapshot) -> bool:
            found = status(picture)
            return found is not None and found.phase == phase

        found = status(await self.until(f"{name} {phase}", holds))
        assert found is not None
        return found

    async def ready(self, name: str, count: int = 1) -> tuple[ReplicaView, ...]:
        """Return the ready replicas of *name* once there are *count*."""

        def found(picture: Snapshot) -> tuple[ReplicaView, ...]:
            return tuple(r for r in replicas_of(picture, name) if r.state == "ready")

        picture = await self.until(f"{count} ready of {name}", lambda p: len(found(p)) == count)
        return found(picture)

    async def gone(self, name: str) -> None:
        """Return when *name* has no replica."""
        await self.until(f"no replica of {name}", lambda p: not replicas_of(p, name))


def write_model(home: Home, name: str, **spec: Any) -> Model:
    """Publish a tiny artifact for Model *name* and write its file; return what the file says."""
    source = f"file://{home.work}/{name}.gguf"
    publish(home, source, name.encode() * 10)
    return write_file(home, name, source=source, **spec)


def write_file(home: Home, name: str, **spec: Any) -> Model:
    """Write a Model's file alone, at once."""
    tree = {
        "apiVersion": "ai.flexinfer/v1alpha2",
        "kind": "Model",
        "metadata": {"name": name},
        "spec": {"backend": "scripted", **spec},
    }
    scratch = home.models / f".{name}"
    scratch.write_text(json.dumps(tree))  # JSON is YAML
    scratch.replace(home.models / f"{name}.yaml")
    return Model.model_validate(tree)


def publish(
    home: Home, source: str, data: bytes, *, evidence: TestResult | None = None
) -> Descriptor:
    """Store *data* as the artifact of *source*, as a build would, and return its manifest."""
    store = Store(home.store)
    _, _, reference = wanted(parse_source(source), Catalog(entries={}))
    digest = store.put_bytes(data)
    packed = pack(
        [FileEntry(path="model.gguf", digest=digest, size=len(data))],
        ModelConfig(architecture="llama", format="gguf", quantization="Q8_0"),
        {ANNOTATION_FORMAT: "gguf"},
    )
    descriptor = store.put_artifact(packed)
    if evidence is not None:
        said = statement(
            reference, descriptor.digest, PREDICATE_TEST_RESULT, evidence.to_predicate()
        )
        store.attest(descriptor, said)
    store.tag(reference, descriptor)
    return descriptor


async def _line(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.readline()
    except ConnectionError:
        return b""
