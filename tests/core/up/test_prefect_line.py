"""What `up` says of Prefect is what it sees, and what it means for builds."""

from __future__ import annotations

import asyncio

import pytest

from flexinfer.places import Home
from flexinfer.process import free_port
from flexinfer.programs import PREFECT_SERVER
from flexinfer.settings import PrefectSection, Settings
from flexinfer.up.services import Service
from flexinfer.up.session import Session, _Running
from flexinfer.up.terminal import Terminal

SERVICE = Service(name="prefect", argv=(), is_essential=False, reads=PREFECT_SERVER)


def test_a_server_that_was_given_up_is_told_at_once(home: Home) -> None:
    session = Session(home, Settings(), {}, Terminal())
    session._running["prefect"] = _Running(SERVICE, gave_up=True)
    said = asyncio.run(asyncio.wait_for(session._prefect_line(), 30))
    assert said == "  Prefect   ended; each build tries to start it: see `flexinfer logs prefect`"


@pytest.mark.parametrize("is_users", [False, True])
def test_a_server_that_does_not_answer_is_not_said_to_be_needless(
    home: Home, is_users: bool
) -> None:
    settings = Settings(prefect=PrefectSection(start_timeout_s=0.01))
    url = f"http://127.0.0.1:{free_port()}/api"
    session = Session(home, settings, {"PREFECT_API_URL": url} if is_users else {}, Terminal())
    session._running["prefect"] = _Running(SERVICE)
    said = asyncio.run(session._prefect_line())
    if is_users:
        assert said == f"  Prefect   {url} does not answer; builds fail until it does"
    else:
        assert said.startswith("  Prefect   does not answer; builds wait for it: ")
