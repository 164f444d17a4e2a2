"""A hub on loopback that speaks the real API to the real `huggingface_hub`, with every fault we must bear."""

from __future__ import annotations

import asyncio
import hashlib
import http.server
import json
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import pytest

from flexinfer.errors import (
    FlexInferError,
    IntegrityError,
    InvalidInput,
    NotFound,
    TransferError,
    Unauthorized,
)
from flexinfer.places import Home
from flexinfer.process import free_port
from flexinfer.resources.source import parse_source
from flexinfer_pipelines.sources import Resolved
from flexinfer_pipelines.steps import Context
from flexinfer_pipelines.steps.fetch import Fetched, fetch
from flexinfer_pipelines.steps.resolve import resolve, source_for

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPO = "org/tiny"
README = b"# Tiny\n"
Make = Callable[..., Context]


def git_blob(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


@dataclass
class Hub:
    """One repository. What it serves may differ from what it lists."""

    files: dict[str, bytes]
    large: frozenset[str]
    served: dict[str, bytes] = field(default_factory=dict)
    license: str = "apache-2.0"
    commit: str = COMMIT
    looks: int = 0
    """How often it was asked what the repository is."""
    refusal: tuple[int, str] | None = None
    refuses_files: tuple[int, str] | None = None
    busy: int = 0
    """How many requests for a file are answered by 429."""
    break_after: list[int] = field(default_factory=list)
    cdn: str = ""
    asked: list[tuple[str, str, str]] = field(default_factory=list)
    """Path, range and authorization of each request for a file."""
    url: str = ""

    def answer(self, request: Any) -> None:
        path = urlsplit(request.path).path
        api = f"/api/models/{REPO}"
        if path.startswith("/api/") and self.refusal is not None:
            status, code = self.refusal
            return send(request, status, b'{"error":"no"}', {"x-error-code": code} if code else {})
        if path.startswith(f"{api}/revision/"):
            self.looks += 1
            return send_json(request, self._info())
        if path.startswith(f"{api}/tree/{self.commit}"):
            return send_json(request, [self._entry(name) for name in self.files])
        prefix = f"/{REPO}/resolve/{COMMIT}/"
        if path.startswith(prefix) or path.startswith("/cdn/"):
            return self._file(request, path.removeprefix(prefix).removeprefix("/cdn/"))
        send(request, 404, b"", {"x-error-code": "RepoNotFound"})

    def _info(self) -> dict[str, Any]:
        tags = [f"license:{self.license}"] if self.license else []
        return {
            "id": REPO,
            "sha": self.commit,
            "tags": tags,
            "siblings": [],
            "cardData": {"license": self.license},
        }

    def _entry(self, name: str) -> dict[str, Any]:
        data = self.files[name]
        commit = {"id": COMMIT, "title": "t", "date": "2026-03-04T05:06:07.000Z"}
        found: dict[str, Any] = {
            "type": "file",
            "path": name,
            "size": len(data),
            "oid": git_blob(data),
        }
        if name in self.large:
            digest = hashlib.sha256(data).hexdigest()
            found["lfs"] = {"oid": digest, "size": len(data), "pointerSize": 130}
        return {**found, "lastCommit": commit}

    def _file(self, request: Any, name: str) -> None:
        span = request.headers.get("range", "")
        self.asked.append((request.path, span, request.headers.get("authorization", "")))
        if self.refuses_files is not None:
            status, code = self.refuses_files
            return send(request, status, b"", {"x-error-code": code} if code else {})
        if self.busy:
            self.busy -= 1
            return send(request, 429, b"", {"retry-after": "0"})
        if self.cdn and request.path.startswith(f"/{REPO}"):
            return send(request, 302, b"", {"location": f"{self.cdn}/cdn/{name}?sig=1"})
        data = self.served.get(name, self.files[name])
        first = int(span.removeprefix("bytes=").partition("-")[0] or 0) if span else 0
        headers = {"etag": '"e"'}
        if span:
            headers["content-range"] = f"bytes {first}-{len(data) - 1}/{len(data)}"
        limit = self.break_after.pop(0) if self.break_after else None
        send(request, 206 if span else 200, data[first:], headers, limit)


def send(
    request: Any, status: int, body: bytes, headers: dict[str, str], limit: int | None = None
) -> None:
    request.send_response(status)
    for name, value in {"content-length": str(len(body)), **headers}.items():
        request.send_header(name, value)
    request.end_headers()
    if request.command != "HEAD":
        request.wfile.write(body if limit is None else body[:limit])
    request.close_connection = request.close_connection or limit is not None


def send_json(request: Any, tree: Any) -> None:
    send(request, 200, json.dumps(tree).encode(), {"content-type": "application/json"})


def serve(hub: Hub) -> http.server.ThreadingHTTPServer:
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            hub.answer(self)

        def log_message(self, *_: object) -> None:
            return

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    return server


@pytest.fixture
def hub(tiny: bytes) -> Iterator[Hub]:
    found = Hub(
        files={"tiny.gguf": tiny, "README.md": README, "config.json": b"{}"},
        large=frozenset({"tiny.gguf", "model.safetensors"}),
    )
    server = serve(found)
    yield found
    server.shutdown()
    server.server_close()


@pytest.fixture
def context(home: Home, make_context: Make, hub: Hub) -> Context:
    return make_context(home, {"HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_secret", "HOME": os.devnull})


def ask(context: Context, text: str = f"hf://{REPO}") -> Resolved:
    uri = parse_source(text)
    source = source_for(context, uri)
    return asyncio.run(source.resolve(uri))


def fetch_all(context: Context, make_entry: Any, text: str = f"hf://{REPO}") -> tuple[Fetched, ...]:
    entry = make_entry(text)

    async def run() -> tuple[Fetched, ...]:
        source = source_for(context, entry.spec.source.parsed())
        try:
            plan = await resolve(context, entry, entry.default_variant, source)
            return await fetch(context, plan, source)
        finally:
            await source.close()

    return asyncio.run(run())


def failure(context: Context, make_entry: Any, text: str = f"hf://{REPO}") -> FlexInferError:
    with pytest.raises(FlexInferError) as caught:
        fetch_all(context, make_entry, text)
    return caught.value


def test_a_branch_is_pinned_to_its_commit(context: Context, tiny: bytes) -> None:
    found = ask(context)
    assert found.identity == f"hf://{REPO}@{COMMIT}"
    assert found.license == "apache-2.0"
    assert found.created_at == "2026-03-04T05:06:07Z"
    assert not found.is_pinned
    digests = {file.path: file.digest for file in found.files}
    assert digests["tiny.gguf"] == f"sha256:{hashlib.sha256(tiny).hexdigest()}"
    assert digests["README.md"] == f"git-sha1:{git_blob(README)}"


def test_one_file_of_a_commit_is_pinned_for_ever(context: Context) -> None:
    found = ask(context, f"hf://{REPO}@{COMMIT}/tiny.gguf")
    assert found.is_pinned
    assert [file.path for file in found.files] == ["tiny.gguf", "README.md"]


def test_a_hub_that_names_no_commit_is_asked_once(
    context: Context, make_entry: Any, hub: Hub
) -> None:
    hub.commit = "main"
    error = failure(context, make_entry)
    assert isinstance(error, IntegrityError)
    assert error.code == "source_unpinned"
    assert hub.looks == 1


def test_a_hub_that_is_not_there_is_said_to_be_as_by_the_client(
    home: Home, make_context: Make
) -> None:
    context = make_context(home, {"HF_ENDPOINT": f"http://127.0.0.1:{free_port('127.0.0.1')}"})
    with pytest.raises(TransferError) as caught:
        ask(context)
    assert caught.value.code == "connect_failed"


def test_a_missing_file_names_the_nearest(context: Context) -> None:
    with pytest.raises(NotFound, match=r"did you mean 'tiny\.gguf'"):
        ask(context, f"hf://{REPO}/tinny.gguf")


def test_bytes_arrive_verified_and_documents_too(
    context: Context, make_entry: Any, tiny: bytes, watch: Any
) -> None:
    files = fetch_all(context, make_entry)
    stored = {file.path: context.store.path(file.digest).read_bytes() for file in files}
    assert stored == {"tiny.gguf": tiny, "README.md": README}
    # What is shown in the end is all of it, not the last file.
    whole = len(tiny) + len(README)
    assert [move for move in watch.moves if move[0] == "fetch"][-1] == ("fetch", whole, whole)


def test_the_token_goes_to_the_hub_and_never_to_its_storage(
    context: Context, make_entry: Any, hub: Hub, tiny: bytes
) -> None:
    storage = Hub(files=hub.files, large=hub.large)
    server = serve(storage)
    try:
        hub.cdn = storage.url
        context = make_allowed(context, storage.url)
        fetch_all(context, make_entry)
    finally:
        server.shutdown()
        server.server_close()
    assert {sent for _, _, sent in hub.asked} == {"Bearer hf_secret"}
    assert {sent for _, _, sent in storage.asked} == {""}


def make_allowed(context: Context, url: str) -> Context:
    """Storage on another host that the user has allowed. It is http, so it is named as a mirror is: by its URL."""
    from dataclasses import replace

    build = context.settings.build.model_copy(update={"allowed_hosts": (url,)})
    return replace(context, settings=context.settings.model_copy(update={"build": build}))


def test_a_redirect_to_a_host_that_nobody_named_is_refused(
    context: Context, make_entry: Any, hub: Hub
) -> None:
    hub.cdn = "http://127.0.0.1:9"
    assert failure(context, make_entry).code == "source_not_allowed"


def test_broken_and_busy_answers_are_resumed(
    context: Context, make_entry: Any, hub: Hub, tiny: bytes
) -> None:
    hub.busy = 1
    hub.break_after = [100_000]
    files = fetch_all(context, make_entry, f"hf://{REPO}/tiny.gguf")
    assert context.store.path(files[0].digest).read_bytes() == tiny
    spans = [span for path, span, _ in hub.asked if path.endswith("tiny.gguf")]
    assert spans == ["", "", "bytes=100000-"]


@pytest.mark.parametrize("name", ["tiny.gguf", "README.md"])
def test_a_flipped_byte_is_never_kept(
    context: Context, make_entry: Any, hub: Hub, name: str
) -> None:
    data = hub.files[name]
    hub.served[name] = bytes([data[0] ^ 1]) + data[1:]
    error = failure(context, make_entry)
    assert isinstance(error, IntegrityError)
    assert error.code == "source_digest"
    assert name in error.message
    digest = hashlib.sha256(hub.served[name]).hexdigest()
    assert not (context.home.store / "blobs" / "sha256" / digest).exists()


def test_another_size_than_listed_is_refused(context: Context, make_entry: Any, hub: Hub) -> None:
    hub.served["tiny.gguf"] = hub.files["tiny.gguf"] + b"x"
    assert isinstance(failure(context, make_entry), IntegrityError)


@pytest.mark.parametrize(
    ("status", "code", "kind", "expected", "said"),
    [
        (403, "GatedRepo", Unauthorized, "gated", "accept the licence at"),
        (401, "", Unauthorized, "gated", "does not accept the token"),
        (404, "RepoNotFound", NotFound, "source_not_found", "not found"),
    ],
)
@pytest.mark.parametrize("where", ["refusal", "refuses_files"])
def test_what_a_refusal_means_is_said(
    context: Context, make_entry: Any, hub: Hub,
    status: int, code: str, kind: type[FlexInferError], expected: str, said: str, where: str,
) -> None:  # fmt: skip
    setattr(hub, where, (status, code))
    error = failure(context, make_entry)
    assert isinstance(error, kind)
    assert error.code == expected
    assert said in error.message
    assert "hf_secret" not in error.message


def test_without_a_token_a_401_says_so(
    home: Home, make_context: Make, make_entry: Any, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    hub.refusal = (401, "")
    error = failure(make_context(home, {"HF_ENDPOINT": hub.url}), make_entry)
    assert error.code == "gated"
    assert "no token was sent" in error.message


def test_safetensors_alone_are_refused_before_a_byte_moves(
    context: Context, make_entry: Any, hub: Hub
) -> None:
    hub.files = {"model.safetensors": b"x" * 1000, "config.json": b"{}"}
    error = failure(context, make_entry)
    assert isinstance(error, InvalidInput)
    assert error.code == "source_format_unsupported"
    assert hub.asked == []


def test_another_licence_is_refused_before_a_byte_moves(
    context: Context, make_entry: Any, hub: Hub
) -> None:
    hub.license = "llama3.2"
    assert failure(context, make_entry).code == "license"
    assert hub.asked == []


def test_what_was_fetched_is_not_fetched_again(
    context: Context, make_entry: Any, hub: Hub, tiny: bytes
) -> None:
    fetch_all(context, make_entry)
    before = len(hub.asked)
    fetch_all(context, make_entry)
    asked = [path for path, _, _ in hub.asked[before:]]
    assert not any(path.endswith("tiny.gguf") for path in asked)
