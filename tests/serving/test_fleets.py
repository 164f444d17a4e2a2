"""Where the router hears of its fleet: a file that is edited, and the operator's socket that comes and goes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from flexinfer import unixsocket
from flexinfer.errors import InvalidInput
from flexinfer.fleet import (
    DemandLease,
    FleetModel,
    FleetReplica,
    FleetSnapshot,
    parse_line,
    snapshot_to_line,
)
from flexinfer.testing import engine as scripts
from flexinfer.testing.engine import ScriptedEngine, Seen, Wire
from flexinfer.testing.fleet import model, replica
from flexinfer_serving.fleet.local import LocalFleet
from flexinfer_serving.fleet.static import StaticFleet
from flexinfer_serving.probing import Probe
from flexinfer_serving.testing import LIMIT_S, running, until

FLEET = """\
models:
  - name: m
    aliases: [smol]
    backend: llamacpp
    endpoints: [chat/completions]
    contextTokens: 128
    slots: 2
    replicas:
      - url: http://127.0.0.1:9001/
        keyFile: engine.key
"""


class Heard:
    def __init__(self) -> None:
        self.snapshots: list[FleetSnapshot] = []
        self.is_connected = False
        self.losses = 0

    def applied(self, snapshot: FleetSnapshot) -> None:
        self.snapshots.append(snapshot)

    def connected(self, is_connected: bool) -> None:
        self.losses += self.is_connected and not is_connected
        self.is_connected = is_connected


def write(folder: Path, text: str) -> Path:
    (folder / "engine.key").write_text("secret\n")
    file = folder / "fleet.yaml"
    file.write_text(text)
    return file


async def here(model: FleetModel, replica: FleetReplica) -> bool:
    return True


def static(file: Path, *, probe: Probe = here) -> StaticFleet:
    return StaticFleet(file, probe=probe, rescan_s=0.01)


def test_a_fleet_file_becomes_a_snapshot(tmp_path: Path) -> None:
    (found,) = static(write(tmp_path, FLEET)).read()
    assert (found.name, found.aliases, found.endpoints) == ("m", ("smol",), ("chat/completions",))
    assert (found.context_tokens, found.slots) == (128, 2)
    (one,) = found.replicas
    assert (one.url, one.key, one.phase) == ("http://127.0.0.1:9001", "secret", "loading")
    assert "9001" not in one.id


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("slots: 2", "slotz: 2", "fleet.yaml:7:5"),
        ("slots: 2", "slotz: 2", "slots"),
        ("slots: 2", "slots: two", "fleet.yaml:7:12"),
        ("http://127.0.0.1:9001/", "ftp://x", "http://host:port"),
        ("http://127.0.0.1:9001/", "http://u:p@x", "without a user"),
        ("llamacpp", "llamacp", "llamacpp"),
        ("chat/completions", "chat", "chat/completions"),
        ("engine.key", "absent.key", "absent.key"),
        ("aliases: [smol]", "aliases: [m]", "named twice: m"),
        ("models:", "models: [", "fleet.yaml:"),
        (FLEET, "models: []", "fleet.yaml:1"),
        (FLEET, "{}", "models"),
        (FLEET, "", "fleet.yaml"),
        (FLEET, "models: [{name: m, replicas: []}]", "at least 1 item"),
        (FLEET, "models: [{name: m}]", "replicas"),
    ],
)
def test_a_mistake_in_a_fleet_file_is_named(tmp_path: Path, old: str, new: str, says: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        static(write(tmp_path, FLEET.replace(old, new))).read()
    assert says in caught.value.message
    assert "secret" not in caught.value.message


@pytest.mark.parametrize("key", ["", "two\nlines", "with space", "sch\u00f6n", "x" * 5000])
def test_a_key_that_no_header_can_carry_is_refused(tmp_path: Path, key: str) -> None:
    file = write(tmp_path, FLEET)
    (tmp_path / "engine.key").write_text(key)
    with pytest.raises(InvalidInput) as caught:
        static(file).read()
    assert "engine.key" in caught.value.message


def test_a_fleet_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput) as caught:
        static(tmp_path / "none.yaml").read()
    assert caught.value.code == "fleet_file_unreadable"


def test_an_edit_takes_effect_and_a_bad_one_changes_nothing(tmp_path: Path) -> None:
    async def run() -> None:
        file = write(tmp_path, FLEET)
        heard = Heard()
        task = asyncio.create_task(static(file).run(heard))
        await until(lambda: len(heard.snapshots) == 1)
        file.write_text("models: nonsense")
        await until(lambda: heard.losses == 1)
        assert len(heard.snapshots) == 1
        file.write_text(FLEET.replace("slots: 2", "slots: 3"))
        await until(lambda: len(heard.snapshots) == 2)
        assert heard.snapshots[1].models[0].slots == 3
        assert heard.snapshots[1].generation > heard.snapshots[0].generation
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(run())


def test_a_key_that_is_put_in_place_of_another_is_used_and_a_bad_one_is_not(
    tmp_path: Path,
) -> None:
    async def run() -> None:
        heard = Heard()
        task = asyncio.create_task(static(write(tmp_path, FLEET)).run(heard))
        await until(lambda: heard.snapshots)
        key = tmp_path / "engine.key"
        key.unlink()  # as who writes a secret in two steps
        await until(lambda: heard.losses == 1)
        assert [one.models[0].replicas[0].key for one in heard.snapshots] == ["secret"]
        key.write_text("rotated\n")
        await until(lambda: len(heard.snapshots) == 2)
        assert heard.snapshots[1].models[0].replicas[0].key == "rotated"
        assert heard.is_connected
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(run())


@pytest.mark.parametrize("meanwhile", ["", None], ids=["empty", "gone"])
def test_the_last_good_key_is_sent_until_another_is_there(
    tmp_path: Path, meanwhile: str | None
) -> None:
    accepted = "secret"
    looks = 0

    async def counted(model: FleetModel, replica: FleetReplica) -> bool:
        nonlocal looks
        looks += 1
        return True

    async def locked(seen: Seen, wire: Wire) -> None:
        is_known = seen.headers.get("authorization") == f"Bearer {accepted}"
        await (scripts.answers() if is_known else scripts.status(401))(seen, wire)

    async def run() -> None:
        nonlocal accepted
        async with ScriptedEngine(locked) as engine:
            file = write(tmp_path, FLEET.replace("http://127.0.0.1:9001/", engine.url))
            key = tmp_path / "engine.key"
            with capture_logs() as logs:
                async with running(static(file, probe=counted)) as router:
                    dispatcher = router.router.dispatcher

                    def key_in_use() -> str:
                        assert dispatcher.snapshot is not None
                        return dispatcher.snapshot.models[0].replicas[0].key

                    assert (await router.chat()).status_code == 200
                    await until(lambda: looks > 1)  # the second one knows the key file
                    key.unlink() if meanwhile is None else key.write_text(meanwhile)
                    await until(lambda: not dispatcher.is_connected)
                    before = looks
                    await until(lambda: looks > before + 2)
                    assert (await router.chat()).status_code == 200
                    (tmp_path / "next").write_text("rotated")
                    (tmp_path / "next").replace(key)
                    await until(lambda: key_in_use() == "rotated")
                    accepted = "rotated"
                    assert (await router.chat()).status_code == 200
            assert [one["event"] for one in logs].count("fleet_file_refused") == 1

    asyncio.run(run())


def test_a_replica_is_ready_while_it_answers_and_only_then(tmp_path: Path) -> None:
    answering: set[str] = set()
    asked = 0

    async def probe(model: FleetModel, replica: FleetReplica) -> bool:
        nonlocal asked
        asked += 1
        return replica.url in answering

    async def run() -> None:
        heard = Heard()
        two = FLEET + "      - url: http://127.0.0.1:9002\n"
        task = asyncio.create_task(static(write(tmp_path, two), probe=probe).run(heard))

        def shown() -> tuple[str, ...]:
            (found,) = heard.snapshots[-1].models if heard.snapshots else (model(),)
            return (found.phase, *(one.phase for one in found.replicas))

        await until(lambda: shown() == ("Pending", "loading", "loading"))
        answering.add("http://127.0.0.1:9002")
        await until(lambda: shown() == ("Ready", "loading", "ready"))
        answering.clear()
        await until(lambda: shown() == ("Pending", "loading", "loading"))
        count, before = len(heard.snapshots), asked
        await until(lambda: asked >= before + 6)
        assert len(heard.snapshots) == count, "nothing new is nothing said"
        generations = [one.generation for one in heard.snapshots]
        assert generations == sorted(set(generations))
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(run())


def test_one_question_missed_by_a_busy_engine_is_no_end(tmp_path: Path) -> None:
    answers = [True, False, True, False, True]

    async def probe(model: FleetModel, replica: FleetReplica) -> bool:
        return answers.pop(0) if answers else True

    async def run() -> None:
        heard = Heard()
        task = asyncio.create_task(static(write(tmp_path, FLEET), probe=probe).run(heard))
        await until(lambda: not answers)
        assert [one.models[0].phase for one in heard.snapshots] == ["Ready"]
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(run())


def test_a_dead_fleet_is_shown_as_it_is_and_an_unknown_context_bounds_nothing(
    tmp_path: Path,
) -> None:
    async def run() -> None:
        async with ScriptedEngine(scripts.answers()) as engine:
            text = f"models: [{{name: m, replicas: [{{url: '{engine.url}'}}]}}]"
            alive = False

            async def probe(model: FleetModel, replica: FleetReplica) -> bool:
                return alive

            async with running(static(write(tmp_path, text), probe=probe)) as router:
                described = (await router.client.get("/v1/models/m")).json()
                assert (described["phase"], described["context_tokens"]) == ("Pending", None)
                refused = await router.chat()
                assert refused.status_code == 503
                assert refused.json()["error"]["code"] == "model_unavailable"
                assert await router.metric('flexinfer_replicas{model="m",phase="ready"}') == 0
                alive = True
                async with asyncio.timeout(LIMIT_S):
                    while (await router.chat(max_tokens=100_000)).status_code != 200:
                        await asyncio.sleep(0.01)
                assert engine.requests[0].json["max_tokens"] == 100_000
                assert await router.metric('flexinfer_replicas{model="m",phase="ready"}') == 1
                assert (await router.client.get("/v1/models/m")).json()["phase"] == "Ready"

    asyncio.run(run())


# The operator's socket ----------------------------------------------------------------------------------------


class Operator:
    """The other end of the socket, by hand."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.leases: list[DemandLease] = []
        self.writers: list[asyncio.StreamWriter] = []
        self._server: asyncio.Server | None = None
        self.greeting = b""

    async def start(self, *snapshots: FleetSnapshot) -> None:
        self.greeting = b"".join(snapshot_to_line(snapshot) for snapshot in snapshots)
        self._server = await unixsocket.serve(self.path, self._handle)

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.append(writer)
        writer.write(self.greeting)
        try:
            while line := await reader.readline():
                found = parse_line(line)
                assert isinstance(found, DemandLease)
                self.leases.append(found)
        except ConnectionError:
            pass
        finally:
            writer.close()

    def say(self, data: bytes) -> None:
        self.writers[-1].write(data)

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        for writer in self.writers:
            writer.close()
        self.writers.clear()
        await self._server.wait_closed()
        self.path.unlink(missing_ok=True)


def fleet(generation: int, *names: str) -> FleetSnapshot:
    return FleetSnapshot(generation=generation, models=tuple(model(name) for name in names))


def talk(tmp_path: Path, test: Callable[[Operator, LocalFleet, Heard], Awaitable[None]]) -> None:
    async def run() -> None:
        operator = Operator(tmp_path / "operator.sock")
        local = LocalFleet(operator.path, jitter=lambda: 0.2)
        heard = Heard()
        task = asyncio.create_task(local.run(heard))
        try:
            await test(operator, local, heard)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await operator.stop()

    asyncio.run(run())


def test_the_router_waits_for_its_operator_and_outlives_it(tmp_path: Path) -> None:
    async def test(operator: Operator, local: LocalFleet, heard: Heard) -> None:
        await asyncio.sleep(0)
        await operator.start(fleet(5, "a"))
        await until(lambda: heard.snapshots)
        assert heard.is_connected
        await operator.stop()
        await until(lambda: not heard.is_connected)
        await operator.start(fleet(1, "b"))  # a new operator counts from the start
        await until(lambda: len(heard.snapshots) == 2)
        assert heard.snapshots[-1].models[0].name == "b"

    talk(tmp_path, test)


def test_a_snapshot_that_is_no_newer_is_passed_over(tmp_path: Path) -> None:
    async def test(operator: Operator, local: LocalFleet, heard: Heard) -> None:
        await operator.start(fleet(5, "a"), fleet(5, "b"), fleet(4, "c"), fleet(6, "d"))
        await until(lambda: len(heard.snapshots) == 2)
        assert [one.models[0].name for one in heard.snapshots] == ["a", "d"]

    talk(tmp_path, test)


def test_a_lease_that_nobody_took_is_sent_when_somebody_listens_again(tmp_path: Path) -> None:
    async def test(operator: Operator, local: LocalFleet, heard: Heard) -> None:
        for waiting in (1, 2, 3):
            local.renew(DemandLease(router="r", model="m", waiting=waiting))
        local.renew(DemandLease(router="r", model="n", waiting=9))
        await operator.start(fleet(1))
        await until(lambda: len(operator.leases) == 2)
        assert {lease.model: lease.waiting for lease in operator.leases} == {"m": 3, "n": 9}

    talk(tmp_path, test)


def test_a_newer_lease_takes_along_what_the_one_that_nobody_took_had_to_tell_once(
    tmp_path: Path,
) -> None:
    async def test(operator: Operator, local: LocalFleet, heard: Heard) -> None:
        local.renew(DemandLease(router="r", model="m", waiting=1, first_token_s={"r1": 0.5}))
        local.renew(DemandLease(router="r", model="m", first_token_s={"r2": 0.25}))
        local.renew(DemandLease(router="r", model="m", waiting=3))
        await operator.start(fleet(1))
        await until(lambda: operator.leases)
        assert operator.leases[0].waiting == 3
        assert operator.leases[0].first_token_s == {"r1": 0.5, "r2": 0.25}

    talk(tmp_path, test)


@pytest.mark.parametrize(
    "nonsense",
    [b"{}\n", b"not json\n", b'{"lease":{"router":"r","model":"m"}}\n', b"x" * 9_000_000],
)
def test_nonsense_on_the_socket_ends_the_connection_and_a_new_one_is_made(
    tmp_path: Path, nonsense: bytes
) -> None:
    async def test(operator: Operator, local: LocalFleet, heard: Heard) -> None:
        await operator.start(fleet(1, "a"))
        await until(lambda: heard.snapshots)
        operator.say(nonsense)
        await until(lambda: heard.losses == 1)
        await until(lambda: len(heard.snapshots) == 2)

    talk(tmp_path, test)


def test_a_large_fleet_arrives_whole(tmp_path: Path) -> None:
    async def test(operator: Operator, local: LocalFleet, heard: Heard) -> None:
        await operator.start(fleet(1, *(f"model-{number}" for number in range(2000))))
        await until(lambda: heard.snapshots)
        assert len(heard.snapshots[0].models) == 2000

    talk(tmp_path, test)


def test_with_its_operator_gone_the_router_serves_on(tmp_path: Path) -> None:
    async def run() -> None:
        operator = Operator(tmp_path / "operator.sock")
        async with ScriptedEngine(scripts.answers()) as engine:
            ready = model(slots=4, replicas=(replica("r1", engine.url),))
            await operator.start(FleetSnapshot(generation=1, models=(ready,)))
            local = LocalFleet(operator.path, jitter=lambda: 0.2)
            async with running(local, sink=local) as router:
                assert (await router.chat()).status_code == 200
                await until(lambda: operator.leases)
                await operator.stop()
                await until(lambda: not router.router.dispatcher.is_connected)
                assert await router.metric("flexinfer_fleet_connected") == 0
                assert (await router.chat()).status_code == 200

    asyncio.run(run())
