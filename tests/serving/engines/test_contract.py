"""What every engine plug-in keeps, whatever it starts: one more plug-in is one more name, and no line here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexinfer.engine import ENGINES, Endpoint, Engine, EngineArtifact, Resources, Substage
from flexinfer.errors import InvalidInput
from flexinfer.launching import KEY_SECRET, bind
from flexinfer.toolenv import lock_of

FILES = {
    "gguf": ("model.gguf",),
    "safetensors": ("config.json", "model.safetensors", "tokenizer.json"),
}
MACHINE = Resources(threads=2, memory_bytes=8 << 30)

each_engine = pytest.mark.parametrize(
    "engine", [ENGINES.get(name)() for name in ENGINES.names()], ids=ENGINES.names()
)


def artifact(engine: Engine, **changes: object) -> EngineArtifact:
    kind = min(engine.formats)
    fields: dict[str, object] = {
        "digest": "sha256:" + "b" * 64,
        "format": kind,
        "quantization": "Q8_0",
        "architecture": "llama",
        "files": FILES[kind],
        "size_bytes": 1 << 20,
        "context_length": 8192,
        "has_chat_template": True,
    }
    return EngineArtifact(**{**fields, **changes})  # type: ignore[arg-type]  # fields by name


@each_engine
def test_its_name_is_the_name_that_it_is_published_under(engine: Engine) -> None:
    assert engine.name in ENGINES.names()
    assert type(engine) is ENGINES.get(engine.name)


@each_engine
def test_its_tool_environment_has_a_lock(engine: Engine) -> None:
    assert "--hash=sha256:" in lock_of(engine.tool).read_text("utf-8")


@each_engine
def test_an_empty_config_is_a_good_one(engine: Engine) -> None:
    assert engine.problems({}) == ()
    limits = engine.limits({})
    assert limits.context_tokens > 0
    assert limits.slots > 0


@each_engine
def test_an_unknown_key_is_refused_by_name(engine: Engine) -> None:
    (problem,) = engine.problems({"noSuchKeyEver": 1})
    assert problem.key == "noSuchKeyEver"


@each_engine
def test_every_placeholder_of_a_launch_can_be_bound(engine: Engine) -> None:
    launch = engine.launch({}, artifact(engine), MACHINE)
    spec = bind(
        launch,
        name="replica-1",
        python=Path("/tools/bin/python"),
        artifact=Path("/artifacts/one"),
        ports={port: 4000 + n for n, port in enumerate(launch.ports)},
        secrets={secret: Path(f"/run/{secret}") for secret in launch.secrets},
        log_path=None,
    )
    assert not any("{" in text for text in (*spec.argv, *spec.environment.values()))
    assert any(text.startswith("/artifacts/one") for text in spec.argv)


@each_engine
def test_a_launch_starts_our_program_with_a_key_of_its_own_and_a_probe_that_has_a_port(
    engine: Engine,
) -> None:
    launch = engine.launch({}, artifact(engine), MACHINE)
    assert launch.tool == engine.tool
    assert launch.program.is_file()
    assert KEY_SECRET in launch.secrets
    assert launch.readiness.port in launch.ports
    assert launch.readiness.path.startswith("/")


@each_engine
def test_the_same_question_gets_the_same_answer(engine: Engine) -> None:
    first = engine.launch({}, artifact(engine), MACHINE)
    assert engine.launch({}, artifact(engine), MACHINE) == first


@each_engine
def test_an_artifact_of_another_format_is_refused(engine: Engine) -> None:
    with pytest.raises(InvalidInput) as refused:
        engine.launch({}, artifact(engine, format="tensors-of-mars"), MACHINE)
    assert refused.value.code == "backend_unsupported"
    assert "tensors-of-mars" in refused.value.message


@each_engine
def test_it_offers_something_and_has_a_path_for_it(engine: Engine) -> None:
    offered = engine.endpoints({}, artifact(engine))
    assert offered
    assert all(engine.path(endpoint).startswith("/") for endpoint in offered)


@each_engine
def test_its_headers_carry_the_key(engine: Engine) -> None:
    headers = engine.headers("k3y-of-this-launch")
    assert any("k3y-of-this-launch" in value for value in headers.values())
    assert all(name == name.lower() for name in headers)


@each_engine
@given(
    status=st.integers(400, 599),
    body=st.one_of(
        st.binary(max_size=200),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.text(max_size=20),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(st.sampled_from(["error", "message", "code", "type"]), inner)
            ),
            max_leaves=6,
        ).map(lambda tree: json.dumps(tree).encode()),
    ),
    endpoint=st.none() | st.sampled_from(Endpoint),
)
def test_any_refusal_becomes_an_error_that_a_client_can_read(
    engine: Engine, status: int, body: bytes, endpoint: Endpoint | None
) -> None:
    error = engine.error(status, body, endpoint)
    assert 400 <= error.status <= 599
    assert error.code and error.code == error.code.lower()
    assert 0 < len(error.message) <= 1000
    assert error.message.isprintable()


@each_engine
@given(lines=st.lists(st.text(max_size=80), max_size=8), code=st.none() | st.integers(-70, 300))
def test_any_end_has_a_cause_and_a_remedy(
    engine: Engine, lines: list[str], code: int | None
) -> None:
    cause = engine.cause(lines, code)
    assert cause.code and cause.code == cause.code.lower()
    assert cause.message and cause.remedy
    assert len(cause.message) < 500
    assert all(engine.substage(line) in (None, *Substage) for line in lines)


@each_engine
def test_an_end_by_a_signal_is_told_as_one_and_worth_another_try(engine: Engine) -> None:
    cause = engine.cause((), -9)
    assert (cause.code, cause.retryable) == ("engine_killed", True)
    assert "SIGKILL" in cause.message


@each_engine
def test_it_names_the_metrics_that_a_choice_among_replicas_needs(engine: Engine) -> None:
    assert {"running", "waiting"} <= engine.metric_names().keys()
