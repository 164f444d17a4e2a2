"""What our own programs are given of the environment where one of us starts them: what they read, and no more.

The router's keys are settings of `serve`, which nobody but the router reads. Credentials of sources and of the
package index go to those who fetch. What stands in `flexinfer.toml` every program reads for itself.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import Path

from flexinfer.process import inherited_environment
from flexinfer.settings import variables_of

DRAWS = ("TERM", "COLUMNS", "LINES", "NO_COLOR")
"""What a program reads that draws on the terminal."""
_FETCHES = ("PIP_*", "HF_*", "HUGGING_FACE_*", "PREFECT_*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reads:
    """What a program reads: sections of our settings, and variables of others; `PIP_*` is all that begin so."""

    sections: tuple[str, ...]
    names: tuple[str, ...] = ()


ROUTER = Reads(sections=("log", "serve", "operator"))
PREFECT_SERVER = Reads(sections=("log", "prefect"), names=("PREFECT_*",))
BUILD = Reads(sections=("log", "prefect", "build", "catalog"), names=_FETCHES)
# It reads for itself, and passes on to its builds.
OPERATOR = Reads(sections=(*BUILD.sections, "operator"), names=BUILD.names)


def environment_for(
    reads: Reads, home: Path, *names: str, environ: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Return what a program gets that lives in *home*, out of our own environment (or *environ*); *names*: more."""
    source = os.environ if environ is None else environ
    return {
        **inherited_environment(*reads.names, *names, environ=source),
        **variables_of(reads.sections, source),
        "FLEXINFER_HOME": str(home),
    }


def forget_unread(reads: Reads, environ: MutableMapping[str, str]) -> None:
    """Take out of *environ* the settings that are not read: whatever is started with it does not get them."""
    read = variables_of(reads.sections, environ)
    for name in variables_of(None, environ):
        if name not in read:
            del environ[name]
