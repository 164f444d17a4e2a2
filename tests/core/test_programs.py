"""What each of our own programs is given of the environment."""

from __future__ import annotations

from pathlib import Path

import pytest

from flexinfer.programs import (
    BUILD,
    DRAWS,
    OPERATOR,
    PREFECT_SERVER,
    ROUTER,
    Reads,
    environment_for,
    forget_unread,
)
from flexinfer.settings import Settings, load

KEYS = "FLEXINFER_SERVE__API_KEYS"
ENVIRON = {
    "PATH": "/bin", KEYS: "fxi_secret", "FLEXINFER_serve__api_keys": "fxi_secret",
    "FLEXINFER_LOG__LEVEL": "debug", "FLEXINFER_BUILD__NICE": "3", "FLEXINFER_OPERATOR__RESCAN_S": "1",
    "FLEXINFER_PREFECT__PORT": "9", "FLEXINFER_HOME": "/elsewhere", "HF_TOKEN": "hf", "PREFECT_X": "p",
    "TERM": "xterm", "AWS_SECRET_ACCESS_KEY": "s",
}  # fmt: skip


def given(reads: Reads, *names: str) -> dict[str, str]:
    return environment_for(reads, Path("/home"), *names, environ=ENVIRON)


@pytest.mark.parametrize("reads", [BUILD, OPERATOR, PREFECT_SERVER])
def test_only_the_router_gets_its_keys(reads: Reads) -> None:
    assert "fxi_secret" not in given(reads).values()
    assert given(ROUTER)[KEYS] == "fxi_secret"


@pytest.mark.parametrize("reads", [ROUTER, PREFECT_SERVER])
def test_only_who_fetches_gets_the_tokens_of_sources(reads: Reads) -> None:
    assert "HF_TOKEN" not in given(reads)
    assert given(BUILD)["HF_TOKEN"] == given(OPERATOR)["HF_TOKEN"] == "hf"


def test_a_build_gets_the_settings_that_it_reads_and_the_home_it_is_for() -> None:
    assert given(BUILD, *DRAWS) == {
        "PATH": "/bin",
        "FLEXINFER_LOG__LEVEL": "debug",
        "FLEXINFER_BUILD__NICE": "3",
        "FLEXINFER_PREFECT__PORT": "9",
        "FLEXINFER_HOME": "/home",
        "HF_TOKEN": "hf",
        "PREFECT_X": "p",
        "TERM": "xterm",
    }


@pytest.mark.parametrize("reads", [BUILD, OPERATOR, PREFECT_SERVER, ROUTER])
def test_what_is_read_are_sections_that_there_are(reads: Reads) -> None:
    assert set(reads.sections) <= set(Settings.model_fields)
    load(Settings, given(reads))


def test_what_was_not_read_is_not_passed_on() -> None:
    environ = dict(ENVIRON)
    forget_unread(BUILD, environ)
    gone = {KEYS, "FLEXINFER_serve__api_keys", "FLEXINFER_OPERATOR__RESCAN_S"}
    assert environ == {name: text for name, text in ENVIRON.items() if name not in gone}
