"""What the documents say is so."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from flexinfer import plugins
from flexinfer.cli import _ABOUT
from flexinfer.settings import Settings

ROOT = Path(__file__).resolve().parent.parent


def test_settings_page_is_current() -> None:
    command = [sys.executable, str(ROOT / "tools" / "settings_doc.py"), "--check"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr


def test_every_setting_has_a_meaning() -> None:
    for section in Settings.model_fields.values():
        assert isinstance(section.annotation, type)
        for name, field in section.annotation.model_fields.items():
            assert field.description, name


def test_readme_names_commands_that_are_there() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    named = set(re.findall(r"flexinfer ([a-z]+)", text))
    assert named
    assert named <= set(plugins.names("flexinfer.commands"))


def test_every_published_command_has_its_line_of_help() -> None:
    assert set(_ABOUT) == set(plugins.names("flexinfer.commands"))


def test_paths_in_the_readmes_map_exist() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    paths = re.findall(r"^\| `([a-z_/]+)` \|", text, re.MULTILINE)
    assert len(paths) >= 6
    assert [path for path in paths if not (ROOT / path).exists()] == []
