"""Tables fit, and a group of commands stays one."""

from __future__ import annotations

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from flexinfer.console import COPIED, cell_width, group, print_table, table_lines

_CELL = st.text(max_size=40)
_ROW = st.tuples(_CELL, _CELL, _CELL)


def test_without_a_width_each_row_is_one_line() -> None:
    lines = list(table_lines(("name", "size"), [("a" * 100, "1 B"), ("b", "22 B")]))
    assert lines == [f"{'name':<100}  size", f"{'a' * 100}  1 B", f"{'b':<100}  22 B"]


def test_a_name_that_is_too_long_goes_on_in_its_own_column() -> None:
    lines = list(
        table_lines(("name", "size"), [("abcdefghijklmno", "1 B"), ("z", "2 B")], width=14)
    )
    assert lines == ["name      size", "abcdefgh  1 B", "ijklmno", "z         2 B"]


def test_a_cell_is_cut_at_a_blank() -> None:
    lines = list(table_lines(("a", "message"), [("x", "not ready yet")], width=14))
    assert lines == ["a  message", "x  not ready", "   yet"]


def test_wide_characters_take_two_columns() -> None:
    assert cell_width("模型") == 4
    assert list(table_lines(("m", "n"), [("模型", "1")])) == ["m     n", "模型  1"]


def test_a_line_break_in_a_cell_does_not_break_the_table() -> None:
    assert list(table_lines(("m", "n"), [("a\nb\x1b[31m", "1")])) == ["m         n", "a b [31m  1"]


_HEADS = ("reference", "digest", "format", "quantization", "size", "evidence")
_STORED = ("smollm2-135m-instruct:q8-0", "sha256:0123456789ab", "gguf", "Q8_0", "1 MiB", "t PASSED")


def test_what_is_copied_is_never_cut() -> None:
    for width in (100, 80, 60, 40, 10):
        lines = list(table_lines(_HEADS, [_STORED], width=width, whole=COPIED))
        assert sum(_STORED[0] in line and _STORED[1] in line for line in lines) == 1
        assert all(cell_width(line) <= max(width, 47) for line in lines)


def test_what_has_no_room_beside_goes_below_its_row_with_its_head() -> None:
    lines = list(table_lines(_HEADS, [_STORED, _STORED], width=80, whole=COPIED))
    assert lines[0].split() == ["reference", "digest", "format", "quantization", "size"]
    assert lines[2] == lines[4] == "    evidence: t PASSED"


def test_in_a_pipe_each_row_is_one_line_and_whole(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(_HEADS, [_STORED])
    _, row = capsys.readouterr().out.splitlines()
    assert row.split("  ")[:2] == [_STORED[0], _STORED[1]]
    assert row.endswith("t PASSED")


@given(rows=st.lists(_ROW, max_size=4), width=st.integers(min_value=28, max_value=120))
def test_no_line_is_wider_than_the_terminal_and_no_text_is_lost(
    rows: list[tuple[str, str, str]], width: int
) -> None:
    lines = list(table_lines(("a", "b", "c"), rows, width=width))
    assert all(cell_width(line) <= width for line in lines)
    shown = sorted("".join(lines).replace(" ", ""))
    printable = ("".join(c for c in cell if c.isprintable()) for row in rows for cell in row)
    assert shown == sorted("abc" + "".join(printable).replace(" ", ""))


def test_a_group_of_one_command_is_asked_by_its_name() -> None:
    app = group(help="One.", epilog="Example: one only")

    @app.command("only")
    def only() -> None:
        typer.echo("called")

    assert CliRunner().invoke(app, ["only"]).stdout == "called\n"
    assert "only" in CliRunner().invoke(app, []).output
