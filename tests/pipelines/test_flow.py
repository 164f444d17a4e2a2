"""The flow against Prefect's real server: what a person sees there, and what the command line says."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from flexinfer.clock import SystemClock
from flexinfer.places import Home
from flexinfer.process import Child, ProcessSpec, free_port, start
from flexinfer.settings import Settings
from flexinfer.testing.running import wait_until
from flexinfer_pipelines import prefect_server

ENTRY = """
apiVersion: ai.flexinfer/v1alpha2
kind: CatalogEntry
metadata: {{name: tiny}}
spec:
  source: {{uri: "file://{path}"}}
  license: {{expression: Apache-2.0}}
  publish: {{repository: tiny}}
  variants:
    - {{name: q8-0, quantize: {{format: gguf, type: Q8_0}}, validate: {{smoke: false, footprint: false}}}}
    - name: strict
      quantize: {{format: gguf, type: Q4_0}}
      validate: {{smoke: false, footprint: false, maxKlLowerBound: 0.0}}
"""

_LIMITED = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
os.execv(sys.argv[2], sys.argv[2:])
"""


class Place:
    """A home with a catalog, a server for its runs, and the command line in it."""

    def __init__(self, home: Home, api: str) -> None:
        self.home = home
        self.api = api

    def flexinfer(
        self, *arguments: str, limit: int = 0, **more: str
    ) -> subprocess.CompletedProcess[str]:
        """*limit*: of each file that it writes, in bytes."""
        kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        environ = {
            **kept,
            "FLEXINFER_HOME": str(self.home.root),
            "FLEXINFER_BUILD__NICE": "0",
            **more,
        }
        argv = [sys.executable, "-P", "-m", "flexinfer", *arguments]
        if limit:
            argv = [sys.executable, "-c", _LIMITED, str(limit), *argv]
        return subprocess.run(
            argv, env=environ, cwd=self.home.root, capture_output=True, text=True, timeout=240
        )

    def read(self, path: str) -> Any:
        """Return what the API lists, the newest first."""
        with httpx.Client(trust_env=False, timeout=20) as client:
            answer = client.post(f"{self.api}/{path}/filter", json={"limit": 100})
            assert answer.status_code == 200, answer.text
            return answer.json()


@pytest.fixture(scope="module")
def place(
    tmp_path_factory: pytest.TempPathFactory, downloads: Path, gguf_python: Path,
    engine_python: Path, tiny: bytes,
) -> Iterator[Place]:  # fmt: skip
    root = tmp_path_factory.mktemp("flow")
    (root / "tools").symlink_to(downloads / "home" / "tools")
    home = Home(root).prepare()
    model = root / "Tiny.F32.gguf"
    model.write_bytes(tiny)
    (home.catalogs / "tiny.yaml").write_text(ENTRY.format(path=model))
    loop = asyncio.new_event_loop()
    child: Child = loop.run_until_complete(
        start(prefect_server.server_spec(home, free_port(), dict(os.environ)))
    )
    try:
        waited = prefect_server.wait_for(home, Settings(), {}, SystemClock())
        yield Place(home, loop.run_until_complete(waited).url)
    finally:
        loop.run_until_complete(child.stop(10.0))
        loop.close()
    assert prefect_server.read_record(home) is None  # it ended well


@pytest.fixture(scope="module")
def built(place: Place) -> dict[str, Any]:
    done = place.flexinfer("build", "tiny/q8-0", "--json")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return {**found, "stderr": done.stderr}


def test_the_command_shows_each_stage_and_the_digest(built: dict[str, Any]) -> None:
    assert built["new"]
    assert built["reference"] == "tiny:q8-0"
    assert built["digest"].startswith("sha256:")
    shown = [line.split()[0] for line in built["stderr"].splitlines() if line]
    stages = ["resolve", "fetch", "inspect", "quantize", "validate", "publish", "warm"]
    assert [word for word in shown if word in stages] == stages


def test_the_run_and_its_tasks_have_names(place: Place, built: dict[str, Any]) -> None:
    runs = {run["name"]: run for run in place.read("flow_runs")}
    run = runs["build tiny/q8-0"]
    assert run["state_type"] == "COMPLETED"
    assert run["parameters"] == {"target": "tiny/q8-0", "rebuild": False}
    tasks = {t["name"] for t in place.read("task_runs") if t["flow_run_id"] == run["id"]}
    assert tasks == {"resolve", "fetch", "inspect", "quantize", "validate", "publish", "warm"}


def test_progress_validation_and_digest_are_artifacts(place: Place, built: dict[str, Any]) -> None:
    found = {one["key"]: one for one in place.read("artifacts") if one["key"]}
    assert found["progress"]["type"] == "progress"
    assert found["progress"]["data"] == 100.0
    table = json.loads(found["validation"]["data"])
    rows = {row["measurement"]: row for row in table}
    assert rows["structure.tensors"]["wanted"] == "nothing"
    assert rows["structure.missingTensors"]["wanted"] == 0.0
    assert {row["verdict"] for row in table} == {"passed"}
    assert built["digest"] in found["artifact"]["data"]


def test_the_users_prefect_command_reads_the_server(place: Place, built: dict[str, Any]) -> None:
    """Prefect's client sends null for what is not asked; FastAPI from 0.151 on refuses that."""
    environ = {
        "PATH": os.environ["PATH"],
        "HOME": str(place.home.root),
        "PREFECT_API_URL": place.api,
        "COLUMNS": "200",
    }
    for command, wanted in (
        ("flow ls", "build"),
        ("flow-run ls", "build"),
        ("artifact ls", "validation"),
    ):
        ran = subprocess.run(
            [sys.executable, "-m", "prefect", *command.split()],
            env=environ,
            cwd=place.home.root,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert ran.returncode == 0, ran.stderr[-600:]
        assert wanted in ran.stdout, command


def test_a_second_build_starts_no_run_and_imports_no_prefect(
    place: Place, built: dict[str, Any]
) -> None:
    before = len(place.read("flow_runs"))
    done = place.flexinfer("build", "tiny/q8-0", PYTHONPROFILEIMPORTTIME="1")
    assert done.returncode == 0
    assert done.stdout.strip() == built["digest"]
    assert "already built tiny:q8-0" in done.stderr
    imported = [line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines() if "|" in line]
    assert "flexinfer_pipelines.built" in imported
    assert not [name for name in imported if name.split(".")[0] == "prefect"]
    assert len(place.read("flow_runs")) == before


def test_a_bad_result_fails_the_run_with_both_numbers(place: Place, built: dict[str, Any]) -> None:
    done = place.flexinfer("build", "tiny/strict")
    assert done.returncode == 7
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(
        "error[quality]: tiny/strict is not published: divergence.klLowerBound is "
    )
    assert "wanted at most 0.0" in last
    logs = place.flexinfer("logs", "build", "-n", "1000").stdout
    assert logs.count("tiny/strict is not published") == 1
    assert "QualityError" not in logs
    assert "Encountered exception" not in logs
    told = place.flexinfer("logs", "build", "--all", "-n", "1000").stdout
    assert "Encountered exception" in told
    runs = {run["name"]: run for run in place.read("flow_runs")}
    assert runs["build tiny/strict"]["state_type"] == "FAILED"
    tables = [one for one in place.read("artifacts") if one["key"] == "validation"]
    assert any("failed" in one["data"] for one in tables)


@pytest.mark.parametrize(
    ("target", "exit_code", "said"),
    [
        ("tinny/q8-0", 4, "did you mean 'tiny'"),
        ("tiny/q8-1", 4, "did you mean 'q8-0'"),
        ("hff://a/b", 2, "did you mean 'hf'"),
        ("./no-such.gguf", 4, "no-such.gguf"),
        ("what is this", 2, "entry/variant"),
    ],
)
def test_what_cannot_be_built_is_said_in_one_line(
    place: Place, target: str, exit_code: int, said: str
) -> None:
    done = place.flexinfer("build", target, "--quiet")
    assert done.returncode == exit_code
    assert said in done.stderr
    assert done.stderr.startswith("error[")
    assert len(done.stderr.strip().splitlines()) == 1
    assert "Traceback" not in done.stderr


def test_the_deployment_runs_the_same_flow_and_dead_runs_are_ended(
    place: Place, built: dict[str, Any]
) -> None:
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    environ = {**kept, "FLEXINFER_HOME": str(place.home.root)}
    spec = ProcessSpec(
        name="pipelines",
        argv=(sys.executable, "-P", "-m", "flexinfer", "pipelines"),
        environment=environ,
        cwd=place.home.root,
        log_path=place.home.logs / "pipelines.log",
    )
    with httpx.Client(trust_env=False, timeout=20, base_url=place.api) as client:
        lost = _dead_run(place, client)
        asyncio.run(_served(spec, client, lost))


def _dead_run(place: Place, client: httpx.Client) -> str:
    """Return a run that Prefect shows running and whose process is gone."""
    flow_id = place.read("flows")[0]["id"]
    body = {"flow_id": flow_id, "name": "lost", "state": {"type": "RUNNING"}}
    made: list[httpx.Response] = []

    def is_made() -> bool:
        made.append(client.post("/flow_runs/", json=body))
        return made[-1].status_code in (200, 201)  # 503: its database is locked for the moment

    wait_until(is_made, "a run is made")
    run_id = str(made[-1].json()["id"])
    folder = place.home.run_records
    folder.mkdir(exist_ok=True)
    (folder / f"{run_id}.json").write_text('{"pid": 1, "start_ticks": 0, "boot_id": ""}')
    return run_id


async def _served(spec: ProcessSpec, client: httpx.Client, lost: str) -> None:
    child = await start(spec)
    try:
        async with asyncio.timeout(120):
            while client.get("/deployments/name/build/build").status_code != 200:
                assert child.returncode is None, child.tail(20)
                await asyncio.sleep(0.2)
            deployment = client.get("/deployments/name/build/build").json()["id"]
            made = client.post(
                f"/deployments/{deployment}/create_flow_run",
                json={"parameters": {"target": "tiny/q8-0"}, "state": {"type": "SCHEDULED"}},
            ).json()
            for run_id, wanted in ((made["id"], "COMPLETED"), (lost, "CRASHED")):
                run = client.get(f"/flow_runs/{run_id}").json()
                while run["state_type"] != wanted:
                    assert run["state_type"] not in {"FAILED", "CANCELLED"}, run["state"]
                    await asyncio.sleep(0.2)
                    run = client.get(f"/flow_runs/{run_id}").json()
            assert client.get(f"/flow_runs/{made['id']}").json()["name"] == "build tiny/q8-0"
    finally:
        await child.stop(10.0)


@pytest.mark.parametrize("command", ["run", "build"])
def test_a_file_that_contradicts_itself_is_refused_before_a_run_starts(
    place: Place, make_tiny: Any, make_gguf: Any, command: str
) -> None:
    before = len(place.read("flow_runs"))
    for data, said in (
        (make_tiny(**{"llama.block_count": (1 << 31) - 1}), "block_count' is 2147483647"),
        (make_tiny(**{"llama.context_length": 0}), "context_length' is 0"),
        (make_gguf({"general.architecture": "llama"}, {}), "no tensors"),
    ):
        (place.home.root / "hostile.gguf").write_bytes(data)
        done = place.flexinfer(command, "./hostile.gguf")
        assert done.returncode == 2, done.stderr
        assert done.stderr.startswith("error[gguf]: 'hostile.gguf'"), done.stderr
        assert said in done.stderr
    assert len(place.read("flow_runs")) == before
    assert not list(place.home.models.glob("hostile*"))


def test_run_with_what_cannot_be_built_writes_no_model(place: Place) -> None:
    for source in ("what is this", "./no-such.gguf"):
        done = place.flexinfer("run", source)
        assert done.returncode in (2, 4)
        assert "error[" in done.stderr
        assert "Traceback" not in done.stderr
    assert not list(place.home.models.glob("*.yaml"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a file system of its own of 48 MiB, where we may mount one; else none."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=48m", "flexinfer-test", str(folder)]
    try:
        is_mounted = subprocess.run(mount, capture_output=True).returncode == 0
    except FileNotFoundError:
        is_mounted = False
    try:
        yield folder
    finally:
        if is_mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True, capture_output=True)


def test_a_full_disk_is_said_and_the_same_command_goes_on_when_there_is_room(
    place: Place, small_disk: Path, tiny: bytes
) -> None:
    root = small_disk / "home"
    root.mkdir()
    (root / "tools").symlink_to(place.home.tools.resolve())
    there = Place(Home(root).prepare(), place.api)
    model = place.home.root / "Room.F32.gguf"
    model.write_bytes(tiny)
    large = place.home.root / "Large.F32.gguf"
    large.write_bytes(tiny)
    os.truncate(large, 64 << 20)
    filler = small_disk / "filler"
    if small_disk.is_mount():
        with pytest.raises(OSError, match="No space"), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(1 << 20))
        done = there.flexinfer("build", str(model), PREFECT_API_URL=place.api)
        assert_disk_full(done, str(root), 32 << 20)
        filler.unlink()
        done = there.flexinfer("build", str(large), PREFECT_API_URL=place.api)
        assert_disk_full(done, str(root / "store"), 64 << 20)
    else:  # no file may grow beyond this: the kernel refuses the write itself
        done = there.flexinfer("build", str(model), limit=100_000, PREFECT_API_URL=place.api)
        assert_disk_full(done, str(root / "store"), len(tiny))
    done = there.flexinfer("build", str(model), PREFECT_API_URL=place.api)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("sha256:")


def assert_disk_full(done: subprocess.CompletedProcess[str], path: str, needed: int) -> None:
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(f"error[disk_full]: {path}"), done.stderr
    assert f"({needed} bytes) needed for " in last
    assert "Traceback" not in done.stderr
    assert "file:/" not in last  # no stamp, no key: what a person calls it


def test_a_step_that_fails_for_good_is_tried_once_and_its_error_is_the_last_word(
    place: Place,
) -> None:
    done = place.flexinfer("build", "pypi://no-such-thing==1/x.gguf", PIP_NO_INDEX="1")
    assert done.returncode == 4, done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("error[source_not_found]: ")
    (run,) = [one for one in place.read("flow_runs") if "no-such-thing" in one["name"]]
    assert run["state_type"] == "FAILED"
    (task,) = [one for one in place.read("task_runs") if one["flow_run_id"] == run["id"]]
    assert (task["name"], task["run_count"]) == ("resolve", 1)


HANDLERS = """
import asyncio, logging
from prefect.logging.configuration import setup_logging
from prefect.logging.handlers import APILogHandler
from flexinfer_pipelines.flows import local

def count():
    loggers = [logging.getLogger(name) for name in logging.root.manager.loggerDict]
    return sum(isinstance(one, APILogHandler) for logger in loggers for one in logger.handlers)

setup_logging()
before = count()
asyncio.run(local._tell_the_rest())
print(before > 0, count())
"""


def test_nothing_is_logged_to_a_server_that_may_have_ended(tmp_path: Path) -> None:
    environ = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PREFECT_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", HANDLERS], env=environ, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.split() == ["True", "0"], done.stderr


def test_a_failed_build_with_a_server_of_its_own_ends_with_its_error(tmp_path: Path) -> None:
    alone = Place(Home(tmp_path / "home").prepare(), "")
    done = alone.flexinfer(
        "build", "pypi://no-such-thing==1/x.gguf",
        PIP_NO_INDEX="1", FLEXINFER_PREFECT__PORT="0",
    )  # fmt: skip
    assert done.returncode == 4, done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("error[source_not_found]: ")
    assert "logging to API" not in done.stderr
