"""The closest known word: what every refusal of an unknown name ends with."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

# Comparing costs the product of the lengths; nothing that we name is longer.
_LONGEST = 128
# `q8` is close to `q8_0`; `Q4_K_M` is another thing than `Q4_1`.
_CLOSE = 0.65
# Fewer letters than this begin too much.
_BEGINNING = 3


def nearest(name: str, known: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` for the closest of *known*, or an empty string. Case does not count.

    Where none is close, the only one that *name* is the beginning of.
    """
    if len(name) > _LONGEST:
        return ""
    folded = {word.casefold(): word for word in known}
    close = difflib.get_close_matches(name.casefold(), folded, n=1, cutoff=_CLOSE)
    if not close and len(name) >= _BEGINNING:
        longer = [word for word in folded if word.startswith(name.casefold())]
        close = longer if len(longer) == 1 else []
    return f"; did you mean {folded[close[0]]!r}?" if close else ""
