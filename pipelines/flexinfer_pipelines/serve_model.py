"""From a built artifact to an answering Model: its file, and the `up` that serves it."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

from flexinfer.catalog.binding import slug
from flexinfer.errors import Conflict, Unavailable
from flexinfer.files import replace_file
from flexinfer.places import Home
from flexinfer.process import ProcessSpec, holder, start
from flexinfer.programs import BUILD, DRAWS, environment_for
from flexinfer.settings import Settings
from flexinfer_pipelines.target import find_target, parse_target

_WAIT_S = 60.0
_LOOK_EVERY_S = 0.2
_MAX_FILE = 1024 * 1024


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


def write_model(source: str, name: str, home: Home, settings: Settings) -> Served:
    """Write `models/<name>.yaml` for *source*, whole or not at all; leave one that says the same.

    Raises:
        Conflict: code `model_exists`: that name serves something else.
    """
    entry, variant, _ = find_target(source, home, settings)
    uri = parse_target(source)
    text = (
        f"catalog://{entry.metadata.name}/{variant.name}" if uri.scheme == "catalog" else str(uri)
    )
    name = slug(name) if name else entry.metadata.name
    path = home.model_file(name)
    if path.exists():
        found = _source_of(path.read_bytes()[:_MAX_FILE])
        if found != text:
            raise Conflict(
                f"{path}: the Model {name!r} is there already and serves {found or 'something else'}; "
                "choose another name with --name",
                code="model_exists",
            )
        return Served(name=name, path=str(path), is_new=False)
    tree = {
        "apiVersion": "ai.flexinfer/v1alpha2",
        "kind": "Model",
        "metadata": {"name": name},
        "spec": {"source": text, "backend": "llamacpp", "gpu": {"vendor": "cpu"}},
    }
    words = (
        f"# Made by `flexinfer run` of {' '.join(text.split())}\n"
        "# To undo, delete this file: the model is no longer served, its artifact stays in the store.\n"
        "# Edit it while `flexinfer up` runs: a change acts within a second. Every field: docs/model.md\n"
    )
    replace_file(path, (words + yaml.safe_dump(tree, sort_keys=False)).encode())
    return Served(name=name, path=str(path), is_new=True)


def show_or_become_up(model: Served, home: Home, settings: Settings) -> None:
    """Print how to ask the Model once it is listed; where nothing runs, become `flexinfer up`."""
    print(f"model {model.name}: {model.path}", flush=True)
    running = holder(home.up_lock)
    if running is None:
        os.execv(sys.executable, [sys.executable, "-P", "-m", "flexinfer", "up"])
    url = str(running.get("address") or settings.serve.base_url)
    _until_listed(model.name, url, settings)
    body = json.dumps({"model": model.name, "messages": [{"role": "user", "content": "Hello!"}]})
    print(f"ready {url}\n\n  curl -s {url}/chat/completions -d '{body}'", flush=True)


def _until_listed(name: str, url: str, settings: Settings) -> None:
    headers = settings.serve.authorization
    until = time.monotonic() + _WAIT_S
    seen: list[str] = []
    with httpx.Client(trust_env=False, timeout=5.0, headers=headers) as client:
        while time.monotonic() < until:
            try:
                answer = client.get(f"{url}/models").json()
                seen = [str(one["id"]) for one in answer["data"]]
            except (httpx.HTTPError, ValueError, KeyError, TypeError):
                seen = []
            if name in seen:
                return
            time.sleep(_LOOK_EVERY_S)
    raise Unavailable(
        f"{url}/models does not list {name!r} after {_WAIT_S:g} s (it lists: {', '.join(seen) or 'none'}); "
        "see `flexinfer logs operator`",
        code="model_not_listed",
    )


def _source_of(data: bytes) -> str:
    try:
        tree: Any = yaml.safe_load(data)
        return str(tree["spec"]["source"])
    except (yaml.YAMLError, KeyError, TypeError):
        return ""
