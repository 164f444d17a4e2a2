"""What comes from outside is shown, and nothing of it is obeyed by the terminal."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexinfer import cli
from flexinfer.errors import InvalidInput
from flexinfer.printable import escaped, one_line


@given(st.text(max_size=60), st.integers(2, 70))
def test_one_line_is_printable_and_bounded(text: str, most: int) -> None:
    shown = one_line(text, most=most)
    assert shown.isprintable()
    assert len(shown) == min(len(text), most)
    assert shown.endswith("…") or len(text) <= most or text[most - 1 :].startswith("…")


@given(st.text(max_size=60))
def test_what_is_escaped_is_printable_and_what_was_printable_stays(text: str) -> None:
    assert escaped(text).isprintable()
    assert all(line.isprintable() for line in escaped(text, keep="\n").split("\n"))
    assert escaped(text).count("模") == text.count("模")
    if text.isprintable():
        assert escaped(text) == text


def test_an_escape_sequence_a_line_break_and_a_turn_of_direction_are_written_out() -> None:
    assert escaped("a\x1b[2J\n\u202eb\U000e0001") == r"a\x1b[2J\n\u202eb\U000e0001"


def test_an_error_keeps_its_lines_and_loses_its_escape_sequences(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails() -> None:
        raise InvalidInput("first \x1b[31mred\nsecond", code="value_invalid")

    monkeypatch.setattr(cli, "app", fails)
    with pytest.raises(SystemExit):
        cli.main()
    assert capsys.readouterr().err == "error[value_invalid]: first \\x1b[31mred\nsecond\n"


def test_a_file_with_a_hostile_name_reaches_no_terminal_raw(tmp_path: Path) -> None:
    (tmp_path / "a\x1b[31mb.yaml").write_text("apiVersion: [")
    said = subprocess.run(
        [sys.executable, "-m", "flexinfer", "catalog", "lint", str(tmp_path)],
        env={"FLEXINFER_HOME": str(tmp_path / "home"), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert said.returncode == 2
    assert "\x1b" not in said.stdout + said.stderr
    assert r"a\x1b[31mb.yaml:2:1" in said.stdout + said.stderr
