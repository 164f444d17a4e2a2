"""Names of artifacts: `repository[:tag][@digest]`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from flexinfer.errors import InvalidInput
from flexinfer.oci.digest import Digest, parse_digest

# Both grammars: distribution-spec v1.1, "Pulling manifests".
_REPOSITORY = re.compile(
    r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*"
)
_TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}")
_MAX_REPOSITORY = 255


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """A repository, and which of its artifacts: by tag, by digest, or by both (then the digest decides)."""

    repository: str
    tag: str | None = None
    digest: Digest | None = None

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Return the reference in *text*.

        Raises:
            InvalidInput: code `reference_format`, or `digest_format` for what follows an `@`.
        """
        name, at, digest = text.partition("@")
        repository, colon, tag = name.partition(":")
        if len(repository) > _MAX_REPOSITORY or not _REPOSITORY.fullmatch(repository):
            raise InvalidInput(
                f"reference {text[:300]!r}: repository {repository[:260]!r}: expected lower-case letters, "
                "digits, single separators (. _ __ -) and / between components",
                code="reference_format",
            )
        if colon and not _TAG.fullmatch(tag):
            raise InvalidInput(
                f"reference {text[:300]!r}: tag {tag[:140]!r}: expected 1 to 128 of letters, digits, . _ -",
                code="reference_format",
            )
        return cls(
            repository=repository,
            tag=tag if colon else None,
            digest=parse_digest(digest, what=f"reference {text[:300]!r}: digest") if at else None,
        )

    @property
    def name(self) -> str:
        """`<repository>:<tag>`, as it stands in an index.

        Raises:
            InvalidInput: code `reference_format`: there is no tag.
        """
        if self.tag is None:
            raise InvalidInput(f"reference {self}: expected a tag", code="reference_format")
        return f"{self.repository}:{self.tag}"

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag is not None else ""
        return f"{self.repository}{tag}" + (f"@{self.digest}" if self.digest else "")
