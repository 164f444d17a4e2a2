"""What the user names for a build: `entry`, `entry/variant`, a source string, or a file."""

from __future__ import annotations

import os
import re
from pathlib import Path

from flexinfer import plugins
from flexinfer.catalog import Catalog, search_paths
from flexinfer.catalog.binding import wanted
from flexinfer.errors import InvalidInput
from flexinfer.places import Home
from flexinfer.resources.entry import CatalogEntry, Variant
from flexinfer.resources.source import SourceUri, parse_source
from flexinfer.settings import Settings

_ENTRY = re.compile(r"[a-z0-9][a-z0-9._-]*(/[a-z0-9][a-z0-9._-]*)?")


def parse_target(text: str) -> SourceUri:
    """Return the source that *text* names: an entry, a source string, or a path to a file.

    Raises:
        InvalidInput: code `source_invalid`.
    """
    if "://" in text:
        return parse_source(text, advised=("catalog", *plugins.names("flexinfer.sources")))
    if text.startswith((".", "/", "~")) or text.lower().endswith(".gguf"):
        return parse_source(f"file://{os.path.abspath(os.path.expanduser(text))}")
    if not _ENTRY.fullmatch(text):
        raise InvalidInput(
            f"{text!r}: expected an entry, entry/variant, a source such as hf://org/repo, or a file "
            "(./model.gguf)",
            code="source_invalid",
        )
    return parse_source(f"catalog://{text}")


def find_target(text: str, home: Home, settings: Settings) -> tuple[CatalogEntry, Variant, str]:
    """Return entry, variant and reference of what *text* names.

    Raises:
        NotFound: codes `entry_not_found`, `variant_not_found`. InvalidInput: code `source_invalid`.
    """
    catalog = Catalog.load(search_paths(settings.catalog, home, Path.cwd()))
    return wanted(parse_target(text), catalog)
