"""Settings: read once in `main`, passed as an argument, never looked up again.

Each process has one `Settings` subclass made of frozen sections. A value comes from, first wins: the
environment (`FLEXINFER_<SECTION>__<NAME>`), `flexinfer.toml` in the working folder, then in the home.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from ipaddress import IPv6Address
from itertools import combinations
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator

from flexinfer.errors import InvalidInput
from flexinfer.spelling import nearest

_PREFIX = "FLEXINFER_"
_OF_A_CHILD = "FLEXINFER_PROCESS"
# Named without a section: where state lives, and what a supervised child is told by its parent.
_RESERVED = frozenset({"FLEXINFER_HOME", "FLEXINFER_LIFELINE", _OF_A_CHILD})
_LOOPBACK = "127.0.0.1"
_EVERYWHERE = frozenset({"", "0.0.0.0", "::"})
# As a browser writes it (RFC 6454, 6.2): lower case, no path. `null` is what a page without an address sends.
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(?:\[[0-9a-f:.]+\]|[^\s/?#@:\[\]A-Z]+)(?::[0-9]{1,5})?")
_HOST_NAME = re.compile(r"(?:[A-Za-z0-9_-]+\.)*[A-Za-z0-9_-]+\.?")
_NO_ADDRESS = frozenset({"*", "null"})


def _is_ipv6(host: str) -> bool:
    try:
        return IPv6Address(host).scope_id is None  # no Host header has a zone
    except ValueError:
        return False


class Section(BaseModel):
    """A group of settings. Unknown names are refused."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )


class LogSection(Section):
    level: Literal["debug", "info", "warning", "error"] = "info"
    """What is written at least."""
    format: Literal["json", "console"] = "json"
    """`json`: one object a line; `console`: text."""


class ServeSection(Section):
    """The router. Limits are per worker unless they say otherwise."""

    host: str = "127.0.0.1"
    """Where clients reach the router. Anything but loopback needs `api_keys`."""
    port: int = Field(default=8080, ge=0, le=65535)
    """Its port."""
    admin_host: str = "127.0.0.1"
    """Where metrics, health and explanations are served. Keep it from clients."""
    admin_port: int = Field(default=8081, ge=0, le=65535)
    """Its port."""
    api_keys: tuple[SecretStr, ...] = ()
    """Keys that clients may use, separated by commas. None: any key, on loopback only."""
    cors_origins: tuple[str, ...] = ()
    """Origins of browser pages that may call the router, as `http://localhost:3000`; `*`: all. None: no page may."""
    allowed_hosts: tuple[str, ...] = ()
    """Host names accepted beside loopback ones; needed when the router listens elsewhere."""
    max_body_bytes: int = Field(default=8 * 1024 * 1024, ge=1024)
    """A larger request body is refused with 413."""
    max_header_bytes: int = Field(default=64 * 1024, ge=1024)
    """Larger request headers are refused."""
    header_timeout_s: float = Field(default=10.0, gt=0)
    """A client must have sent its headers by then."""
    body_timeout_s: float = Field(default=20.0, gt=0)
    """A client may pause this long within its body."""
    max_connections: int = Field(default=2048, ge=1)
    """Further connections are answered 503."""
    max_queue_requests: int = Field(default=100, ge=1)
    """Held requests per Model."""
    max_queue_bytes: int = Field(default=64 * 1024 * 1024, ge=1024)
    """Bytes of held bodies per Model."""
    saturated_wait_s: float = Field(default=10.0, ge=0)
    """How long a request may wait for a free slot of a pool that is up; then 429."""
    connect_timeout_s: float = Field(default=2.0, gt=0)
    """To an engine."""
    first_byte_timeout_s: float = Field(default=120.0, gt=0)
    """An engine must have begun its answer by then; then 504."""
    stream_idle_timeout_s: float = Field(default=60.0, gt=0)
    """An engine may pause this long within a stream."""
    write_timeout_s: float = Field(default=60.0, gt=0)
    """A client that reads nothing of its answer for this long is cut off."""
    keepalive_comment_s: float = Field(default=5.0, gt=0)
    """A held streaming request gets its first comment after this time."""
    default_max_tokens: int = Field(default=1024, ge=1)
    """The bound of an answer when the request names none; never above the context."""
    max_max_tokens: int = Field(default=131072, ge=1)
    """A request that asks for more is refused."""
    drain_delay_s: float = Field(default=0.0, ge=0)
    """After SIGTERM the router still accepts connections for this long."""
    drain_timeout_s: float = Field(default=5.0, ge=0)
    """Then running answers have this long; after it streams end with an error event."""

    @field_validator("api_keys", "cors_origins", "allowed_hosts", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return _parts(value, ",")

    @field_validator("cors_origins")
    @classmethod
    def _are_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for one in value:
            if one not in _NO_ADDRESS and not _ORIGIN.fullmatch(one):
                raise ValueError(
                    f"{one!r} is what no browser sends: expected scheme, host and port in lower case, without "
                    "a path or a slash at the end, such as http://localhost:3000, or *"
                )
        return value

    @field_validator("allowed_hosts")
    @classmethod
    def _are_hosts(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for one in value:
            if not _HOST_NAME.fullmatch(one) and not _is_ipv6(one):
                raise ValueError(
                    f"{one!r} is the host of no request: expected a name or an address alone, without scheme, port, "
                    "path or *, such as models.example.org"
                )
        return value

    @property
    def address(self) -> str:
        """Where this machine's programs reach the router, as `http://host:port`."""
        return _address(self.host, self.port)

    @property
    def base_url(self) -> str:
        """What an OpenAI client is given: the address with `/v1`."""
        return f"{self.address}/v1"

    @property
    def admin_address(self) -> str:
        """Where this machine's programs reach the admin listener."""
        return _address(self.admin_host, self.admin_port)

    @property
    def authorization(self) -> dict[str, str]:
        """The header that the router wants of this machine's own programs; empty where it wants none."""
        if not self.api_keys:
            return {}
        return {"authorization": f"Bearer {self.api_keys[0].get_secret_value()}"}


class PrefectSection(Section):
    port: int = Field(default=4200, ge=0, le=65535)
    """Of the Prefect server that we start. Taken by a stranger: the next free one is used, and said."""
    enabled: bool = True
    """Off: `up` starts no Prefect server; a build starts one for its own time."""
    start_timeout_s: float = Field(default=180.0, gt=0)
    """How long to wait for the server."""


class OperatorSection(Section):
    max_loaded_models: int = Field(default=4, ge=1)
    """Engines that may run at once on this machine."""
    stop_grace_s: float = Field(default=5.0, gt=0)
    """An engine has this long after SIGTERM."""
    drain_timeout_s: float = Field(default=30.0, ge=0)
    """A draining replica has this long for its running requests where somebody waits for its place."""
    drain_limit_s: float = Field(default=600.0, ge=0)
    """A replica of an old revision, or of a deleted Model, has this long where nobody does."""
    lease_ttl_s: float = Field(default=10.0, gt=0, le=120)
    """A router that is silent for this long no longer counts. The router asks for it; 120 is the most."""
    rescan_s: float = Field(default=0.25, gt=0, le=5)
    """How often Model files and the store are looked at."""


class BuildSection(Section):
    nice: int = Field(default=10, ge=0, le=19)
    """Priority of builds below serving, 0 to 19."""
    fetch_stall_s: float = Field(default=60.0, gt=0)
    """A download without a byte for this long is tried again."""
    fetch_retries: int = Field(default=5, ge=0, le=20)
    """How often."""
    quantize_stall_s: float = Field(default=120.0, gt=0)
    """A quantizer without progress for this long is ended."""
    validate_timeout_s: float = Field(default=7200.0, gt=0)
    """A validation that is not done by then is ended, also one that moves, and with it the build."""
    max_file_bytes: int = Field(default=500 * 1024**3, ge=1)
    """A larger source file is refused."""
    allowed_hosts: tuple[str, ...] = ()
    """Hosts (`host`, `host:port` or `http://host:port`) to fetch from beside the sources' own, at any address."""

    @field_validator("allowed_hosts", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return _parts(value, ",")


class CatalogSection(Section):
    paths: tuple[Path, ...] = ()
    """Folders with catalog entries, searched before the built-in ones."""

    @field_validator("paths", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        return _parts(value, os.pathsep)


class Settings(BaseModel):
    """What every process reads."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    log: LogSection = LogSection()
    serve: ServeSection = Field(default_factory=lambda: ServeSection())
    prefect: PrefectSection = Field(default_factory=lambda: PrefectSection())
    operator: OperatorSection = Field(default_factory=lambda: OperatorSection())
    build: BuildSection = Field(default_factory=lambda: BuildSection())
    catalog: CatalogSection = CatalogSection()


S = TypeVar("S", bound=Settings)


def load(
    kind: type[S],
    environ: Mapping[str, str],
    *,
    files: tuple[Path, ...] = (),
) -> S:
    """Return the settings of one process.

    Raises:
        InvalidInput: code `bad_settings`; one message that names every bad setting in full.
    """
    wrong: list[str] = []
    values: dict[str, dict[str, Any]] = {}
    origin: dict[tuple[str, str], str] = {}
    for file in reversed(files):
        for section, name, value in _from_file(kind, file, wrong):
            values.setdefault(section, {})[name] = value
            origin[section, name] = f"{file}: {section}.{name}"
    for variable, text in environ.items():
        if not variable.startswith(_PREFIX) or variable in _RESERVED:
            continue
        section, name = _split_name(variable)
        if name not in _names(kind, section):
            known = [_variable(s, n) for s in kind.model_fields for n in _names(kind, s)]
            wrong.append(f"{variable}: unknown setting{nearest(variable, [*known, *_RESERVED])}")
            continue
        values.setdefault(section, {})[name] = text
        origin[section, name] = variable
    result: S | None = None
    try:
        result = kind.model_validate(values)
    except ValidationError as error:
        for problem in error.errors(include_url=False, include_input=False):
            section, name = (*(str(part) for part in problem["loc"][:2]), "", "")[:2]
            place = origin.get((section, name), _variable(section, name))
            wrong.append(f"{place}: {problem['msg'].removeprefix('Value error, ')}")
    # A child of ours is given the sections that it reads: only who started it knows the ports of all.
    if result is not None and _OF_A_CHILD not in environ:
        wrong += _clashes(result, origin)
    if wrong or result is None:
        raise InvalidInput("bad settings: " + "; ".join(wrong), code="bad_settings")
    return result


def _clashes(settings: Settings, origin: Mapping[tuple[str, str], str]) -> list[str]:
    """Return what is wrong with ports that are wanted twice; 0, any free one, never is."""
    serve, prefect = settings.serve, settings.prefect
    wanted = [
        (("serve", "port"), serve.host, serve.port),
        (("serve", "admin_port"), serve.admin_host, serve.admin_port),
    ]
    if prefect.enabled:
        wanted.append((("prefect", "port"), _LOOPBACK, prefect.port))
    found = []
    for (first, at, port), (second, other, other_port) in combinations(wanted, 2):
        if port and port == other_port and _overlap(at, other):
            one, two = (
                origin.get(key, f"{_variable(*key)} (by default)") for key in (first, second)
            )
            found.append(f"{one} and {two}: both are {port}; expected two ports")
    return found


def _overlap(host: str, other: str) -> bool:
    """Return whether one port cannot be taken at both hosts."""
    hosts = {_LOOPBACK if name == "localhost" else name for name in (host, other)}
    return len(hosts) == 1 or bool(hosts & _EVERYWHERE)


def variables_of(sections: Iterable[str] | None, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of *environ* that set something in *sections*; None: in any, known or not."""
    wanted = None if sections is None else frozenset(sections)
    return {
        variable: text
        for variable, text in environ.items()
        if variable.startswith(_PREFIX) and variable not in _RESERVED
        if wanted is None or _split_name(variable)[0] in wanted
    }


def exposed_keys(files: Iterable[Path]) -> tuple[Path, ...]:
    """Return those of *files* that hold API keys of the router and that others than their owner may read."""
    found = []
    for file in files:
        try:
            mode = file.stat().st_mode
            serve = tomllib.loads(file.read_text("utf-8")).get("serve")
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError):
            continue  # `load` says what is wrong with it
        if isinstance(serve, dict) and serve.get("api_keys") and mode & 0o044:
            found.append(file)
    return tuple(found)


def setting_files(home: Path) -> tuple[Path, ...]:
    """Return the files that `load` reads, the first one wins."""
    return (Path.cwd() / "flexinfer.toml", home / "flexinfer.toml")


def _address(host: str, port: int) -> str:
    """Return the address of a listener of this machine; one at every address is reached at loopback."""
    shown = {"0.0.0.0": "127.0.0.1", "::": "::1", "localhost": "127.0.0.1"}.get(host, host)
    return f"http://[{shown}]:{port}" if ":" in shown else f"http://{shown}:{port}"


def _from_file(kind: type[Settings], file: Path, wrong: list[str]) -> list[tuple[str, str, Any]]:
    try:
        tree = tomllib.loads(file.read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return []  # a home that cannot be is its owner's to report
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        wrong.append(f"{file}: {error}")
        return []
    found = []
    for section, names in tree.items():
        if section not in kind.model_fields:
            wrong.append(f"{file}: {section}: unknown section{nearest(section, kind.model_fields)}")
        elif not isinstance(names, dict):
            wrong.append(f"{file}: {section}: expected a table, found {type(names).__name__}")
        else:
            known = _names(kind, section)
            for name, value in names.items():
                if name in known:
                    found.append((section, name, value))
                else:
                    hint = nearest(name, known)
                    wrong.append(f"{file}: {section}.{name}: unknown setting{hint}")
    return found


def _names(kind: type[Settings], section: str) -> tuple[str, ...]:
    """Return the names of a section's settings; none for a section that is not there."""
    field = kind.model_fields.get(section)
    if field is None or not isinstance(field.annotation, type):
        return ()
    return tuple(field.annotation.model_fields) if issubclass(field.annotation, Section) else ()


def _split_name(variable: str) -> tuple[str, str]:
    section, _, name = variable[len(_PREFIX) :].lower().partition("__")
    return section, name


def _variable(section: str, name: str) -> str:
    return f"{_PREFIX}{section.upper()}__{name.upper()}"


def _parts(value: Any, separator: str) -> Any:
    """Return the parts of a text, as a variable holds a list; an empty one holds none."""
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(separator) if part.strip())
    return value
