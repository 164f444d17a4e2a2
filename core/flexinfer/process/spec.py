"""What is to be started: a program, its whole environment, and where its words go."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from flexinfer.errors import InvalidInput

MAX_LOG_BYTES = 16 * 1024 * 1024
GRACE_S = 10.0

# What a program needs to find itself, its files and the network as its user set it up. Nothing here
# is a credential of ours; a proxy's address may hold the user's own, which the proxy must get anyway.
_INHERITED = (
    "PATH", "HOME", "USER", "LOGNAME", "LANG", "LANGUAGE", "LC_*", "TZ", "TMPDIR", "XDG_*",
    "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY",
    "http_proxy", "https_proxy", "all_proxy", "no_proxy",
    "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessSpec:
    """A program to start, complete: nothing is inherited that is not named here.

    name: what logs, records and messages call it.
    environment: all of it; `inherited_environment` gives what is usually passed on.
    log_path: output is appended there and survives our own crash. Above `max_log_bytes` its last part is
        moved to `<log_path>.1` and the file emptied, so the two hold at most about 1¼ × that.
    on_line: called with each line of output, without its end, in the event loop; only without `log_path`.
    inherit_output: its output is ours, for what draws on the terminal; then there is nothing to `tail`.
    nice: 0 (as we run) to 19 (only when nothing else wants the core).
    grace_s: how long the group has after SIGTERM before SIGKILL.
    lifeline: the program is told when its parent is gone (see `lifeline`). Off for what shall be adopted.
    kept_open: descriptors of ours that stay open in it under the same numbers, such as a lease that it shall hold.
    """

    name: str
    argv: tuple[str, ...]
    environment: Mapping[str, str] = field(repr=False)  # it may hold keys
    cwd: Path
    log_path: Path | None = None
    on_line: Callable[[str], None] | None = field(default=None, repr=False)
    inherit_output: bool = False
    nice: int = 0
    grace_s: float = GRACE_S
    lifeline: bool = True
    max_log_bytes: int = MAX_LOG_BYTES
    kept_open: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what cannot be started.

        Raises:
            InvalidInput: code `process_spec`; the message names the process and the field.
        """
        wrong = self._wrong()
        if wrong is not None:
            raise InvalidInput(f"process {self.name!r}: {wrong}", code="process_spec")

    def _wrong(self) -> str | None:
        if not self.argv or not self.argv[0]:
            return "argv is empty, expected a program"
        if any("\0" in argument for argument in self.argv):
            return "argv: a NUL byte cannot be passed to a program"
        for name, value in self.environment.items():
            if not name or "=" in name or "\0" in name + value:
                return f"environment: {name!r} cannot be passed to a program"
        if self.log_path is not None and self.on_line is not None:
            return "log_path and on_line exclude one another"
        if self.inherit_output and (self.log_path is not None or self.on_line is not None):
            return "inherit_output excludes log_path and on_line"
        if not 0 <= self.nice <= 19:
            return f"nice is {self.nice}, expected 0 to 19"
        if not 0 <= self.grace_s <= 3600:
            return f"grace_s is {self.grace_s}, expected 0 to 3600"
        if self.max_log_bytes < 64 * 1024:
            return f"max_log_bytes is {self.max_log_bytes}, expected 65536 or more"
        return None


def inherited_environment(
    *extra_names: str, environ: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Return the variables that a child may have, out of our own (or *environ*).

    Search path, home, language, time zone, XDG folders, proxies and CA files, and *extra_names*; a name
    that ends with `*` stands for all that begin so (`PIP_*`). Tokens and keys are not among them: a
    child that needs one gets it by name.
    """
    source = os.environ if environ is None else environ
    wanted = (*_INHERITED, *extra_names)
    exact = {name for name in wanted if not name.endswith("*")}
    prefixes = tuple(name[:-1] for name in wanted if name.endswith("*"))
    return {
        name: value
        for name, value in source.items()
        if name in exact or (prefixes and name.startswith(prefixes))
    }
