"""The whole main job on one machine, with real parts. The tests share one `up`; each leaves it working."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai

from flexinfer.testing.running import STARTER, RunningUp, wait_until

TARGET = f"{STARTER}:q8-0"
ENDLESS = {
    "model": STARTER,
    "prompt": "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13,",
    "temperature": 0,
    "stream": True,
}
"""A stream that ends at its `max_tokens`, no sooner."""


def client(up: RunningUp) -> openai.OpenAI:
    return openai.OpenAI(base_url=up.url, api_key="any", max_retries=0, timeout=300.0)


def prefect(up: RunningUp, path: str, body: dict[str, Any] | None = None) -> Any:
    """Ask the Prefect server that `up` started, once it answers."""
    record = up.home / "run" / "prefect.json"
    wait_until(record.exists, "Prefect's record", limit_s=120)
    url = json.loads(record.read_text("utf-8"))["url"]
    with httpx.Client(trust_env=False, timeout=30.0) as http:
        answer = http.post(f"{url}/{path}", json=body or {})
        answer.raise_for_status()
        return answer.json()


def sleeping(up: RunningUp) -> None:
    """Let the idle time pass."""
    up.edit("idleTimeout: 5m", "idleTimeout: 2s")
    try:
        wait_until(lambda: not up.engines(), "the idle engine is gone", limit_s=60)
    finally:
        up.edit("idleTimeout: 2s", "idleTimeout: 5m")


def test_no_engine_runs_before_the_first_request(up: RunningUp) -> None:
    assert up.engines() == []
    assert client(up).models.list().data[0].id == STARTER


def test_the_first_request_wakes_the_model(up: RunningUp) -> None:
    answer = up.ask()
    assert answer.status_code == 200
    assert "Paris" in answer.json()["choices"][0]["message"]["content"]
    assert float(answer.headers["x-flexinfer-cold-start"]) > 0
    assert answer.headers["x-flexinfer-model"] == STARTER
    assert len(up.engines()) == 1


def test_the_official_client_streams(up: RunningUp) -> None:
    stream = client(up).chat.completions.create(
        model="smol",
        messages=[{"role": "user", "content": "What is the capital of France? Answer briefly."}],
        max_tokens=16,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert "Paris" in text
    assert chunks[-1].usage is not None


def test_completions_and_embeddings_come_from_the_same_process(up: RunningUp) -> None:
    api = client(up)
    completed = api.completions.create(
        model=STARTER, prompt="The capital of France is", max_tokens=2, temperature=0
    )
    assert "Paris" in completed.choices[0].text
    vectors = api.embeddings.create(
        model=STARTER, input=["hello", "world"], encoding_format="float"
    )
    assert [len(v.embedding) for v in vectors.data] == [576, 576]  # the model's hidden size
    assert len(up.engines()) == 1


def test_too_long_an_input_is_refused_in_openais_shape(up: RunningUp) -> None:
    long = "hello " * 6000
    for call in (
        lambda: client(up).embeddings.create(model=STARTER, input=long),
        lambda: client(up).chat.completions.create(
            model=STARTER, messages=[{"role": "user", "content": long}]
        ),
    ):
        try:
            call()
        except openai.BadRequestError as error:
            assert error.code == "context_length_exceeded"
        else:
            raise AssertionError("expected a refusal")


def test_an_engine_can_not_be_talked_to_past_the_router(up: RunningUp) -> None:
    described = json.loads(up.command("model", "describe", STARTER, "--json").stdout)
    url = described["replicas"][0]["url"]
    with httpx.Client(trust_env=False, timeout=30.0) as http:
        assert http.get(f"{url}/v1/models").status_code == 401
        assert http.post(f"{url}/v1/completions", json={"prompt": "x"}).status_code == 401
        origin = {"origin": "https://evil.example"}
        allowed = http.get(f"{url}/health", headers=origin).headers.get(
            "access-control-allow-origin"
        )
    assert allowed in (None, "")


def test_a_second_up_names_the_first(up: RunningUp) -> None:
    second = up.command("up")
    assert second.returncode == 5
    assert "error[already_running]" in second.stderr
    assert up.process is not None
    assert str(up.process.pid) in second.stderr


def test_status_says_what_runs(up: RunningUp) -> None:
    found = json.loads(up.command("status", "--json").stdout)
    assert found["answers"] is True
    assert found["models"] == [STARTER]
    assert {"operator", "serve", "pipelines", "prefect"} <= {p["name"] for p in found["processes"]}
    assert all(p["rssBytes"] > 0 for p in found["processes"])


def test_chat_finds_the_router_where_the_settings_put_it(up: RunningUp) -> None:
    said = up.command("chat", STARTER, "-m", "Name the capital city of France.")
    assert said.returncode == 0, said.stderr
    assert "Paris" in said.stdout


def test_twenty_clients_wake_a_sleeping_model_once(up: RunningUp) -> None:
    up.edit("coldStartTimeout: 60s", "coldStartTimeout: 300s")
    sleeping(up)
    before = len(up.events("replica_started"))
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: up.ask(), range(20)))
    assert [a.status_code for a in answers] == [200] * 20
    assert all("Paris" in a.text for a in answers)
    assert len(up.events("replica_started")) == before + 1


def test_a_bad_edit_is_refused_with_its_place_and_the_old_state_stays(up: RunningUp) -> None:
    up.edit("backend: llamacpp", "bakend: llamacpp")
    try:
        wait_until(lambda: f"{STARTER}.yaml:" in up.said(), "the mistake is said", limit_s=30)
        assert "backend" in up.said()
        assert up.ask().status_code == 200
    finally:
        up.edit("bakend: llamacpp", "backend: llamacpp")


def test_the_artifact_is_what_it_says(up: RunningUp) -> None:
    listed = json.loads(up.command("artifact", "ls", "--json").stdout)
    one = next(a for a in listed if a["reference"] == TARGET)
    assert (one["format"], one["quantization"]) == ("gguf", "Q8_0")
    assert one["evidence"][0]["result"] == "PASSED"
    blobs = up.home / "store" / "blobs" / "sha256"
    manifest = json.loads((blobs / one["digest"][7:]).read_bytes())
    assert manifest["artifactType"] == "application/vnd.cncf.model.manifest.v1+json"
    for layer in manifest["layers"]:
        with (blobs / layer["digest"][7:]).open("rb") as file:
            assert "sha256:" + hashlib.file_digest(file, "sha256").hexdigest() == layer["digest"]


def test_the_statement_says_that_the_base_is_quantized(up: RunningUp) -> None:
    listed = json.loads(up.command("artifact", "ls", "--json").stdout)
    one = next(a for a in listed if a["reference"] == TARGET)
    blobs = up.home / "store" / "blobs" / "sha256"
    referrer = json.loads((blobs / one["evidence"][0]["digest"][7:]).read_bytes())
    assert referrer["subject"]["digest"] == one["digest"]
    statement = json.loads((blobs / referrer["layers"][0]["digest"][7:]).read_bytes())
    assert statement["subject"][0]["digest"]["sha256"] == one["digest"][7:]
    assert statement["predicate"]["base"]["quantization"] == "Q4_1"
    assert statement["predicate"]["measurements"]["divergence.sameTop"] >= 0.90


def test_prefect_shows_the_run_with_its_tasks_and_artifacts(up: RunningUp) -> None:
    wait_until(lambda: "  Prefect   http" in up.said(), "Prefect's address is said", limit_s=180)
    runs = prefect(up, "flow_runs/filter")
    mine = [r for r in runs if r["name"] == f"build {STARTER}/q8-0"]
    assert mine
    assert mine[0]["state_type"] == "COMPLETED"
    tasks = prefect(up, "task_runs/filter", {"flow_runs": {"id": {"any_": [mine[0]["id"]]}}})
    stages = {"resolve", "fetch", "inspect", "quantize", "validate", "publish", "warm"}
    assert stages <= {t["name"] for t in tasks}
    artifacts = prefect(up, "artifacts/filter", {"flow_runs": {"id": {"any_": [mine[0]["id"]]}}})
    assert {"progress", "table", "markdown"} <= {a["type"] for a in artifacts}


def test_a_build_from_the_deployment_is_the_same(up: RunningUp) -> None:
    def deployments() -> list[Any]:
        found = prefect(up, "deployments/filter")
        assert isinstance(found, list)
        return found

    wait_until(lambda: bool(deployments()), "the deployment is there", limit_s=120)
    one = deployments()[0]
    body = {"parameters": {"target": f"{STARTER}/q4-0"}, "state": {"type": "SCHEDULED"}}
    run = prefect(up, f"deployments/{one['id']}/create_flow_run", body)

    def state() -> str:
        found = prefect(up, "flow_runs/filter", {"flow_runs": {"id": {"any_": [run["id"]]}}})
        return str(found[0]["state_type"])

    wait_until(lambda: state() in ("COMPLETED", "FAILED", "CRASHED"), "the run ends", limit_s=240)
    assert state() == "COMPLETED"
    again = up.command("build", f"{STARTER}/q4-0")
    assert again.returncode == 0, again.stderr
    assert "already built" in again.stdout + again.stderr


def test_my_own_file_is_served_at_once(up: RunningUp, starter_gguf: Path, tmp_path: Path) -> None:
    mine = tmp_path / "Mine.Own.gguf"
    shutil.copy(starter_gguf, mine)
    served = up.command("run", str(mine))
    assert served.returncode == 0, served.stderr
    listed = [m.id for m in client(up).models.list().data]
    name = next(n for n in listed if n.startswith("mine"))
    answer = up.ask(name)
    assert answer.status_code == 200, answer.text
    assert "Paris" in answer.text
    next((up.home / "models").glob(f"{name}*")).unlink()
    wait_until(
        lambda: name not in [m.id for m in client(up).models.list().data], "the Model is gone"
    )


def test_an_engine_killed_in_a_stream_ends_it_with_an_error(up: RunningUp) -> None:
    assert up.ask().status_code == 200
    body = ENDLESS | {"max_tokens": 3000}
    seen: list[str] = []
    with httpx.Client(trust_env=False, timeout=120.0) as http:
        with http.stream("POST", f"{up.url}/completions", json=body) as answer:
            for line in answer.iter_lines():
                if line:
                    seen.append(line)
                if len(seen) == 5:
                    for pid in up.engines():
                        os.kill(pid, signal.SIGKILL)
    error = json.loads(seen[-1].removeprefix("data: "))["error"]
    assert error["code"] in ("upstream_disconnected", "upstream_incomplete")
    assert "data: [DONE]" not in seen
    assert up.ask().status_code == 200


def test_an_engine_killed_while_it_loads_is_started_again(up: RunningUp) -> None:
    sleeping(up)
    killed = threading.Event()

    def kill_first() -> None:
        wait_until(lambda: bool(up.engines()), "an engine starts")
        for pid in up.engines():
            os.kill(pid, signal.SIGKILL)
        killed.set()

    killer = threading.Thread(target=kill_first)
    killer.start()
    first = up.ask()
    killer.join()
    assert killed.is_set()
    assert first.status_code in (200, 503)
    if first.status_code == 503:
        assert first.json()["error"]["code"] == "model_failed"
        assert int(first.headers["retry-after"]) >= 1
    wait_until(lambda: up.ask().status_code == 200, "it serves again", limit_s=120)


def test_a_flipped_bit_is_named_and_healed(up: RunningUp) -> None:
    sleeping(up)
    listed = json.loads(up.command("artifact", "ls", "--json").stdout)
    digest = next(a["digest"] for a in listed if a["reference"] == TARGET)
    blobs = up.home / "store" / "blobs" / "sha256"
    layers = json.loads((blobs / digest[7:]).read_bytes())["layers"]
    weight = max(layers, key=lambda layer: int(layer["size"]))["digest"]
    blob = blobs / weight[7:]
    blob.chmod(0o644)
    with blob.open("r+b") as file:
        file.seek(50_000_000)
        byte = file.read(1)[0]
        file.seek(50_000_000)
        file.write(bytes([byte ^ 1]))
    verified = up.command("artifact", "verify", TARGET)
    assert verified.returncode == 7
    assert weight in verified.stdout + verified.stderr
    wait_until(lambda: up.ask().status_code == 200, "it is healed and serves", limit_s=240)
    with blob.open("rb") as file:
        assert "sha256:" + hashlib.file_digest(file, "sha256").hexdigest() == weight


def test_the_operator_is_killed_and_its_engine_is_adopted(up: RunningUp) -> None:
    assert up.ask().status_code == 200
    engines = up.engines()
    operator = next(
        p
        for p in json.loads(up.command("status", "--json").stdout)["processes"]
        if p["name"] == "operator"
    )
    os.kill(operator["pid"], signal.SIGKILL)
    before = len(up.events("replica_started"))
    wait_until(lambda: bool(up.events("replica_adopted")), "the engine is adopted", limit_s=60)
    assert up.ask().status_code == 200
    assert up.engines() == engines
    assert len(up.events("replica_started")) == before


def test_prompts_and_keys_are_in_no_log(up: RunningUp) -> None:
    secret = "canary-7f3a9c-in-a-prompt"
    answer = up.ask(messages=[{"role": "user", "content": secret}])
    assert answer.status_code == 200
    keys = [
        f.read_text("utf-8")
        for f in (up.home / "run").rglob("*")
        if f.is_file() and "key" in f.name
    ]
    assert keys
    for log in (up.home / "logs").rglob("*"):
        text = log.read_text("utf-8", "replace") if log.is_file() else ""
        assert secret not in text, log
        assert not any(key.strip() in text for key in keys if key.strip()), log


def test_down_ends_everything(up: RunningUp) -> None:
    assert up.ask().status_code == 200
    stopped = up.command("down")
    assert stopped.returncode == 0, stopped.stderr
    assert up.process is not None
    assert up.process.wait(30) == 0
    assert up.everything() == []


def test_a_second_start_needs_no_build_and_a_killed_one_leaves_nothing(up: RunningUp) -> None:
    up.start()
    up.wait_ready(60)
    assert "resolve" not in up.said()
    assert up.ask().status_code == 200
    up.stop(signal.SIGKILL)
    wait_until(lambda: up.everything() == [], "children notice that `up` is gone", limit_s=60)
    up.environ["FLEXINFER_SERVE__DRAIN_TIMEOUT_S"] = "60"  # for a machine that is slow now
    up.start()
    up.wait_ready(60)
    assert up.ask().status_code == 200


def test_an_answer_that_is_being_written_is_finished_before_the_end(up: RunningUp) -> None:
    body = ENDLESS | {"max_tokens": 100}
    lines: list[str] = []
    with httpx.Client(trust_env=False, timeout=120.0) as http:
        with http.stream("POST", f"{up.url}/completions", json=body) as answer:
            for line in answer.iter_lines():
                if line and not lines:
                    assert up.process is not None
                    up.process.send_signal(signal.SIGTERM)
                    wait_until(lambda: bool(up.events("router_draining", "serve")), "it drains")
                lines += [line] if line else []
    assert lines[-1] == "data: [DONE]"
    assert json.loads(lines[-2].removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
    assert up.process is not None
    assert up.process.wait(60) == 0
    assert up.everything() == []
