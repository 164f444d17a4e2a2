"""The catalog: which artifacts there are to build, found in folders of entries."""

from flexinfer.catalog.load import Catalog, LoadedEntry, search_paths

__all__ = ["Catalog", "LoadedEntry", "search_paths"]
