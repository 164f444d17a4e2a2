"""A download against servers that break, lie, forget and refuse."""

from __future__ import annotations

import asyncio
import random
from contextlib import aclosing
from types import SimpleNamespace
from typing import Any

import pytest

from flexinfer.errors import FlexInferError, TransferError, Unavailable
from flexinfer.net.client import Client, StatusError, Timeouts
from flexinfer.net.download import Downloader, SourceChanged
from flexinfer.net.policy import Policy
from flexinfer.net.retry import Retry

DATA = random.Random(7).randbytes(300_000)


class Fetched:
    def __init__(self) -> None:
        self.data = bytearray()
        self.slept: list[float] = []
        self.asked: list[Any] = []
        self.error: FlexInferError | None = None


def fetch(
    http: SimpleNamespace, *replies: Any, have: bytes = b"", stall_s: float = 5.0, **more: Any
) -> Fetched:
    found = Fetched()
    found.data += have

    async def sleep(seconds: float) -> None:
        found.slept.append(seconds)

    async def run() -> None:
        async with http.serving(*replies) as server:
            policy = Policy.of((), configured=(server.url,))
            timeouts = Timeouts(connect_s=2.0, stall_s=stall_s)
            async with Client(policy, environ={}, timeouts=timeouts) as client:
                downloader = Downloader(
                    client, retry=Retry(attempts=3), chance=random.Random(1), sleep=sleep
                )
                arguments = {"max_bytes": 1_000_000, "offset": len(have), **more}
                try:
                    async with aclosing(
                        downloader.chunks(f"{server.url}/f", **arguments)
                    ) as chunks:
                        async for chunk in chunks:
                            found.data += chunk
                except FlexInferError as error:
                    found.error = error
            found.asked = server.asked

    asyncio.run(run())
    return found


def test_a_whole_file_arrives(http: SimpleNamespace) -> None:
    found = fetch(http, http.file(DATA))
    assert found.error is None
    assert bytes(found.data) == DATA
    assert found.asked[0].headers["accept-encoding"] == "identity"


def test_a_broken_connection_goes_on_where_it_stopped(http: SimpleNamespace) -> None:
    found = fetch(http, http.file(DATA, stop_after=100_000), http.file(DATA))
    assert bytes(found.data) == DATA
    assert found.asked[1].headers["range"] == "bytes=100000-"
    assert found.asked[1].headers["if-range"] == '"a"'


def test_a_partial_of_an_earlier_run_is_not_fetched_again(http: SimpleNamespace) -> None:
    found = fetch(http, http.file(DATA), have=DATA[:200_000])
    assert bytes(found.data) == DATA
    assert found.asked[0].headers["range"] == "bytes=200000-"


def test_a_complete_partial_moves_nothing(http: SimpleNamespace) -> None:
    found = fetch(http, http.file(DATA), have=DATA)
    assert found.error is None
    assert bytes(found.data) == DATA


def test_a_partial_that_is_too_long_is_given_up(http: SimpleNamespace) -> None:
    found = fetch(http, http.file(DATA), have=DATA + b"x")
    assert isinstance(found.error, SourceChanged)


def test_a_server_that_ignores_ranges_costs_only_time(http: SimpleNamespace) -> None:
    whole = http.says(200, DATA)
    found = fetch(http, http.file(DATA, stop_after=100_000), whole)
    assert bytes(found.data) == DATA


def test_a_file_that_changed_in_between_is_noticed(http: SimpleNamespace) -> None:
    other = http.file(DATA[::-1], etag='"b"')
    found = fetch(http, http.file(DATA, stop_after=100_000), other)
    assert isinstance(found.error, SourceChanged)
    assert bytes(found.data) == DATA[:100_000]


def test_the_server_says_how_long_to_wait(http: SimpleNamespace) -> None:
    busy = http.says(429, **{"retry-after": "2"})
    found = fetch(http, busy, http.says(503), http.file(DATA))
    assert bytes(found.data) == DATA
    assert found.slept[0] >= 2.0
    assert 0 < found.slept[1] < 2.0


def test_a_long_wait_is_the_callers_to_decide(http: SimpleNamespace) -> None:
    found = fetch(http, http.says(503, **{"retry-after": "3600"}))
    assert isinstance(found.error, Unavailable)
    assert found.error.retry_after_s == 3600
    assert found.slept == []


def test_tries_without_progress_are_counted(http: SimpleNamespace) -> None:
    found = fetch(http, http.says(503))
    assert isinstance(found.error, StatusError)
    assert len(found.asked) == 4


def test_progress_renews_the_tries(http: SimpleNamespace) -> None:
    step = http.file(DATA, stop_after=70_000)
    found = fetch(http, step)
    assert bytes(found.data) == DATA
    assert len(found.asked) == 5


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_a_refusal_is_not_asked_again(http: SimpleNamespace, status: int) -> None:
    found = fetch(http, http.says(status))
    assert isinstance(found.error, StatusError)
    assert found.error.status == status
    assert len(found.asked) == 1


def test_a_stall_is_noticed_and_resumed(http: SimpleNamespace) -> None:
    async def stalls(asked: Any, writer: asyncio.StreamWriter) -> None:
        writer.write(f"HTTP/1.1 200 x\r\ncontent-length: {len(DATA)}\r\n\r\n".encode() + DATA[:9])
        await writer.drain()
        await asyncio.sleep(1.5)  # the fault itself: a server that says nothing

    found = fetch(http, stalls, http.file(DATA), stall_s=0.2)
    assert bytes(found.data) == DATA


def test_a_body_without_a_length_that_ends_early_is_resumed(http: SimpleNamespace) -> None:
    async def short(asked: Any, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 x\r\nconnection: close\r\n\r\n" + DATA[:100_000])

    found = fetch(http, short, http.file(DATA), size=len(DATA))
    assert bytes(found.data) == DATA
    assert found.asked[1].headers["range"] == "bytes=100000-"


def test_a_size_that_differs_from_the_announced_one_is_refused(http: SimpleNamespace) -> None:
    found = fetch(http, http.file(DATA), size=len(DATA) - 1)
    assert found.error is not None
    assert found.error.code == "size_mismatch"
    assert not found.data


def test_a_file_above_the_limit_is_refused_before_its_body(http: SimpleNamespace) -> None:
    found = fetch(http, http.file(DATA), max_bytes=1000)
    assert isinstance(found.error, TransferError)
    assert found.error.code == "answer_too_large"
    assert not found.data


def test_an_encoded_answer_is_refused(http: SimpleNamespace) -> None:
    found = fetch(http, http.says(200, b"x", **{"content-encoding": "gzip"}))
    assert found.error is not None
    assert found.error.code == "answer_invalid"
    assert len(found.asked) == 1
