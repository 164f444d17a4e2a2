"""Redirects, credentials, checked addresses, limits: against real sockets."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace

import pytest

from flexinfer.errors import InvalidInput, TransferError
from flexinfer.net.client import Client, StatusError
from flexinfer.net.policy import Policy


def client(*urls: str, **more: object) -> Client:
    return Client(Policy.of((), configured=urls), environ={}, **more)  # type: ignore[arg-type]


def test_a_redirect_to_a_configured_host_is_followed_without_credentials(
    http: SimpleNamespace,
) -> None:
    async def run() -> None:
        async with http.serving(http.says(200, b"{}")) as target:
            async with http.serving(http.says(302, location=f"{target.url}/x?sig=1")) as first:
                host, port = first.url.removeprefix("http://").split(":")
                credentials = {(host, int(port)): "Bearer secret"}
                async with client(first.url, target.url, credentials=credentials) as asked:
                    _, body = await asked.get(f"{first.url}/file", max_bytes=10)
                assert body == b"{}"
                assert first.asked[0].headers["authorization"] == "Bearer secret"
                assert "authorization" not in target.asked[0].headers
                assert target.asked[0].target == "/x?sig=1"

    asyncio.run(run())


@pytest.mark.parametrize(
    "elsewhere", ["http://127.0.0.1:{port}/", "file:///etc/passwd", "http://[::1]/"]
)
def test_a_redirect_elsewhere_is_refused_before_it_is_dialled(
    http: SimpleNamespace, elsewhere: str
) -> None:
    async def run() -> None:
        async with http.serving(http.says(200, b"never")) as canary:
            place = elsewhere.format(port=canary.url.rpartition(":")[2])
            async with http.serving(http.says(302, location=place)) as first:
                async with client(first.url) as asked:
                    with pytest.raises(InvalidInput) as caught:
                        await asked.get(first.url, max_bytes=10)
            assert caught.value.code == "source_not_allowed"
            assert canary.connections == 0

    asyncio.run(run())


def test_a_redirect_to_a_public_host_that_nobody_allowed_is_not_even_looked_up(
    http: SimpleNamespace,
) -> None:
    looked_up: list[str] = []

    async def resolver(host: str, port: int) -> Sequence[str]:
        looked_up.append(host)
        return ("127.0.0.1",)

    async def run() -> None:
        async with http.serving(http.says(302, location="https://elsewhere.example/x")) as first:
            named = first.url.replace("127.0.0.1", "mirror.example")
            async with client(named, resolver=resolver) as asked:
                with pytest.raises(InvalidInput, match=r"elsewhere\.example"):
                    await asked.get(named, max_bytes=10)
        assert looked_up == ["mirror.example"]

    asyncio.run(run())


def test_redirects_end(http: SimpleNamespace) -> None:
    async def run() -> None:
        async with http.serving(http.says(302, location="/again")) as server:
            async with client(server.url) as asked:
                with pytest.raises(TransferError) as caught:
                    await asked.get(server.url, max_bytes=10)
            assert caught.value.code == "too_many_redirects"
            assert len(server.asked) == 6

    asyncio.run(run())


@pytest.mark.parametrize("answer", [("127.0.0.1",), ("8.8.8.8", "127.0.0.1"), ("169.254.169.254",)])
def test_a_name_that_leads_inside_is_never_dialled(answer: Sequence[str]) -> None:
    async def resolver(host: str, port: int) -> Sequence[str]:
        return answer

    async def run() -> None:
        policy = Policy.of(("hub.example",))
        async with Client(policy, environ={}, resolver=resolver) as asked:
            with pytest.raises(InvalidInput) as caught:
                await asked.get("https://hub.example/", max_bytes=10)
        assert caught.value.code == "source_not_allowed"

    asyncio.run(run())


def test_the_address_that_was_checked_is_the_one_that_is_dialled(http: SimpleNamespace) -> None:
    asked_names: list[str] = []

    async def resolver(host: str, port: int) -> Sequence[str]:
        asked_names.append(host)
        return ("127.0.0.1",) if len(asked_names) == 1 else ("10.0.0.1",)

    async def run() -> None:
        async with http.serving(http.says(200, b"ok")) as server:
            named = server.url.replace("127.0.0.1", "mirror.example")
            async with client(named, resolver=resolver) as asked:
                _, body = await asked.get(f"{named}/x", max_bytes=10)
            assert body == b"ok"
            assert asked_names == ["mirror.example"]
            assert server.asked[0].headers["host"].startswith("mirror.example:")

    asyncio.run(run())


def test_an_answer_above_the_limit_is_cut(http: SimpleNamespace) -> None:
    async def run() -> None:
        async with http.serving(http.says(200, b"x" * 100_000)) as server:
            async with client(server.url) as asked:
                with pytest.raises(TransferError) as caught:
                    await asked.get(server.url, max_bytes=1000)
        assert caught.value.code == "answer_too_large"

    asyncio.run(run())


def test_a_refusal_names_host_and_status_but_no_query(http: SimpleNamespace) -> None:
    async def run() -> None:
        async with http.serving(http.says(403, b"accept\nthe licence")) as server:
            async with client(server.url) as asked:
                with pytest.raises(StatusError, match="HTTP 403: accept the licence") as caught:
                    await asked.get(f"{server.url}/x?token=secret", max_bytes=1000)
        assert caught.value.status == 403
        assert "secret" not in caught.value.message

    asyncio.run(run())


def test_the_users_proxy_is_asked_and_gets_its_password(http: SimpleNamespace) -> None:
    async def run() -> None:
        async with http.serving(http.says(200, b"by proxy")) as proxy:
            environ = {"http_proxy": proxy.url.replace("http://", "http://me:pw@")}
            policy = Policy.of((), configured=("http://mirror.example:80",))
            async with Client(policy, environ=environ) as asked:
                _, body = await asked.get("http://mirror.example/a", max_bytes=100)
            assert body == b"by proxy"
            assert proxy.asked[0].target == "http://mirror.example/a"
            assert proxy.asked[0].headers["proxy-authorization"] == "Basic bWU6cHc="

    asyncio.run(run())


def test_a_caller_cannot_smuggle_credentials_past_their_binding() -> None:
    async def run() -> None:
        async with client("http://127.0.0.1:9") as asked:
            with pytest.raises(InvalidInput, match="Authorization"):
                await asked.get("http://127.0.0.1:9", max_bytes=1, headers={"Authorization": "x"})

    asyncio.run(run())
