"""The closest known word: what every refusal of an unknown name ends with."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

# Comparing costs the product of the lengths; nothing that we name is longer.
_LONGEST = 128


def nearest(name: str, known: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` for the closest of *known*, or an empty string. Case does not count."""
    if len(name) > _LONGEST:
        return ""
    folded = {word.casefold(): word for word in known}
    close = difflib.get_close_matches(name.casefold(), folded, n=1)
    return f"; did you mean {folded[close[0]]!r}?" if close else ""
