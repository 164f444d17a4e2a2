"""From an engine's `Launch` to a process: bind the placeholders, choose port and key, start, probe, adopt.

The key is random for each launch and lies in a file that only the owner can read; neither the arguments nor the
environment of the engine hold it. Free ports are found first and passed by number: should another program take
one in between, the engine ends with the cause `port_taken`, and the caller starts it again.
"""

from __future__ import annotations

import asyncio
import re
import secrets as random
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import httpx

from flexinfer.artifact import ANNOTATION_FORMAT, ANNOTATION_QUANTIZATION, Artifact
from flexinfer.engine import Engine, EngineArtifact, Launch, Probe
from flexinfer.errors import InvalidInput, PluginError, ResourceExhausted
from flexinfer.files import make_folders, replace_file
from flexinfer.process import (
    Child,
    ProcessSpec,
    Record,
    adopt,
    free_port,
    groups_listening,
    inherited_environment,
    start,
)

ANNOTATION_CONTEXT_LENGTH = "ai.flexinfer.context-length"
"""What the model was trained for, in tokens, as a decimal number."""
ANNOTATION_CHAT_TEMPLATE = "ai.flexinfer.chat-template"
"""`true` where the model's file holds a chat template."""

HOST = "127.0.0.1"
KEY_BYTES = 32
KEY_SECRET = "engine-key"
_MAX_CONTEXT_DIGITS = 9
_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
_FILE_SAFE = re.compile(r"[a-z0-9][a-z0-9._-]{0,127}")


def engine_artifact(artifact: Artifact, digest: str) -> EngineArtifact:
    """Return what an engine must know of *artifact*, from its configuration and our annotations.

    Raises:
        InvalidInput: code `artifact_annotation`: an annotation of ours holds something else.
    """
    notes = artifact.annotations
    return EngineArtifact(
        digest=digest,
        format=notes.get(ANNOTATION_FORMAT) or artifact.config.format,
        quantization=notes.get(ANNOTATION_QUANTIZATION) or artifact.config.quantization,
        architecture=artifact.config.architecture,
        files=tuple(file.path for file in artifact.files),
        size_bytes=artifact.size_bytes,
        context_length=_context_length(notes.get(ANNOTATION_CONTEXT_LENGTH, "0"), digest),
        has_chat_template=_is_true(notes.get(ANNOTATION_CHAT_TEMPLATE, "false"), digest),
    )


def bind(
    launch: Launch,
    *,
    name: str,
    python: Path,
    artifact: Path,
    ports: Mapping[str, int],
    secrets: Mapping[str, Path],
    log_path: Path | None,
    model: str = "",
    nice: int = 0,
    lifeline: bool = False,
) -> ProcessSpec:
    """Return the process that *launch* asks for. *model*: what answers call it; by default *name*.

    The environment is what the launch sets, over the few variables that any program may have.

    Raises:
        PluginError: code `placeholder_unknown`; the message names it and where it stands.
    """
    values = {
        "python": str(python),
        "program": str(launch.program),
        "artifact": str(artifact),
        "model": model or name,
        **{f"port:{port}": str(number) for port, number in ports.items()},
        **{f"secret:{secret}": str(path) for secret, path in secrets.items()},
    }

    def bound(text: str, where: str) -> str:
        def value(match: re.Match[str]) -> str:
            if match[1] not in values:
                known = ", ".join(sorted(values))
                raise PluginError(
                    f"engine {launch.tool}: {where}: placeholder {match[0]} is not one of: {known}",
                    code="placeholder_unknown",
                )
            return values[match[1]]

        return _PLACEHOLDER.sub(value, text)

    environment = {
        variable: bound(text, f"environment {variable}")
        for variable, text in launch.environment.items()
    }
    return ProcessSpec(
        name=name,
        argv=tuple(bound(text, f"argument {n}") for n, text in enumerate(launch.argv)),
        environment={**inherited_environment(), **environment},
        cwd=artifact,
        log_path=log_path,
        nice=nice,
        lifeline=lifeline,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class RunningEngine:
    """An engine's process, and how to talk to it."""

    child: Child
    name: str
    url: str
    key: str = field(repr=False)
    key_path: Path
    ports: Mapping[str, int]
    readiness: Probe
    log_path: Path | None

    @classmethod
    def from_record(cls, record: Record) -> RunningEngine:
        """Return the running engine that `record_of` wrote down.

        Raises:
            NotFound: code `process_gone`: it does not run any more.
            InvalidInput: code `engine_record`: the record is not an engine's, or its key file is gone.
        """
        extra = record.extra
        try:
            ports = {
                name.removeprefix("port:"): int(number)
                for name, number in extra.items()
                if name.startswith("port:")
            }
            readiness = Probe(
                path=extra["probe_path"],
                port=extra["probe_port"],
                timeout_s=float(extra["probe_timeout_s"]),
            )
            url, key_path = extra["url"], Path(extra["key_path"])
            key = key_path.read_text("ascii").strip()
        except (KeyError, ValueError, OSError) as error:
            raise InvalidInput(
                f"record of engine {record.name}: {type(error).__name__}: {error}",
                code="engine_record",
            ) from error
        return cls(
            child=adopt(record),
            name=record.name,
            url=url,
            key=key,
            key_path=key_path,
            ports=ports,
            readiness=readiness,
            log_path=record.log_path,
        )

    def forget_key(self) -> None:
        """Remove the key's file, when the engine has ended."""
        self.key_path.unlink(missing_ok=True)


def record_of(running: RunningEngine, extra: Mapping[str, str] | None = None) -> Record:
    """Return what finds *running* again; *extra* are the caller's own fields. The key itself is not in it."""
    probe = running.readiness
    return Record.of(
        running.child,
        {
            **(extra or {}),
            "url": running.url,
            "key_path": str(running.key_path),
            "probe_path": probe.path,
            "probe_port": probe.port,
            "probe_timeout_s": str(probe.timeout_s),
            **{f"port:{name}": str(number) for name, number in running.ports.items()},
        },
    )


async def start_engine(
    engine: Engine,
    launch: Launch,
    *,
    name: str,
    run_dir: Path,
    python: Path,
    artifact: Path,
    log_path: Path | None,
    model: str = "",
    nice: int = 0,
    lifeline: bool = False,
    kept_open: tuple[int, ...] = (),
) -> RunningEngine:
    """Start one replica and return as soon as its process exists; `probe` tells when it is ready.

    *name* is the replica's, and names its key's file; *model* is what answers call the model. *kept_open*: as in
    `ProcessSpec`; the lease on the artifact's folder, that it holds as long as the engine runs, whoever starts it.

    Raises:
        InvalidInput: code `engine_name`: *name* cannot name a file.
        PluginError: as `bind`.
        ResourceExhausted: no port, or the key's file cannot be written (code `disk_full`).
        ProcessFailed: as `flexinfer.process.start`.
    """
    if not _FILE_SAFE.fullmatch(name):
        raise InvalidInput(
            f"engine name {name!r}: expected lower-case letters, digits, '.', '_' and '-'",
            code="engine_name",
        )
    if KEY_SECRET not in launch.secrets or launch.readiness.port not in launch.ports:
        raise PluginError(
            f"engine {engine.name}: a launch needs the secret {KEY_SECRET!r} and its probe's port "
            f"{launch.readiness.port!r}; it has {launch.secrets} and {launch.ports}"
        )
    ports = _free_ports(launch.ports)
    keys = {
        secret: (run_dir / "secrets" / f"{name}.{secret}", random.token_urlsafe(KEY_BYTES))
        for secret in launch.secrets
    }
    spec = bind(
        launch,
        name=name,
        python=python,
        artifact=artifact,
        ports=ports,
        secrets={secret: path for secret, (path, _) in keys.items()},
        log_path=log_path,
        model=model,
        nice=nice,
        lifeline=lifeline,
    )
    try:
        for path, text in keys.values():
            _write_secret(path, text)
        child = await start(replace(spec, kept_open=kept_open))
    except BaseException:
        for path, _ in keys.values():
            with suppress(OSError):
                path.unlink(missing_ok=True)
        raise
    key_path, key = keys[KEY_SECRET]
    return RunningEngine(
        child=child,
        name=name,
        url=f"http://{HOST}:{ports[launch.readiness.port]}",
        key=key,
        key_path=key_path,
        ports=ports,
        readiness=launch.readiness,
        log_path=log_path,
    )


async def probe(running: RunningEngine | str, readiness: Probe, client: httpx.AsyncClient) -> bool:
    """Return whether it answers 200 now; an engine that is loading or does not listen yet is not ready.

    *running* may be its URL. Where it is an engine of ours, its own process must hold the port: a stranger who
    took it in between never counts as ready, and never gets the key. *client* must not use a proxy
    (`trust_env=False`). The answer's body is not read.
    """
    if isinstance(running, RunningEngine):
        base = f"http://{HOST}:{running.ports[readiness.port]}"
    else:
        base = running.rstrip("/")
    try:
        async with client.stream("GET", base + readiness.path, timeout=readiness.timeout_s) as got:
            if got.status_code != 200:
                return False
    except httpx.TransportError:
        return False
    if isinstance(running, RunningEngine):
        groups = await asyncio.to_thread(groups_listening, running.ports[readiness.port])
        return groups is None or running.child.pgid in groups
    return True


def _free_ports(names: tuple[str, ...]) -> dict[str, int]:
    found: dict[str, int] = {}
    for name in names:
        # The kernel gives out ports one after another; the same one twice in a row is rare, five times not seen.
        for _ in range(16):
            port = free_port(HOST)
            if port not in found.values():
                found[name] = port
                break
        else:
            raise ResourceExhausted(f"no free port for {name!r} on {HOST}", code="no_free_port")
    return found


def _write_secret(path: Path, text: str) -> None:
    """Put *text* into *path*, which its owner alone can read, wholly or not at all."""
    try:
        make_folders(path.parent, mode=0o700)
        replace_file(path, f"{text}\n".encode(), mode=0o600, durable=False)
    except ResourceExhausted as error:
        raise ResourceExhausted(f"engine key {error.message}", code=error.code) from error


def _context_length(text: str, digest: str) -> int:
    if text.isascii() and text.isdecimal() and len(text) <= _MAX_CONTEXT_DIGITS:
        return int(text)
    raise _annotation(digest, ANNOTATION_CONTEXT_LENGTH, "a number of tokens", text)


def _is_true(text: str, digest: str) -> bool:
    if text in ("true", "false"):
        return text == "true"
    raise _annotation(digest, ANNOTATION_CHAT_TEMPLATE, "true or false", text)


def _annotation(digest: str, key: str, expected: str, text: str) -> InvalidInput:
    return InvalidInput(
        f"artifact {digest}: annotation {key}: expected {expected}, found {text[:40]!r}",
        code="artifact_annotation",
    )
