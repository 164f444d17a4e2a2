"""What commands share on the terminal: how a group of them is made, tables, JSON."""

from __future__ import annotations

import json
import shutil
import sys
import unicodedata
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import typer

from flexinfer.printable import one_line

_PLAIN: dict[str, Any] = {
    "add_completion": False,
    "pretty_exceptions_enable": False,
    "rich_markup_mode": None,
}
_GAP = "  "
_INDENT = "    "
COPIED = frozenset({"name", "reference", "digest", "entry"})
"""Heads of columns whose cells people copy into the next command."""
# A column that is squeezed further can no longer be read.
_NARROWEST, _LONG_WORD, _READABLE = 8, 14, 20


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


def print_table(
    heads: Sequence[str], rows: Sequence[Sequence[str]], *, whole: Collection[str] = COPIED
) -> None:
    """Write a table: folded to the width of a terminal, one line for each row elsewhere.

    *whole*: the heads of columns whose cells are copied, so never cut.
    """
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    for line in table_lines(heads, rows, width=width, whole=whole):
        typer.echo(line)


def table_lines(
    heads: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    width: int | None = None,
    whole: Collection[str] = (),
) -> Iterator[str]:
    """Yield the lines of a table. With *width*, in columns, cells that do not fit go on below, in their own column.

    The widest columns give way first, those under the heads in *whole* never. Where no room is left for one of at
    least 8, lines of words go below their row, indented; of *whole* alone, they are longer than *width*.
    """
    cells = [[one_line(cell) for cell in row] for row in (heads, *rows)]
    widths = [max(map(cell_width, column)) for column in zip(*cells, strict=True)]
    below: list[int] = []
    if width is not None:
        floors = [
            widths[n] if head in whole else _floor([row[n] for row in cells], is_word=bool(whole))
            for n, head in enumerate(heads)
        ]
        while True:
            beside = [n for n in range(len(widths)) if n not in below]
            room = width - len(_GAP) * (len(beside) - 1)
            squeezed = _squeezed([widths[n] for n in beside], [floors[n] for n in beside], room)
            pliant = [n for n in beside if heads[n] not in whole]
            if not whole or not pliant:
                break
            last = squeezed[beside.index(pliant[-1])]
            if sum(squeezed) <= room and last >= min(widths[pliant[-1]], _READABLE):
                break
            # The last one first: what is most to read and least to compare.
            below.insert(0, pliant[-1])
        widths = squeezed
        texts = [[row[n] for n in below] for row in cells]
        cells = [[row[n] for n in beside] for row in cells]
    for number_of_row, row in enumerate(cells):
        folded = [list(_fold(cell, room)) for cell, room in zip(row, widths, strict=True)]
        for number in range(max(map(len, folded))):
            parts = (lines[number] if number < len(lines) else "" for lines in folded)
            padded = (
                part + " " * (room - cell_width(part))
                for part, room in zip(parts, widths, strict=True)
            )
            yield _GAP.join(padded).rstrip()
        if below and number_of_row and width is not None:
            for n, text in zip(below, texts[number_of_row], strict=True):
                if text.strip():
                    room = max(_NARROWEST, width - len(_INDENT))
                    yield from (_INDENT + line for line in _fold(f"{heads[n]}: {text}", room))


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


def _floor(cells: Sequence[str], *, is_word: bool) -> int:
    """Return what a column must have; *is_word*: also for its longest word, where that is not long."""
    words = (cell_width(word) for cell in cells for word in cell.split()) if is_word else ()
    return max((one for one in words if one <= _LONG_WORD), default=0) or _NARROWEST


def _squeezed(widths: Sequence[int], floors: Sequence[int], room: int) -> list[int]:
    found = list(widths)
    while sum(found) > room:
        pliant = [n for n, floor in enumerate(floors) if found[n] > floor]
        if not pliant:
            break
        found[max(pliant, key=found.__getitem__)] -= 1
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
