"""Licences as sources state them, and whether an entry's expression covers what is stated. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

UNSTATED = frozenset({"", "noassertion", "none", "unknown", "other"})
_OPERATORS = frozenset({"and", "or", "with"})
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+-]{0,63}")
# What people write where an SPDX identifier belongs (lower case) → the identifier.
_SPELLINGS = {
    "apache 2.0": "Apache-2.0",
    "apache license 2.0": "Apache-2.0",
    "apache license, version 2.0": "Apache-2.0",
    "apache software license": "Apache-2.0",
    "mit license": "MIT",
    "bsd license": "BSD-3-Clause",
    "bsd 3-clause": "BSD-3-Clause",
    "mozilla public license 2.0 (mpl 2.0)": "MPL-2.0",
}
_CLASSIFIER = "License :: OSI Approved :: "


def from_metadata(metadata: Mapping[str, Any]) -> str:
    """Return the SPDX expression that a wheel's metadata states; empty if it states none that can be read.

    `License-Expression` wins (PEP 639); then the old free text where it is an identifier; then the classifier.
    """
    expression = str(metadata.get("license_expression") or "").strip()
    if expression:
        return expression
    text = str(metadata.get("license") or "").strip()
    known = normal(text)
    if known and (known != text or _ID.fullmatch(text)):
        return known
    for one in metadata.get("classifier") or []:
        if str(one).startswith(_CLASSIFIER):
            named = str(one).removeprefix(_CLASSIFIER)
            return _SPELLINGS.get(named.lower(), "")
    return ""


def normal(text: str) -> str:
    """Return the SPDX identifier that *text* spells, or *text* itself."""
    return _SPELLINGS.get(text.strip().lower(), text.strip())


def covers(expression: str, stated: str) -> bool:
    """Return whether an entry's *expression* names every licence that the source *stated*.

    Case does not matter, nor does the `LicenseRef-` that SPDX wants before names of its user's own. What is not
    stated is covered; an entry that asserts nothing covers everything.
    """
    wanted, found = _names(expression), _names(stated)
    return "noassertion" in wanted or not (found - UNSTATED - wanted)


def _names(expression: str) -> frozenset[str]:
    words = re.split(r"[\s()]+", normal(expression).lower())
    return frozenset(
        word.removeprefix("licenseref-") for word in words if word and word not in _OPERATORS
    )
