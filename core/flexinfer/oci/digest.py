"""Names of bytes: `sha256:<64 hex>`, and what computes and checks them."""

from __future__ import annotations

import hashlib
import re
from typing import NewType

from flexinfer.errors import IntegrityError, InvalidInput

Digest = NewType("Digest", str)

_DIGEST = re.compile(r"sha256:[a-f0-9]{64}")
# Large enough that a hash runs at full speed outside the interpreter's lock, small enough to stay in cache.
BUFFER_BYTES = 1 << 20


def parse_digest(text: object, *, what: str = "digest") -> Digest:
    """Return *text* as a digest. What this returns is safe as a file name.

    Raises:
        InvalidInput: code `digest_format`.
    """
    if isinstance(text, str) and _DIGEST.fullmatch(text):
        return Digest(text)
    shown = text[:80] if isinstance(text, str) else type(text).__name__
    raise InvalidInput(
        f"{what} {shown!r} is not sha256:<64 hex>; refusing to use it as a name",
        code="digest_format",
    )


def digest_of(data: bytes | bytearray | memoryview) -> Digest:
    """Return the digest of *data*."""
    return Digest("sha256:" + hashlib.sha256(data).hexdigest())


def hex_of(digest: Digest) -> str:
    """Return the 64 hex digits of *digest*."""
    return digest.partition(":")[2]


class Hasher:
    """A digest and a length, computed as bytes pass."""

    def __init__(self) -> None:
        self._sha256 = hashlib.sha256()
        self.size = 0

    def update(self, data: bytes | bytearray | memoryview) -> None:
        self._sha256.update(data)
        self.size += len(data)

    @property
    def digest(self) -> Digest:
        """The digest of all bytes so far."""
        return Digest("sha256:" + self._sha256.hexdigest())


class Verifier:
    """Checks bytes against the digest and size that they must have, as they pass."""

    def __init__(self, *, expected: Digest, size: int | None = None, what: str = "blob") -> None:
        self._hasher = Hasher()
        self._expected = expected
        self._size = size
        self._what = what

    def update(self, data: bytes | bytearray | memoryview) -> None:
        """Take *data*.

        Raises:
            IntegrityError: code `digest_mismatch`: already more bytes than there may be.
        """
        self._hasher.update(data)
        if self._size is not None and self._hasher.size > self._size:
            raise IntegrityError(
                f"{self._what} {self._expected}: expected {self._size} bytes, got more",
                code="digest_mismatch",
            )

    def finish(self) -> None:
        """Judge what has passed.

        Raises:
            IntegrityError: code `digest_mismatch`.
        """
        check_digest(
            found=self._hasher.digest,
            found_size=self._hasher.size,
            expected=self._expected,
            expected_size=self._size,
            what=f"{self._what} {self._expected}",
        )


def check_digest(
    *,
    found: Digest,
    found_size: int,
    expected: Digest | None,
    expected_size: int | None,
    what: str,
    code: str = "digest_mismatch",
) -> None:
    """Raise unless what was found is what was expected; None expects nothing.

    Raises:
        IntegrityError: code *code*; the message has both values.
    """
    if expected_size is not None and found_size != expected_size:
        raise IntegrityError(f"{what}: expected {expected_size} bytes, got {found_size}", code=code)
    if expected is not None and found != expected:
        raise IntegrityError(
            f"{what}: expected {expected}, got {found} ({found_size} bytes)", code=code
        )
