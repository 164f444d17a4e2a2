"""A repository on the Hugging Face hub, or on what `HF_ENDPOINT` names instead."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing
from datetime import UTC, datetime
from itertools import islice
from typing import Any, ClassVar, TypeVar
from urllib.parse import quote

from flexinfer.errors import (
    FlexInferError,
    IntegrityError,
    InvalidInput,
    NotFound,
    TransferError,
    Unauthorized,
    Unavailable,
)
from flexinfer.net.client import Client, StatusError, Timeouts
from flexinfer.net.download import Downloader
from flexinfer.net.policy import Policy, origin_of
from flexinfer.net.retry import Retry, retry_after_s
from flexinfer.net.trust import ssl_context
from flexinfer.oci.layout_target import in_thread
from flexinfer.resources.source import SourceUri
from flexinfer.spelling import nearest
from flexinfer_pipelines.resolved import is_document
from flexinfer_pipelines.sources import EPOCH, Moved, Resolved, Source, SourceFile, SourceTools

T = TypeVar("T")
_PUBLIC = "https://huggingface.co"
# Where the hub sends downloads to: its storage front ends.
_HOSTS = ("huggingface.co", "*.huggingface.co", "hf.co", "*.hf.co")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_MAX_FILES = 10_000
_LIST_TIMEOUT_S = 60.0


class HuggingFaceSource(Source):
    """`hf://org/repo[@revision][/path]`. Its identity is the commit; the hub lists files and hashes at it.

    `huggingface_hub` asks the API (its tokens, its `HF_ENDPOINT`); the bytes come through our own client, resumable,
    and whoever stores them compares the hash.
    """

    scheme: ClassVar[str] = "hf"

    def __init__(self, tools: SourceTools) -> None:
        super().__init__(tools)
        self._endpoint = (tools.environ.get("HF_ENDPOINT") or _PUBLIC).rstrip("/")
        self._client: Client | None = None

    async def resolve(self, uri: SourceUri) -> Resolved:
        asked = uri.revision or "main"
        info, entries = await in_thread(self._asked, uri, asked)
        commit = str(info.sha or "")
        if not _COMMIT.fullmatch(commit):
            raise IntegrityError(
                f"{uri}: the hub names no commit for {asked!r}", code="source_unpinned"
            )
        wanted = [entry for entry in entries if not uri.path or entry.path == uri.path]
        if uri.path and not wanted:
            near = nearest(uri.path, [entry.path for entry in entries])
            raise NotFound(f"{uri}: no file {uri.path!r}{near}", code="source_not_found")
        documents = [e for e in entries if uri.path and is_document(e.path)]
        inner = f"/{uri.path}" if uri.path else ""
        return Resolved(
            uri=str(uri),
            identity=f"hf://{uri.name}@{commit}{inner}",
            files=tuple(_file(entry) for entry in (*wanted, *documents)),
            license=_license(info),
            revision=commit,
            created_at=_latest(wanted),
            url=f"{self._endpoint}/{uri.name}",
            is_pinned=bool(_COMMIT.fullmatch(uri.revision)),
            location=f"{self._endpoint}/{uri.name}/resolve/{commit}",
        )

    async def open(
        self, resolved: Resolved, file: SourceFile, *, offset: int, moved: Moved
    ) -> AsyncGenerator[bytes, None]:
        build = self.tools.settings.build
        if self._client is None:
            self._client = await in_thread(self._make_client)
        downloader = Downloader(
            self._client, retry=Retry(attempts=build.fetch_retries), chance=self.tools.chance
        )
        url = f"{resolved.location}/{quote(file.inner or file.path)}"
        stream = downloader.chunks(
            url, offset=offset, max_bytes=build.max_file_bytes, size=file.size
        )
        try:
            async with aclosing(stream) as chunks:
                async for chunk in chunks:
                    yield chunk
        except StatusError as error:
            raise refused(f"{resolved.uri}: {file.path}", resolved.url, error) from error

    async def close(self) -> None:
        if self._client is not None:
            await self._client.__aexit__(None, None, None)
            self._client = None

    def _make_client(self) -> Client:
        token = self._token()
        origin = origin_of(self._endpoint)
        build = self.tools.settings.build
        configured = self.tools.allowed_urls()
        if self._endpoint != _PUBLIC:
            configured.append(self._endpoint)
        return Client(
            Policy.of(_HOSTS, configured=configured),
            environ=self.tools.environ,
            credentials={origin.address: f"Bearer {token}"} if token else {},
            timeouts=Timeouts(stall_s=build.fetch_stall_s),
        )

    def _token(self) -> str:
        from huggingface_hub import get_token

        return (self.tools.environ.get("HF_TOKEN") or get_token() or "").strip()

    def _asked(self, uri: SourceUri, revision: str) -> tuple[Any, list[Any]]:
        """Ask the hub what the repository is and holds at *revision*. Blocks."""
        from huggingface_hub import HfApi, get_session, set_client_factory

        first = get_session()
        # The library's own client waits for ever and knows only one of the CA variables.
        set_client_factory(
            lambda: type(first)(
                event_hooks=first.event_hooks,
                follow_redirects=True,
                timeout=_LIST_TIMEOUT_S,
                verify=ssl_context(self.tools.environ),
            )
        )
        api = HfApi(endpoint=self._endpoint, token=self._token() or False, library_name="flexinfer")

        def ask() -> tuple[Any, list[Any]]:
            info = api.model_info(uri.name, revision=revision, timeout=_LIST_TIMEOUT_S)
            tree: Iterator[Any] = iter(
                api.list_repo_tree(uri.name, recursive=True, expand=True, revision=info.sha)
            )
            entries = [entry for entry in islice(tree, _MAX_FILES + 1) if hasattr(entry, "blob_id")]
            if len(entries) > _MAX_FILES:
                raise InvalidInput(
                    f"{uri}: more than {_MAX_FILES} files; name one, or use `allow`",
                    code="source_too_large",
                )
            return info, entries

        return _translated(uri, f"{self._endpoint}/{uri.name}", self._token(), ask)


def refused(what: str, page: str, error: StatusError) -> FlexInferError:
    """Return what a hub's refusal means to the user: gated, absent, or something that may pass."""
    code = error.headers.get("x-error-code", "")
    return _refusal(what, page, error.status, code, error.message, token=True) or error


def _refusal(
    what: str, page: str, status: int, code: str, said: str, *, token: bool
) -> FlexInferError | None:
    if code == "GatedRepo" or status == 403:
        return Unauthorized(
            f"{what}: gated: accept the licence at {page} with the account that owns the token, then retry",
            code="gated",
        )
    if status == 401 and not token:
        return Unauthorized(
            f"{what}: gated, private or absent: no token was sent; log in with `hf auth login` or set HF_TOKEN",
            code="gated",
        )
    if status == 401:
        return Unauthorized(f"{what}: the hub does not accept the token (HTTP 401)", code="gated")
    if status in (404, 410):
        hint = "" if token else ", or hidden without a token"
        return NotFound(f"{what}: not found{hint} ({said})", code="source_not_found")
    return None


def _translated(uri: SourceUri, page: str, token: str, ask: Callable[[], T]) -> T:
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    try:
        return ask()
    except FlexInferError:
        raise
    except HFValidationError as error:
        raise InvalidInput(f"{uri}: {error}", code="source_invalid") from error
    except OfflineModeIsEnabled as error:
        raise Unavailable(f"{uri}: HF_HUB_OFFLINE is set", code="source_offline") from error
    except HfHubHTTPError as error:
        response = error.response
        status = response.status_code if response is not None else 0
        headers = {k.lower(): v for k, v in response.headers.items()} if response else {}
        said = (error.server_message or f"HTTP {status}").split("\n")[0][:200]
        refusal = _refusal(
            str(uri), page, status, headers.get("x-error-code", ""), said, token=bool(token)
        )
        if refusal is not None:
            raise refusal from error
        wait = retry_after_s(headers, now_unix_s=datetime.now(UTC).timestamp())
        raise Unavailable(f"{uri}: the hub answered {said}", retry_after_s=wait) from error
    except Exception as error:
        # The library's HTTP client has changed its name once (httpx, httpx2); its errors are known by theirs.
        if type(error).__module__.split(".")[0] not in ("httpx", "httpx2"):
            raise
        raise TransferError(
            f"{uri}: cannot reach {origin_of(page)} ({error})", side="source", code="connect_failed"
        ) from error


def _file(entry: Any) -> SourceFile:
    if entry.lfs is not None:
        digest, size = f"sha256:{entry.lfs.sha256}", int(entry.lfs.size)
    else:
        digest, size = f"git-sha1:{entry.blob_id}", int(entry.size)
    return SourceFile(path=entry.path, size=size, digest=digest, identity=digest)


def _license(info: Any) -> str:
    card = info.card_data
    stated = getattr(card, "license", None) if card is not None else None
    if isinstance(stated, list):
        stated = " OR ".join(str(one) for one in stated)
    if stated == "other":
        stated = getattr(card, "license_name", None) or "other"
    if not stated:
        tags = [t.removeprefix("license:") for t in info.tags or [] if t.startswith("license:")]
        stated = tags[0] if tags else ""
    return str(stated)


def _latest(entries: list[Any]) -> str:
    dates = [e.last_commit.date for e in entries if getattr(e, "last_commit", None) is not None]
    if not dates:
        return EPOCH
    latest: datetime = max(dates)
    return latest.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
