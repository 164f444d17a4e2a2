"""The loop, one turn at a time, over a cluster in memory and a clock that the test moves."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

from flexinfer.fleet import DemandLease, Failure, FleetModel
from flexinfer.resources.model import Model
from flexinfer.testing.clock import FakeClock
from flexinfer_operator.plan.action import Action, Build
from flexinfer_operator.plan.view import Policy, ReplicaView
from flexinfer_operator.reconcile import Reconciler
from flexinfer_operator.testing.simulated import SimulatedCluster


def make_model(name: str = "tiny", **spec: Any) -> Model:
    """A Model with defaults; sections of the spec are given as plain dicts in camelCase."""
    return Model.model_validate(
        {"metadata": {"name": name}, "spec": {"source": f"catalog://{name}", **spec}}
    )


def run_now(step: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine that has no reason to wait, without a loop."""
    try:
        step.send(None)
    except StopIteration as done:
        return done.value
    step.close()
    raise AssertionError("a turn waited for something")


class Drive:
    """The loop's turns, one at a time, over a simulated cluster."""

    def __init__(self, policy: Policy | None = None) -> None:
        self.clock = FakeClock()
        self.cluster = SimulatedCluster(self.clock, policy)
        self.loop = Reconciler(self.cluster, self.clock)
        self.again_s: float | None = None

    def turn(self) -> tuple[Action, ...]:
        """Plan once; return what was done."""
        before = len(self.cluster.applied)
        self.again_s = run_now(self.loop.turn(self.cluster.observe()))
        return tuple(self.cluster.applied[before:])

    def settle(self, limit: int = 20) -> tuple[Action, ...]:
        """Turn until nothing is left to do; return all that was done."""
        done: list[Action] = []
        for _ in range(limit):
            revision = self.cluster.observe().revision
            done += self.turn()
            if self.cluster.observe().revision == revision:
                return tuple(done)
        raise AssertionError(f"still busy after {limit} turns: {done[-6:]}")

    def after(self, seconds: float) -> tuple[Action, ...]:
        self.clock.advance(seconds)
        return self.settle()

    def want(
        self,
        waiting: int = 0,
        *,
        model: str = "tiny",
        router: str = "r1",
        in_flight: dict[str, int] | None = None,
        oldest_wait_s: float = 0.0,
        idle_s: float | None = None,
        generation: int | None = None,
        ttl_s: float = 10.0,
    ) -> None:
        """A router speaks. It has applied the newest generation unless *generation* says another."""
        applied = self.cluster.publication.generation if generation is None else generation
        self.cluster.lease(
            DemandLease(
                router=router,
                model=model,
                waiting=waiting,
                oldest_wait_s=oldest_wait_s,
                in_flight=in_flight or {},
                idle_s=idle_s,
                generation=applied,
                ttl_s=ttl_s,
            ),
            connection=hash(router),
        )

    def replicas(self, model: str = "tiny") -> tuple[ReplicaView, ...]:
        return tuple(one for one in self.cluster.replicas if one.model == model)

    def only(self, model: str = "tiny") -> ReplicaView:
        found = self.replicas(model)
        assert len(found) == 1, found
        return found[0]

    def woken(self, model: str = "tiny") -> ReplicaView:
        """Wake *model* with one request and return its ready replica, with the request in flight."""
        self.want(1, model=model)
        self.settle()
        self.cluster.ready(self.only(model).id)
        self.settle()
        replica = self.only(model)
        self.want(0, model=model, in_flight={replica.id: 1})
        self.settle()
        return replica

    def told(self, model: str = "tiny") -> FleetModel:
        """What routers know of *model*."""
        fleet = self.cluster.fleet
        assert fleet is not None
        found = next((one for one in fleet.models if one.name == model), None)
        assert found is not None, f"{model} is not in the fleet"
        return found

    def failure(self, model: str = "tiny") -> Failure:
        """What those who wait for *model* are told."""
        found = self.told(model).failure
        assert found is not None, f"{model} has no failure"
        return found

    def kinds(self, actions: tuple[Action, ...]) -> list[tuple[str, str]]:
        """Return each action's kind and its replica (or source)."""
        return [
            (type(one).__name__, one.source if isinstance(one, Build) else one.replica)
            for one in actions
        ]
