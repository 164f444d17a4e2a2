"""From a built artifact to an answering Model: its file, and the `up` that serves it."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

from flexinfer.catalog.binding import slug
from flexinfer.endpoint import KEY_ADVICE, Endpoint, find_endpoint
from flexinfer.errors import Conflict, Unauthorized
from flexinfer.files import replace_file
from flexinfer.places import Home
from flexinfer.process import ProcessSpec, start
from flexinfer.programs import BUILD, DRAWS, environment_for
from flexinfer.settings import Settings
from flexinfer.up.example import curl
from flexinfer.up.router import LISTED_WITHIN_S, until_listed
from flexinfer_pipelines.target import find_target, parse_target

_MAX_FILE = 1024 * 1024
_MAX_FILES = 10_000
_ANSWER_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wish:
    """A Model that nothing stands in the way of."""

    name: str
    source: str
    path: Path
    """Its file; where it is there already, it says the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A Model that was asked for."""

    name: str
    path: str
    is_new: bool


async def build(source: str, home: Home, environ: Mapping[str, str]) -> None:
    """Run `flexinfer build` for *source*, drawing on this terminal.

    Raises:
        SystemExit: it failed, and has said why.
    """
    parse_target(source)  # said by us, in one line, before anything starts
    child = await start(
        ProcessSpec(
            name="build",
            argv=(sys.executable, "-P", "-m", "flexinfer", "build", source),
            environment=environment_for(BUILD, home.root, *DRAWS, environ=environ),
            cwd=Path.cwd(),
            inherit_output=True,
        )
    )
    try:
        code = await child.wait()
    finally:
        await child.stop()
    if code != 0:
        raise SystemExit(code if code > 0 else 1)


def check_name(source: str, name: str, home: Home, settings: Settings) -> None:
    """Refuse a name that serves something else, before anything is built.

    Raises:
        Conflict: code `model_exists`.
    """
    _wish(source, name, home, settings)


def write_model(source: str, name: str, home: Home, settings: Settings) -> Served:
    """Write `models/<name>.yaml` for *source*, whole or not at all; leave one that says the same.

    Raises:
        Conflict: code `model_exists`: that name serves something else.
    """
    wish = _wish(source, name, home, settings)
    if wish.path.exists():
        return Served(name=wish.name, path=str(wish.path), is_new=False)
    tree = {
        "apiVersion": "ai.flexinfer/v1alpha2",
        "kind": "Model",
        "metadata": {"name": wish.name},
        "spec": {"source": wish.source, "backend": "llamacpp", "gpu": {"vendor": "cpu"}},
    }
    words = (
        f"# Made by `flexinfer run` of {' '.join(wish.source.split())}\n"
        "# To undo, delete this file: the model is no longer served, its artifact stays in the store.\n"
        "# Edit it while `flexinfer up` runs: a change acts within a second. Every field: docs/model.md\n"
    )
    replace_file(wish.path, (words + yaml.safe_dump(tree, sort_keys=False)).encode())
    return Served(name=wish.name, path=str(wish.path), is_new=True)


def show_or_become_up(
    model: Served, home: Home, settings: Settings, *, wait_s: float = LISTED_WITHIN_S
) -> None:
    """Print how to ask the Model once it is listed; where nothing runs, become `flexinfer up`.

    Raises:
        Unauthorized: code `invalid_api_key`: the router wants a key that the settings do not have.
        Unavailable: code `model_not_listed`: not within *wait_s*.
    """
    print(f"model {model.name}: {model.path}", flush=True)
    router = find_endpoint(home, settings)
    if not router.is_up:
        os.execv(sys.executable, [sys.executable, "-P", "-m", "flexinfer", "up"])
    _check_key(router)
    asyncio.run(until_listed(model.name, router.url, router.headers, wait_s=wait_s))
    ask = curl(router.url, model.name, "Hello!", is_key_wanted=bool(router.headers))
    print(f"ready {router.url}\n\n  {ask}", flush=True)


def _check_key(router: Endpoint) -> None:
    """Refuse to wait for what a router without our key never tells."""
    try:
        # Loopback: the user's proxy has nothing to do with it.
        with httpx.Client(timeout=_ANSWER_S, trust_env=False) as client:
            status = client.get(f"{router.url}/models", headers=router.headers).status_code
    except httpx.HTTPError:
        return  # it starts, or is gone: who waits for it says so
    if status == 401:
        raise Unauthorized(
            f"{router.url}: no or wrong API key; the Model's file is written, and to see it answer {KEY_ADVICE}",
            code="invalid_api_key",
        )


def _wish(source: str, name: str, home: Home, settings: Settings) -> _Wish:
    entry, variant, _ = find_target(source, home, settings)
    uri = parse_target(source)
    text = (
        f"catalog://{entry.metadata.name}/{variant.name}" if uri.scheme == "catalog" else str(uri)
    )
    name = slug(name) if name else entry.metadata.name
    path = home.model_file(name)
    for file in home.model_files()[:_MAX_FILES]:
        tree = _read(file)
        if file != path:
            called = _at(tree, "metadata", "name")
            aliases = _at(tree, "spec", "aliases")
            if isinstance(aliases, list) and name in aliases:
                raise _taken(f"{file}: {name!r} is an alias of the Model {called!r} there")
            if called == name:
                raise _taken(f"{file}: a Model {name!r} is there already")
        elif (found := _at(tree, "spec", "source")) != text:
            serves = f"serves {found}" if found else "cannot be read"
            raise _taken(f"{file}: the Model {name!r} is there already and {serves}")
    return _Wish(name=name, source=text, path=path)


def _taken(what: str) -> Conflict:
    return Conflict(f"{what}; choose another name with --name", code="model_exists")


def _read(file: Path) -> Any:
    try:
        with file.open("rb") as opened:
            return yaml.safe_load(opened.read(_MAX_FILE))
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return None  # the operator says what is wrong with it


def _at(tree: Any, *keys: str) -> Any:
    for key in keys:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree
