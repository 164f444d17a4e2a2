"""What commands share on the terminal: how a group of them is made, tables, JSON."""

from __future__ import annotations

import json
import shutil
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any

import typer

_PLAIN: dict[str, Any] = {
    "add_completion": False,
    "pretty_exceptions_enable": False,
    "rich_markup_mode": None,
}
_GAP = "  "
# A column that is squeezed further can no longer be read.
_NARROWEST = 8


def group(*, help: str, epilog: str, **more: Any) -> typer.Typer:
    """Return a Typer app as all of ours are: plain help, plain errors, and never collapsed to its one command.

    *more* goes to Typer. A callback that the caller adds takes the place of ours.
    """
    app = typer.Typer(**{"no_args_is_help": True, **_PLAIN, **more}, help=help, epilog=epilog)
    app.callback()(_stays_a_group)
    return app


def one_command(name: str, command: Any) -> typer.Typer:
    """Return a Typer app of the single *command*, which Typer then makes the app itself."""
    app = typer.Typer(**_PLAIN)
    app.command(name)(command)
    return app


def print_json(value: Any) -> None:
    """Write *value* for programs, indented for people."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def print_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Write a table: folded to the width of a terminal, one line for each row elsewhere."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    for line in table_lines(heads, rows, width=width):
        typer.echo(line)


def table_lines(
    heads: Sequence[str], rows: Sequence[Sequence[str]], *, width: int | None = None
) -> Iterator[str]:
    """Yield the lines of a table. With *width*, in columns, cells that do not fit go on below, in their own column.

    The widest columns give way first. A column is never narrower than 8: on a terminal with no room even for that,
    lines are longer than it.
    """
    cells = [[_printable(cell) for cell in row] for row in (heads, *rows)]
    widths = [max(map(cell_width, column)) for column in zip(*cells, strict=True)]
    if width is not None:
        widths = _squeezed(widths, width - len(_GAP) * (len(widths) - 1))
    for row in cells:
        folded = [list(_fold(cell, room)) for cell, room in zip(row, widths, strict=True)]
        for number in range(max(map(len, folded))):
            parts = (lines[number] if number < len(lines) else "" for lines in folded)
            padded = (
                part + " " * (room - cell_width(part))
                for part, room in zip(parts, widths, strict=True)
            )
            yield _GAP.join(padded).rstrip()


def cell_width(text: str) -> int:
    """Return how many columns of a terminal *text* takes: none for marks, two for wide characters."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in text
    )


def _stays_a_group() -> None:
    """A callback, so that Typer never collapses the group."""


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)


def _squeezed(widths: Sequence[int], room: int) -> list[int]:
    found = list(widths)
    while sum(found) > room and max(found) > _NARROWEST:
        widest = found.index(max(found))
        found[widest] -= 1
    return found


def _fold(text: str, room: int) -> Iterator[str]:
    """Yield *text* in lines of at most *room* columns, cut at blanks where there are any."""
    while cell_width(text) > room:
        end = _fitting(text, room)
        blank = text.rfind(" ", 1, end + 1)
        cut = blank if blank > 0 else end
        yield text[:cut].rstrip()
        text = text[cut:].lstrip()
    yield text


def _fitting(text: str, room: int) -> int:
    """Return how many characters fit; at least one."""
    used = 0
    for number, character in enumerate(text):
        used += cell_width(character)
        if used > room:
            return max(number, 1)
    return len(text)
