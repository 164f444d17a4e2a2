"""Licences as sources write them."""

from __future__ import annotations

from typing import Any

import pytest

from flexinfer_pipelines.license import covers, from_metadata


@pytest.mark.parametrize(
    ("expression", "stated"),
    [
        ("Apache-2.0", "apache-2.0"),
        ("Apache-2.0", ""),
        ("Apache-2.0", "Apache License 2.0"),
        ("Apache-2.0", "other"),
        ("MIT AND Apache-2.0", "MIT"),
        ("LicenseRef-llama3.2", "llama3.2"),
        ("NOASSERTION", "llama3.2"),
        ("(MIT OR Apache-2.0)", "MIT OR Apache-2.0"),
    ],
)
def test_what_the_entry_names_is_covered(expression: str, stated: str) -> None:
    assert covers(expression, stated)


@pytest.mark.parametrize(
    ("expression", "stated"),
    [("Apache-2.0", "MIT"), ("MIT", "MIT AND GPL-3.0-only"), ("Apache-2.0", "llama3.2")],
)
def test_what_the_entry_does_not_name_is_not(expression: str, stated: str) -> None:
    assert not covers(expression, stated)


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({"license_expression": "MIT", "license": "Apache-2.0"}, "MIT"),
        ({"license": "Apache-2.0"}, "Apache-2.0"),
        ({"license": "Apache License 2.0"}, "Apache-2.0"),
        ({"license": "Permission is hereby granted, free of charge, …"}, ""),
        ({"classifier": ["License :: OSI Approved :: MIT License"]}, "MIT"),
        ({"classifier": ["License :: OSI Approved :: Some License"]}, ""),
        ({}, ""),
    ],
)
def test_a_wheel_states_its_licence_in_one_of_three_ways(
    metadata: dict[str, Any], expected: str
) -> None:
    assert from_metadata(metadata) == expected
