"""Whether a text is a licence expression as SPDX 2.3, annex D, writes it. Identifiers are not looked up."""

from __future__ import annotations

import re
from collections.abc import Sequence

from flexinfer.spelling import nearest

MAX_LENGTH = 500
ALONE = ("NONE", "NOASSERTION")

_TOKEN = re.compile(r"\s*(?:([()])|([^\s()]+))")
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]*\+?")
_REFERENCE = re.compile(r"(?:DocumentRef-[A-Za-z0-9.-]+:)?LicenseRef-[A-Za-z0-9.-]+")
_OPERATORS = ("AND", "OR", "WITH")
# What model cards name most, to answer a near miss; not a list of what is allowed.
_FREQUENT = (
    "Apache-2.0", "MIT", "BSD-2-Clause", "BSD-3-Clause", "CC-BY-4.0", "CC-BY-NC-4.0", "CC-BY-SA-4.0",
    "CC0-1.0", "GPL-3.0-only", "AGPL-3.0-only", "LGPL-3.0-only", "MPL-2.0", "Unlicense",
    "NOASSERTION",
)  # fmt: skip


def problem(expression: str) -> str | None:
    """Return what is wrong with *expression*, None if it is well formed.

    `NONE` and `NOASSERTION` stand alone. An operator binds as in the standard: WITH, then AND, then OR; the order
    does not matter here, because every order accepts the same texts.
    """
    if len(expression) > MAX_LENGTH:
        return f"expected a licence expression of at most {MAX_LENGTH} characters"
    tokens = [bracket or word for bracket, word in _TOKEN.findall(expression)]
    if expression.strip() in ALONE:
        return None
    wrong = _check(tokens)
    if wrong is None:
        return None
    return (
        f"licence {expression!r}: expected an SPDX expression, such as Apache-2.0: {wrong}"
        f"{near_miss(expression)}"
    )


def near_miss(expression: str) -> str:
    """Return a question for the frequent licence that is meant; empty: none is near."""
    return nearest(expression, _FREQUENT)


def _check(tokens: Sequence[str]) -> str | None:
    depth = 0
    wants_licence = True
    before = ""
    for token in tokens:
        if wants_licence:
            if token == "(" and before != "WITH":
                depth += 1
            elif _is_licence(token, is_exception=before == "WITH"):
                wants_licence = False
            else:
                return f"a licence cannot be {token!r}"
        elif token == ")" and depth > 0:
            depth -= 1
        elif token in _OPERATORS and not (token == "WITH" and before == ")"):
            wants_licence = True
        else:
            return f"expected AND, OR, WITH or the end, found {token!r}"
        before = token
    if wants_licence:
        return "a licence is missing at the end"
    return "a ')' is missing" if depth else None


def _is_licence(token: str, *, is_exception: bool) -> bool:
    if token.upper() in (*_OPERATORS, "NONE", "NOASSERTION"):
        return False
    if is_exception:
        return bool(_ID.fullmatch(token)) and not token.endswith("+")
    return bool(_ID.fullmatch(token) or _REFERENCE.fullmatch(token))
