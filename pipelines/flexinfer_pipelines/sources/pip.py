"""The user's own pip, asked where a wheel is. Their index, proxies and certificates apply."""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from flexinfer.errors import InvalidInput, NotFound, ProcessFailed, Unavailable
from flexinfer.process import ProcessSpec, inherited_environment, run

_TIMEOUT_S = 600.0
_MAX_REPORT = 16 * 1024 * 1024
_INHERITED = ("PIP_*", "NETRC", "PYTHONPATH", "VIRTUAL_ENV")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_URL_KEYS = ("index-url", "extra-index-url", "find-links")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wheel:
    """A wheel as the index offers it."""

    url: str
    sha256: str
    """As the index says; empty where it says nothing."""
    metadata: Mapping[str, Any] = field(repr=False)

    @property
    def file(self) -> Path | None:
        """Where it lies on this machine, for a `file://` index or find-links folder."""
        parts = urlsplit(self.url)
        return Path(unquote(parts.path)) if parts.scheme == "file" else None


async def find_wheel(name: str, version: str, *, environ: Mapping[str, str], cwd: Path) -> Wheel:
    """Return the wheel of *name* == *version* that pip would install. It is not installed.

    Where the index tells metadata apart, or serves ranges, pip reads a few kilobytes; else it looks into the wheel.

    Raises:
        NotFound: code `source_not_found`. Unavailable: code `index_unreachable`.
        ProcessFailed: code `pip_failed`, with pip's last words.
    """
    with tempfile.TemporaryDirectory(dir=cwd) as folder:
        report = Path(folder) / "report.json"
        wanted = f"{name}=={version}"
        arguments = [
            "install", "--dry-run", "--ignore-installed", "--no-deps", "--ignore-requires-python",
            "--only-binary", ":all:", "--report", str(report), "--quiet", wanted,
        ]  # fmt: skip
        # Reads only the end of the wheel where the server can: pip calls it experimental since 2020.
        lines = await _pip(["--use-feature=fast-deps", *arguments], environ, cwd)
        if not report.exists() and any("fast-deps" in line for line in lines):
            lines = await _pip(arguments, environ, cwd)
        if not report.exists():
            raise _failed(wanted, lines)
        if report.stat().st_size > _MAX_REPORT:
            raise ProcessFailed(f"pip: its report on {wanted} is too large", code="pip_failed")
        tree = json.loads(report.read_text("utf-8"))
    try:
        one = tree["install"][0]
        found = one["download_info"]
        digest = found.get("archive_info", {}).get("hashes", {}).get("sha256", "")
        if digest and not _SHA256.fullmatch(digest):
            raise ValueError(f"sha256 {digest!r}")
        return Wheel(url=str(found["url"]), sha256=digest, metadata=one.get("metadata", {}))
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise ProcessFailed(
            f"pip: its report on {wanted} lacks {error}", code="pip_failed"
        ) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Configuration:
    """What the user's pip is configured with, where we need to know it."""

    urls: tuple[str, ...]
    """Index and find-links URLs, credentials included."""
    certificates: str
    """The bundle that it verifies with; empty: none is named."""


async def configuration(*, environ: Mapping[str, str], cwd: Path) -> Configuration:
    """Return what `pip config list` says, and what its environment variables do."""
    urls: list[str] = []
    certificates = ""
    for line in await _pip(["config", "list"], environ, cwd):
        key, separator, value = line.partition("=")
        name = key.rpartition(".")[2]
        if separator and name in _URL_KEYS:
            urls += value.strip().strip("'\"").replace("\\n", " ").split()
        if separator and name == "cert":
            certificates = value.strip().strip("'\"")
    return Configuration(
        urls=tuple(url for url in dict.fromkeys(urls) if "://" in url), certificates=certificates
    )


async def _pip(arguments: list[str], environ: Mapping[str, str], cwd: Path) -> tuple[str, ...]:
    spec = ProcessSpec(
        name="pip",
        argv=(sys.executable, "-P", "-m", "pip", *arguments),
        environment={
            **inherited_environment(*_INHERITED, environ=environ),
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "PIP_NO_INPUT": "1",
        },
        cwd=cwd,
        on_line=_ignored,
    )
    finished = await run(spec, timeout_s=_TIMEOUT_S)
    if any("No module named pip" in line for line in finished.lines):
        raise ProcessFailed(
            f"{sys.executable} has no pip; sources pypi:// are found by it: python -m ensurepip",
            code="pip_missing",
        )
    return finished.lines


def _ignored(_: str) -> None:
    """The lines are read from the child's tail."""


def _failed(wanted: str, lines: tuple[str, ...]) -> Exception:
    text = " ".join(lines)
    said = next((line for line in reversed(lines) if line.startswith("ERROR:")), text[-300:])
    said = re.sub(r"//[^/@\s]*@", "//***@", said)
    if "No matching distribution" in text or "Could not find a version" in text:
        if re.search(r"(Retrying|ConnectionError|NewConnectionError|Max retries|timed out)", text):
            return Unavailable(
                f"{wanted}: the package index cannot be reached", code="index_unreachable"
            )
        return NotFound(
            f"{wanted}: the package index has no wheel of it ({said})", code="source_not_found"
        )
    if "Invalid requirement" in text:
        return InvalidInput(f"{wanted}: not a distribution and version", code="source_invalid")
    return ProcessFailed(f"pip could not find {wanted}: {said}", code="pip_failed")
