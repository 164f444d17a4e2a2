"""The index of an image layout as a value: which manifests there are, and what they are called. Pure.

A manifest has one entry for each of its names, or one entry without a name. Entries that others wrote keep
all their fields. Ours say in an annotation what the manifest's `subject` is, so that referrers are found
without reading any manifest.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from flexinfer.errors import InvalidInput
from flexinfer.oci.canonical import canonical_json, parse_object
from flexinfer.oci.descriptor import MEDIA_INDEX, Descriptor
from flexinfer.oci.digest import Digest, parse_digest

REF_NAME = "org.opencontainers.image.ref.name"
SUBJECT = "ai.flexinfer.subject"
NO_SUBJECT = "none"
MAX_INDEX_BYTES = 64 * 1024 * 1024
MAX_ENTRIES = 100_000
_INVALID = "index_invalid"
_TOO_LARGE = "index_too_large"


class Index:
    """The entries of `index.json`. Every change returns a new one; the order of entries is kept."""

    def __init__(self, entries: tuple[Mapping[str, Any], ...], others: Mapping[str, Any]) -> None:
        self._entries = entries
        self._others = others
        self._named: dict[str, Descriptor] = {}
        self._known: dict[Digest, Descriptor] = {}
        self._subjects: dict[Digest, str] = {}
        for number, entry in enumerate(entries):
            descriptor = Descriptor.parse(
                entry, what=f"index: entry {number}", code=_INVALID, too_large=_TOO_LARGE
            )
            notes = descriptor.annotations
            plain = Descriptor(
                media_type=descriptor.media_type,
                digest=descriptor.digest,
                size=descriptor.size,
                artifact_type=descriptor.artifact_type,
            )
            self._known.setdefault(plain.digest, plain)
            if SUBJECT in notes:
                self._subjects[plain.digest] = notes[SUBJECT]
            if REF_NAME in notes:
                self._named.setdefault(notes[REF_NAME], plain)

    @classmethod
    def empty(cls) -> Index:
        """Return the index of a layout in which nothing is."""
        return cls.of(())

    @classmethod
    def parse(cls, data: bytes) -> Index:
        """Return the index in *data*.

        Raises:
            InvalidInput: `index_invalid`, `index_too_large`, or `digest_format`.
        """
        value = parse_object(
            data, what="index.json", code=_INVALID, too_large=_TOO_LARGE, max_bytes=MAX_INDEX_BYTES
        )
        entries = value.pop("manifests", None)
        if not isinstance(entries, list):
            raise InvalidInput("index.json: manifests: expected a list", code=_INVALID)
        if len(entries) > MAX_ENTRIES:
            raise InvalidInput(
                f"index.json: expected at most {MAX_ENTRIES} entries, got {len(entries)}",
                code=_TOO_LARGE,
            )
        return cls(tuple(entries), value)

    @classmethod
    def of(cls, found: Iterable[tuple[Descriptor, Digest | None, str]]) -> Index:
        """Return the index of these manifests, each with its subject and its name; an empty name is none."""
        entries = []
        for descriptor, subject, name in found:
            notes = {SUBJECT: subject or NO_SUBJECT} | ({REF_NAME: name} if name else {})
            entries.append(descriptor.to_json() | {"annotations": notes})
        return cls(tuple(entries), {"schemaVersion": 2, "mediaType": MEDIA_INDEX})

    def to_bytes(self) -> bytes:
        """Return the index as canonical JSON."""
        return canonical_json({**self._others, "manifests": list(self._entries)})

    def named(self, name: str) -> Descriptor | None:
        """Return the manifest called *name*."""
        return self._named.get(name)

    def known(self, digest: Digest) -> Descriptor | None:
        """Return the manifest with *digest*, named or not."""
        return self._known.get(digest)

    def tags(self) -> tuple[tuple[str, Descriptor], ...]:
        """Return every name with its manifest, sorted by name."""
        return tuple(sorted(self._named.items(), key=lambda item: item[0]))

    def manifests(self) -> tuple[Descriptor, ...]:
        """Return every manifest once, in the order in which they came."""
        return tuple(self._known.values())

    def referrers(self, digest: Digest) -> tuple[tuple[Descriptor, ...], tuple[Descriptor, ...]]:
        """Return the manifests that refer to *digest*, and those of which the index does not say."""
        referring = tuple(d for d in self._known.values() if self._subjects.get(d.digest) == digest)
        unsaid = tuple(d for d in self._known.values() if d.digest not in self._subjects)
        return referring, unsaid

    def with_manifest(self, descriptor: Descriptor, *, subject: Digest | None) -> Index:
        """Return the index with *descriptor* in it, without a name if it is new."""
        if descriptor.digest in self._known:
            return self
        entry = descriptor.to_json() | {"annotations": {SUBJECT: subject or NO_SUBJECT}}
        return Index((*self._entries, entry), self._others)

    def with_tag(self, name: str, digest: Digest) -> Index:
        """Return the index in which *name* points to *digest*, which is in it. Nothing is forgotten.

        Raises:
            KeyError: *digest* is not in the index.
        """
        before = self._named.get(name)
        if before is not None and before.digest == digest:
            return self
        index = self.without_tag(name)
        entry = index._any_entry(digest)
        named = _annotated(entry, {REF_NAME: name})
        kept = tuple(e for e in index._entries if not (e["digest"] == digest and _name(e) is None))
        return Index((*kept, named), self._others)

    def without_tag(self, name: str) -> Index:
        """Return the index without *name*; its manifest stays, without a name if that was its only one."""
        taken = [entry for entry in self._entries if _name(entry) == name]
        kept = [entry for entry in self._entries if _name(entry) != name]
        left = {entry["digest"] for entry in kept}
        for entry in taken:
            if entry["digest"] not in left:
                kept.append(_annotated(entry, {}))
                left.add(entry["digest"])
        return Index(tuple(kept), self._others) if taken else self

    def without_manifest(self, digest: Digest) -> Index:
        """Return the index without *digest* and all its names."""
        parse_digest(digest)
        kept = tuple(entry for entry in self._entries if entry["digest"] != digest)
        return self if len(kept) == len(self._entries) else Index(kept, self._others)

    def _any_entry(self, digest: Digest) -> Mapping[str, Any]:
        for entry in self._entries:
            if entry["digest"] == digest:
                return entry
        raise KeyError(digest)


def _name(entry: Mapping[str, Any]) -> str | None:
    name = (entry.get("annotations") or {}).get(REF_NAME)
    return None if name is None else str(name)


def _annotated(entry: Mapping[str, Any], extra: Mapping[str, str]) -> dict[str, Any]:
    """Return *entry* with its own name replaced by what *extra* says."""
    notes = {k: v for k, v in (entry.get("annotations") or {}).items() if k != REF_NAME}
    rest = {key: value for key, value in entry.items() if key != "annotations"}
    return rest | ({"annotations": {**notes, **extra}} if notes or extra else {})
