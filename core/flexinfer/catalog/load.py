"""Catalog entries from folders. What is wrong with a file is collected; the others are used all the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from flexinfer.catalog import rules
from flexinfer.catalog.folder import entry_files, read_entry_file, real
from flexinfer.errors import FlexInferError, InvalidInput, NotFound
from flexinfer.places import Home
from flexinfer.resources.document import Document, DocumentInvalid, parse_located
from flexinfer.resources.entry import CatalogEntry, Variant
from flexinfer.settings import CatalogSection
from flexinfer.spelling import nearest
from flexinfer.store_names import variant_reference


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedEntry:
    """An entry and the file that defines it."""

    entry: CatalogEntry
    file: Path
    document: Document[CatalogEntry]


@dataclass(frozen=True, slots=True, kw_only=True)
class Hidden:
    """An entry that is not used, because the file `by` defines the same name and comes first."""

    loaded: LoadedEntry
    by: Path


def search_paths(section: CatalogSection, home: Home, cwd: Path) -> tuple[Path, ...]:
    """Return where entries are looked for, the first wins.

    The settings' paths, `./catalogs`, the home's `catalogs`, the built-in ones. Of those that nobody named, only
    the ones that are there.
    """
    named = [cwd / path.expanduser() for path in section.paths]
    customary = [cwd / "catalogs", home.catalogs, *_built_in()]
    found: dict[Path, Path] = {}
    for path in (*named, *(path for path in customary if path.is_dir())):
        found.setdefault(real(path), path)
    return tuple(found.values())


def _built_in() -> tuple[Path, ...]:
    """Return the catalogs that came with the program: beside the sources of a clone, or inside the wheel."""
    package = Path(__file__).resolve().parent.parent
    clone = package.parent.parent
    in_clone = (clone / "catalogs",) if (clone / "pyproject.toml").is_file() else ()
    return (package / "_catalogs", *in_clone)


@dataclass(frozen=True, slots=True, kw_only=True)
class Catalog:
    """All entries found. A value: load again to see what changed."""

    entries: Mapping[str, LoadedEntry]
    problems: tuple[FlexInferError, ...] = ()
    """One for each file or folder that could not be used."""
    hidden: tuple[Hidden, ...] = ()

    @classmethod
    def load(cls, paths: Sequence[Path]) -> Catalog:
        """Return the entries below *paths* (folders or files); of equal names the first path's wins."""
        files, unreadable = entry_files(paths)
        problems: list[FlexInferError] = list(unreadable)
        entries: dict[str, LoadedEntry] = {}
        hidden: list[Hidden] = []
        owners: dict[str, str] = {}
        for file in files:
            try:
                loaded = _load(file)
                name = loaded.entry.metadata.name
                if name in entries:
                    hidden.append(Hidden(loaded=loaded, by=entries[name].file))
                    continue
                _claim(loaded, owners, entries)
            except FlexInferError as error:
                problems.append(error)
                continue
            entries[name] = loaded
        return cls(
            entries=MappingProxyType(dict(sorted(entries.items()))),
            problems=tuple(problems),
            hidden=tuple(hidden),
        )

    def find(self, name: str, variant: str = "") -> tuple[CatalogEntry, Variant]:
        """Return an entry and one of its variants, the first where none is named.

        Raises:
            NotFound: code `entry_not_found` or `variant_not_found`, with the nearest name.
        """
        loaded = self.entries.get(name)
        if loaded is None:
            message = f"catalog entry {name!r} does not exist (see flexinfer catalog list)"
            message += nearest(name, self.entries) + self._unusable()
            raise NotFound(message, code="entry_not_found", param="source")
        if not variant:
            return loaded.entry, loaded.entry.default_variant
        found = loaded.entry.variant(variant)
        if found is None:
            known = [v.name for v in loaded.entry.spec.variants]
            message = f"entry {name!r} has no variant {variant!r} (known: {', '.join(known)})"
            raise NotFound(
                message + nearest(variant, known), code="variant_not_found", param="source"
            )
        return loaded.entry, found

    def _unusable(self) -> str:
        """Say that it may be in a file that could not be read."""
        if not self.problems:
            return ""
        first = self.problems[0].message.splitlines()[0]
        more = len(self.problems) - 1
        rest = f" and {more} more: see flexinfer catalog lint" if more else ""
        return f" (not usable: {first}{rest})"


def _load(file: Path) -> LoadedEntry:
    document = parse_located(CatalogEntry, read_entry_file(file), str(file))
    found = tuple(rules.problems(document))
    if found:
        raise DocumentInvalid(str(file), found)
    return LoadedEntry(entry=document.value, file=file, document=document)


def _claim(loaded: LoadedEntry, owners: dict[str, str], entries: Mapping[str, LoadedEntry]) -> None:
    """Make the entry the owner of its references in *owners*.

    Raises:
        InvalidInput: code `reference_conflict`: another entry publishes under the same name.
    """
    spec = loaded.entry.spec
    references = [
        variant_reference(spec.publish.repository, variant.name) for variant in spec.variants
    ]
    for index, reference in enumerate(references):
        if owner := owners.get(reference):
            where = loaded.document.problem(
                ("spec", "variants", index, "name"),
                f"{reference} is published by entry {owner!r} already ({entries[owner].file})",
            )
            raise InvalidInput(where.at(str(loaded.file)), code="reference_conflict")
    owners.update(dict.fromkeys(references, loaded.entry.metadata.name))
