"""Random histories of the loop: routers that lag, engines that crash, Models that change, one machine that is full."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from flexinfer.fleet import DemandLease, FleetSnapshot
from flexinfer_operator.plan.action import Drain, Start, Stop
from flexinfer_operator.plan.names import revision_of
from flexinfer_operator.plan.view import Policy, Silence
from flexinfer_operator.testing.drive import Drive, make_model

NAMES = ("a", "b", "c")
MAX_LOADED = 2


@dataclass
class Router:
    """What a router does: holds requests, sends them to replicas that its snapshot calls ready, tells its load."""

    name: str
    number: int
    snapshot: FleetSnapshot = field(default_factory=lambda: FleetSnapshot(generation=0))
    waiting: dict[str, int] = field(default_factory=lambda: dict.fromkeys(NAMES, 0))
    in_flight: dict[str, dict[str, int]] = field(
        default_factory=lambda: {name: {} for name in NAMES}
    )

    def dispatch(self) -> None:
        for name in NAMES:
            model = self.snapshot.find(name)
            ready = [r.id for r in model.replicas if r.phase == "ready"] if model else []
            room = {r: 4 - self.in_flight[name].get(r, 0) for r in ready}
            for replica, free in room.items():
                sent = min(free, self.waiting[name])
                self.waiting[name] -= sent
                if sent:
                    self.in_flight[name][replica] = self.in_flight[name].get(replica, 0) + sent
            if model is None or (model.failure is not None and not ready):
                self.waiting[name] = 0  # answered with the failure

    def tell(self, drive: Drive) -> None:
        for name in NAMES:
            lease = DemandLease(
                router=self.name,
                model=name,
                waiting=self.waiting[name],
                in_flight=dict(self.in_flight[name]),
                generation=self.snapshot.generation,
                ttl_s=60.0,
            )
            drive.cluster.lease(lease, connection=self.number)

    def uses(self, replica: str) -> bool:
        return any(flights.get(replica, 0) for flights in self.in_flight.values())

    def may_choose(self, replica: str) -> bool:
        return any(
            r.id == replica and r.phase == "ready" for m in self.snapshot.models for r in m.replicas
        )

    def lost(self, replica: str) -> None:
        for flights in self.in_flight.values():
            flights.pop(replica, None)


class Loop(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        policy = Policy(max_loaded=MAX_LOADED, drain_timeout_s=1e9, swap_wait_s=5)
        self.drive = Drive(policy)
        self.routers = [Router("r0", 0), Router("r1", 1)]
        for router in self.routers:
            self.drive.cluster.book.connected(router.number)
        self.slots = dict.fromkeys(NAMES, 4)
        self.silent: set[str] = set()
        for name in NAMES:
            self.put(name)

    def put(self, name: str) -> None:
        spec = {"idleTimeout": "30s", "maxReplicas": 2, "minReplicas": 1 if name == "c" else 0}
        model = make_model(name, serverless=spec, config={"slots": self.slots[name]})
        self.drive.cluster.put(model)

    def turn(self) -> None:
        loading = {
            (r.model, r.revision) for r in self.drive.cluster.replicas if r.state == "loading"
        }
        ready = {r.id for r in self.drive.cluster.replicas if r.state == "ready"}
        for action in self.drive.turn():
            match action:
                case Start():
                    assert (action.model, action.revision) not in loading, "two starts at once"
                    loading.add((action.model, action.revision))
                case Stop(failed_as="engine_unresponsive"):
                    assert action.replica in self.silent, "one that answers was taken for failed"
                    for router in self.routers:
                        router.lost(action.replica)
                case Stop() if action.replica in ready:
                    for router in self.routers:
                        assert not router.uses(action.replica), "stopped with one in flight"
                        assert not router.may_choose(action.replica), "stopped while choosable"
                case Drain():
                    assert action.replica in ready

    @rule(name=st.sampled_from(NAMES), count=st.integers(1, 6), which=st.integers(0, 1))
    def ask(self, name: str, count: int, which: int) -> None:
        router = self.routers[which]
        router.waiting[name] += count
        router.dispatch()
        router.tell(self.drive)
        self.turn()

    @rule(name=st.sampled_from(NAMES), which=st.integers(0, 1))
    def hang_up(self, name: str, which: int) -> None:
        self.routers[which].waiting[name] = 0
        self.routers[which].tell(self.drive)
        self.turn()

    @rule(name=st.sampled_from(NAMES), which=st.integers(0, 1))
    def finish(self, name: str, which: int) -> None:
        self.routers[which].in_flight[name].clear()
        self.routers[which].dispatch()
        self.routers[which].tell(self.drive)
        self.turn()

    @rule(which=st.integers(0, 1))
    def apply_snapshot(self, which: int) -> None:
        self.sync(self.routers[which])
        self.turn()

    def sync(self, router: Router) -> None:
        fleet = self.drive.cluster.fleet
        if fleet is not None:
            router.snapshot = fleet
        router.dispatch()
        router.tell(self.drive)

    @precondition(lambda self: any(r.state == "loading" for r in self.drive.cluster.replicas))
    @rule(data=st.data())
    def becomes_ready(self, data: st.DataObject) -> None:
        loading = sorted(r.id for r in self.drive.cluster.replicas if r.state == "loading")
        self.drive.cluster.ready(data.draw(st.sampled_from(loading)))
        self.turn()

    @precondition(lambda self: any(r.state != "stopping" for r in self.drive.cluster.replicas))
    @rule(data=st.data(), retryable=st.booleans())
    def crashes(self, data: st.DataObject, retryable: bool) -> None:
        alive = sorted(r.id for r in self.drive.cluster.replicas if r.state != "stopping")
        replica = data.draw(st.sampled_from(alive))
        self.drive.cluster.crash(replica, retryable=retryable)
        for router in self.routers:
            router.lost(replica)
        self.turn()

    @precondition(lambda self: any(r.state == "ready" for r in self.drive.cluster.replicas))
    @rule(data=st.data(), tries=st.integers(0, 4), is_still=st.booleans())
    def is_asked(self, data: st.DataObject, tries: int, is_still: bool) -> None:
        """An engine leaves probes unanswered, or answers again (0)."""
        ready = sorted(r.id for r in self.drive.cluster.replicas if r.state == "ready")
        replica = data.draw(st.sampled_from(ready))
        found = Silence(tries=tries, still_tries=tries if is_still else 0, lasted_s=3.0 * tries)
        self.drive.cluster.unanswered(replica, found if tries else None)
        if tries >= 3 and is_still:
            self.silent.add(replica)
        self.turn()
        stopped = {r.id for r in self.drive.cluster.replicas if r.state == "stopping"}
        assert replica in stopped or replica not in self.silent

    @rule()
    def processes_end(self) -> None:
        for replica in [r.id for r in self.drive.cluster.replicas if r.state == "stopping"]:
            self.drive.cluster.ended(replica)
        self.turn()

    @rule(seconds=st.floats(0.1, 40))
    def time_passes(self, seconds: float) -> None:
        self.drive.clock.advance(seconds)
        for router in self.routers:
            router.tell(self.drive)
        self.turn()

    @rule(name=st.sampled_from(NAMES), slots=st.sampled_from([4, 8]))
    def edit(self, name: str, slots: int) -> None:
        self.slots[name] = slots
        self.put(name)
        self.turn()

    @rule(name=st.sampled_from(NAMES))
    def remove(self, name: str) -> None:
        self.drive.cluster.remove(name)
        self.turn()

    @rule(seconds=st.floats(-1e6, 1e6))
    def wall_clock_jumps(self, seconds: float) -> None:
        before = len(self.drive.cluster.applied)
        self.turn()
        self.drive.settle()
        settled = len(self.drive.cluster.applied)
        self.drive.clock.jump(seconds)
        self.turn()
        assert len(self.drive.cluster.applied) == settled >= before

    @invariant()
    def never_more_engines_than_places(self) -> None:
        assert len(self.drive.cluster.replicas) <= MAX_LOADED

    def teardown(self) -> None:
        """Left alone with willing engines, everybody is served and what is not wanted ends."""
        for name in NAMES:
            self.put(name)
        for _ in range(60):
            for router in self.routers:
                for flights in router.in_flight.values():
                    flights.clear()
                self.sync(router)
            self.turn()
            for replica in self.drive.cluster.replicas:
                if replica.state == "loading":
                    self.drive.cluster.ready(replica.id)
                elif replica.state == "stopping":
                    self.drive.cluster.ended(replica.id)
                elif replica.silence is not None:
                    self.drive.cluster.unanswered(replica.id, None)
            self.drive.clock.advance(3)
        assert not any(sum(router.waiting.values()) for router in self.routers)
        left = {r.model for r in self.drive.cluster.replicas}
        assert left == {"c"}, left


class AlwaysOn(RuleBasedStateMachine):
    """One Model that is always on, with a router that asks for nothing or keeps one request in flight."""

    def __init__(self) -> None:
        super().__init__()
        self.minimum, self.slots = 1, 4
        self.drive = Drive()

    @initialize(minimum=st.integers(1, 2), places=st.integers(1, 4), is_enabled=st.booleans())
    def write(self, minimum: int, places: int, is_enabled: bool) -> None:
        self.drive = Drive(Policy(max_loaded=places))
        self.places = places
        self.serverless = {
            "minReplicas": minimum if is_enabled else minimum - 1,
            "maxReplicas": minimum,
            "enabled": is_enabled,
            "idleTimeout": "60s",
        }
        self.minimum = minimum if is_enabled else max(1, minimum - 1)
        self.put()
        self.turn()

    def put(self) -> None:
        model = make_model(serverless=self.serverless, config={"slots": self.slots})
        self.drive.cluster.put(model)

    def turn(self) -> None:
        """Take turns until nothing is left to do; whatever is let go leaves enough that serve."""
        for _ in range(20):
            revision = self.drive.cluster.observe().revision
            serving = {
                r.id for r in self.drive.replicas() if r.state == "ready" and r.draining is None
            }
            is_full = len(self.drive.replicas()) >= self.places
            for action in self.drive.turn():
                if isinstance(action, (Drain, Stop)) and action.replica in serving:
                    serving.remove(action.replica)
                    is_forced = is_full and action.why == "no room for two revisions"
                    assert is_forced or len(serving) >= self.minimum, action
            if self.drive.cluster.observe().revision == revision:
                return
        raise AssertionError("still busy")

    def ids(self, state: str) -> list[str]:
        return sorted(r.id for r in self.drive.replicas() if r.state == state)

    @rule(seconds=st.sampled_from([1, 50, 100, 3600]))
    def idles(self, seconds: float) -> None:
        self.drive.clock.advance(seconds)
        self.turn()

    @rule()
    def router_acknowledges(self) -> None:
        self.drive.want(0, idle_s=100)
        self.turn()

    @precondition(lambda self: self.ids("ready"))
    @rule(data=st.data())
    def serves(self, data: st.DataObject) -> None:
        self.drive.want(0, in_flight={data.draw(st.sampled_from(self.ids("ready"))): 1})
        self.turn()

    @rule(slots=st.sampled_from([4, 8, 16]))
    def edit(self, slots: int) -> None:
        self.slots = slots
        self.put()
        self.turn()

    @precondition(lambda self: self.ids("loading"))
    @rule(data=st.data())
    def loads(self, data: st.DataObject) -> None:
        self.drive.clock.advance(0.1)  # two events at one instant have no order
        self.drive.cluster.ready(data.draw(st.sampled_from(self.ids("loading"))))
        self.turn()

    @precondition(lambda self: self.ids("loading") or self.ids("ready"))
    @rule(data=st.data())
    def crashes(self, data: st.DataObject) -> None:
        alive = self.ids("loading") + self.ids("ready")
        self.drive.cluster.crash(data.draw(st.sampled_from(alive)))
        self.turn()

    @rule()
    def processes_end(self) -> None:
        for replica in self.ids("stopping"):
            self.drive.cluster.ended(replica)
        self.turn()

    def teardown(self) -> None:
        """With willing engines, what was written last is what serves."""
        for _ in range(20):
            self.router_acknowledges()
            for replica in self.ids("loading"):
                self.drive.cluster.ready(replica)
            self.processes_end()
            self.idles(100)
        (view,) = self.drive.cluster.observe().models
        found = [r.revision for r in self.drive.replicas() if r.state == "ready"]
        assert found == [revision_of(view)] * min(self.minimum, self.places)


TestAlwaysOn = AlwaysOn.TestCase
TestAlwaysOn.settings = settings(
    max_examples=60,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TestLoop = Loop.TestCase
TestLoop.settings = settings(
    max_examples=40,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
