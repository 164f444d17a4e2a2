"""What `up` and `run` wait for before they say that a Model can be asked."""

from __future__ import annotations

import asyncio
import http.server
import json
import threading
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from flexinfer.errors import Unavailable
from flexinfer.process import free_port
from flexinfer.settings import ServeSection
from flexinfer.up import router


@pytest.fixture
def listing() -> Iterator[SimpleNamespace]:
    """A router that is ready, and lists each of `answers` in turn, the last one for ever."""
    state = SimpleNamespace(answers=[], url="", port=0)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            more = len(state.answers) > 1 and self.path.endswith("/models")
            body = json.dumps(state.answers.pop(0) if more else state.answers[-1]).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            return

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.port = server.server_address[1]
    state.url = f"http://127.0.0.1:{state.port}/v1"
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield state
    server.shutdown()
    server.server_close()


def test_a_model_is_waited_for_until_it_is_listed(listing: SimpleNamespace) -> None:
    listing.answers = [{"data": []}, {"error": "not yet"}, {"data": [{"id": "mine", "created": 1}]}]
    asyncio.run(router.until_listed("mine", listing.url, {}))
    assert len(listing.answers) == 1


def test_one_that_is_not_listed_in_time_is_named_with_those_that_are(
    listing: SimpleNamespace,
) -> None:
    listing.answers = [{"data": [{"id": "other", "created": 1}]}]
    with pytest.raises(Unavailable, match=r"'mine' after 0 s \(it lists: other\)") as caught:
        asyncio.run(router.until_listed("mine", listing.url, {}, wait_s=0))
    assert caught.value.code == "model_not_listed"


def test_the_newest_is_listed_first(listing: SimpleNamespace) -> None:
    listing.answers = [{"data": [{"id": "old", "created": 1}, {"id": "new", "created": 2}]}]
    assert asyncio.run(router.models(listing.url, {})) == ("new", "old")


def test_a_model_written_just_now_is_served_once_it_is_listed(listing: SimpleNamespace) -> None:
    listing.answers = [{"data": []}, {"data": []}, {"data": [{"id": "mine", "created": 1}]}]
    serve = ServeSection(port=listing.port, admin_port=listing.port)
    asyncio.run(router.until_served(serve, ""))
    assert len(listing.answers) == 3
    asyncio.run(router.until_served(serve, "mine"))
    assert len(listing.answers) == 1


def test_a_router_that_is_not_there_is_neither_ready_nor_lists() -> None:
    port = free_port()
    assert asyncio.run(router.models(f"http://127.0.0.1:{port}/v1", {})) == ()
    with pytest.raises(Unavailable) as caught:
        asyncio.run(router.until_ready(ServeSection(admin_port=port), wait_s=0))
    assert caught.value.code == "router_not_ready"
