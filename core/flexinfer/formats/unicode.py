"""Characters that change how text reads without being seen."""

from __future__ import annotations

import re

# Bidirectional marks, embeddings and isolates; zero-width space, word joiner and invisible
# operators; a byte-order mark inside; tag characters; C0 and C1 controls that are not layout.
# Joiners (U+200C, U+200D) are needed by scripts and emoji, so they are left out.
_HIDDEN = re.compile(
    "[\u061c\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff"
    "\U000e0000-\U000e007f\x00-\x08\x0b\x0e-\x1f\x7f-\x84\x86-\x9f]"
)


def find_hidden(text: str) -> tuple[int, str] | None:
    """Return line and `U+XXXX` of the first hidden character of *text*, None when it has none."""
    found = _HIDDEN.search(text, 1 if text.startswith("\ufeff") else 0)
    if found is None:
        return None
    return text.count("\n", 0, found.start()) + 1, f"U+{ord(found.group()):04X}"
