"""Which Host headers the guard lets in: an allowed host, with its port, and not one character more."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from flexinfer.settings import ServeSection
from flexinfer.testing.fleet import ScriptedFleet
from flexinfer_serving.api.guard import Guard
from flexinfer_serving.client import Message, Receive, Scope, Send
from flexinfer_serving.router import Router

OURS = ("localhost", "127.0.0.1", "[::1]", "a.localhost", "my.host")
KEYED = {"host": "0.0.0.0", "api_keys": ("sk-one",)}
REBOUND = (
    "127.0.0.1:80@evil.example", "[::1]evil.example:80", "[::1]evil.example", "[[::1]]", "[::1", "[127.0.0.1]",
    "[localhost]", "user@localhost", "localhost:80:80", "localhost:", "localhost:x", "localhost,evil.example",
    "evil.example/.localhost", "evil.example#.localhost", "evil.example\\.localhost", "::1", "localhost:80\n",
    "localhost:٨٠", ".localhost", "a..localhost", "localhost..", " localhost", "http://localhost", "",
)  # fmt: skip


def is_admitted(header: str, /, **section: Any) -> bool:
    """Return whether a request with that Host header comes through to the application."""
    given = ServeSection(allowed_hosts=("my.host",), **section)
    came: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        came.append(scope["path"])

    async def receive() -> Message:
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        pass

    headers = [(b"host", header.encode()), (b"authorization", b"Bearer sk-one")]
    scope = {"type": "http", "method": "GET", "path": "/v1/models", "headers": headers}
    guard = Guard(app, Router(section=given, source=ScriptedFleet(), sink=None))
    asyncio.run(guard(scope, receive, send))
    return bool(came)


@pytest.mark.parametrize("host", OURS)
@pytest.mark.parametrize("port", ["", ":1", ":8080", ":65535"])
def test_a_host_of_ours_is_let_in_with_and_without_its_port(host: str, port: str) -> None:
    assert is_admitted(host + port)
    assert is_admitted(host.upper() + port)


@pytest.mark.parametrize("host", REBOUND)
@pytest.mark.parametrize("section", [{}, KEYED])
def test_what_is_no_host_and_port_is_refused(host: str, section: dict[str, object]) -> None:
    assert not is_admitted(host, **section)


def test_an_address_is_let_in_only_where_strangers_are_expected() -> None:
    for host in ("10.1.2.3:80", "[fd00::1]:80"):
        assert is_admitted(host, **KEYED)
        assert not is_admitted(host)


around = st.text(
    st.characters(codec="ascii")
    | st.sampled_from("@:/?#[]\\.,; \t\n\0")
    | st.characters(codec="utf-8"),
    max_size=12,
)


@given(before=around, host=st.sampled_from(OURS), after=around)
@example(before="", host="127.0.0.1", after=":80@evil.example")
@example(before="", host="[::1]", after="evil.example:80")
@example(before="evil.example#", host="a.localhost", after="")
def test_nothing_stands_around_a_host_of_ours_but_its_port(
    before: str, host: str, after: str
) -> None:
    # Letters may make another name of this machine of it: 127.0.0.12, xa.localhost.
    plain = "" if host.startswith("[") else "[A-Za-z0-9_.-]*"
    if not re.fullmatch(f"{plain}<{plain}(:[0-9]{{1,5}})?", f"{before}<{after}"):
        assert not is_admitted(before + host + after)
