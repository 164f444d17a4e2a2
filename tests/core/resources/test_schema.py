"""The JSON schema: complete, and made by one command."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from flexinfer.resources import schema


def test_both_kinds_must_say_what_they_are() -> None:
    found = schema.schema()
    assert [one["$ref"] for one in found["anyOf"]] == ["#/$defs/CatalogEntry", "#/$defs/Model"]
    for kind in ("CatalogEntry", "Model"):
        assert {"apiVersion", "kind", "metadata", "spec"} <= set(found["$defs"][kind]["required"])
        assert found["$defs"][kind]["properties"]["kind"]["const"] == kind


def test_keys_are_the_published_ones_and_closed() -> None:
    serverless = schema.schema()["$defs"]["Serverless"]
    assert "idleTimeout" in serverless["properties"]
    assert serverless["additionalProperties"] is False


def test_what_stands_below_a_field_becomes_its_description() -> None:
    properties = schema.schema()["$defs"]["Serverless"]["properties"]
    assert "how long a request may be held" in properties["coldStartTimeout"]["description"].lower()


def test_a_duration_may_be_text_or_a_number() -> None:
    properties = schema.schema()["$defs"]["Serverless"]["properties"]
    kinds = {one["type"] for one in properties["idleTimeout"]["anyOf"]}
    assert kinds == {"string", "number"}


def test_the_command_writes_and_checks(tmp_path: Path) -> None:
    file = tmp_path / "schema.json"
    command = [sys.executable, "-m", "flexinfer.resources.schema"]
    subprocess.run([*command, str(file)], check=True, timeout=60)
    assert json.loads(file.read_text()) == schema.schema()
    assert schema.main(["--check", str(file)]) == 0


def test_a_file_that_is_not_current_fails_the_check(tmp_path: Path) -> None:
    file = tmp_path / "schema.json"
    assert schema.main(["--check", str(file)]) == 1
    file.write_text("{}")
    assert schema.main(["--check", str(file)]) == 1
    assert file.read_text() == "{}"


def test_other_arguments_are_a_usage_error() -> None:
    assert schema.main([]) == 2
    assert schema.main(["--write"]) == 2
