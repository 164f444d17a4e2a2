"""The forms that names must have, and how a refusal describes them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

# A Kubernetes object name (RFC 1123 subdomain), at the length of a label.
NAME: Final = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?([.][a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"
NAME_LENGTH: Final = 63
# What clients may call a model: names in use elsewhere have slashes, colons and capitals.
ALIAS: Final = r"^[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,127}$"
# Repository and tag as the OCI distribution specification writes them; tags in lower case only.
REPOSITORY: Final = r"^[a-z0-9]+([._-]+[a-z0-9]+)*(/[a-z0-9]+([._-]+[a-z0-9]+)*)*$"
VARIANT: Final = r"^[a-z0-9][a-z0-9._-]{0,62}$"

MEANINGS: Mapping[str, str] = MappingProxyType(
    {
        NAME: "lower-case letters and digits, with single '.' and any '-' between them",
        ALIAS: "1 to 128 letters, digits and . _ : / @ + -, beginning with a letter or digit",
        REPOSITORY: "lower-case letters and digits, with . _ - / between them",
        VARIANT: "1 to 63 lower-case letters, digits and . _ -, beginning with a letter or digit",
    }
)
