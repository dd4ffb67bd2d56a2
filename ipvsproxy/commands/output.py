"""Printing for people and for programs: the only importer of the terminal library.

For people a command makes parts: lines, each a text or a list of `Marked` pieces, and grids without borders, as
kubectl prints them. Long lines are not wrapped, so that they can be searched. Colours appear on a terminal only
(NO_COLOR is heeded), and what a colour says stands in the words as well.

For programs there is one document, which begins with `version` and `kind` (docs/commands.md).

Not with rich: structlog loads it wherever it is installed, which would cost the proxy 5 MiB and 0.1 s. Nor with
blessed, which asks the terminal who it is, and waits for the answer, before it prints a line.
"""

import json
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from enum import Enum
from typing import Any, NamedTuple

import yaml
from termcolor import can_colorize, colored

VERSION = 1
"""Of all documents. Fields may be added to one; when one changes its meaning or goes, this is raised."""
DOCUMENTS = ("json", "yaml")
GAP = "   "
ENTER, LEAVE = "\x1b[?1049h\x1b[?25l\x1b[?7l", "\x1b[?7h\x1b[?25h\x1b[?1049l"
"""Of a terminal: its other screen, without a cursor and without wrapping; and back."""
ANEW = "\x1b[H\x1b[2J"


class Mood(Enum):
    """What a piece of text is, as a colour and attributes."""

    PLAIN = (None, ())
    TITLE = (None, ("bold",))
    GOOD = ("green", ())
    DOUBTFUL = ("yellow", ())
    BAD = ("red", ("bold",))
    QUIET = ("dark_grey", ())


class Marked(NamedTuple):
    """A piece of text with a mood."""

    text: str
    mood: Mood = Mood.PLAIN


Cell = str | int | Marked
Line = str | Marked | Sequence[str | Marked]


class Grid(NamedTuple):
    """A table: heads of columns, and rows as long. Columns of numbers stand on the right."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]


Parts = Iterable[Line | Grid]
Look = Callable[[], tuple[Mapping[str, Any], Parts]]
"""Looks once and returns a document (without version and kind) and the same for people."""


def emit(form: str, kind: str, document: Mapping[str, Any], parts: Parts) -> None:
    """Print in one of the forms table, wide, json, yaml."""
    if form in DOCUMENTS:
        sys.stdout.write(_document(form, kind, document, indent=2))
    else:
        sys.stdout.writelines(f"{line}\n" for line in lines(parts, colours=can_colorize()))
    sys.stdout.flush()


def follow(form: str, kind: str, look: Look, seconds: float, pause: Callable[[float], None] = time.sleep) -> None:
    """Print again and again, for ever: one JSON document a line, or on a terminal in the same place."""
    if form in DOCUMENTS or not sys.stdout.isatty():
        while True:
            document, parts = look()
            if form in DOCUMENTS:
                sys.stdout.write(_document(form, kind, document))
            else:
                sys.stdout.writelines(f"{line}\n" for line in (*lines(parts, colours=False), ""))
            sys.stdout.flush()
            pause(seconds)
    _, parts = look()  # before the other screen is entered, so that what it notes stays on this one
    try:
        sys.stdout.write(ENTER)
        while True:
            shown = list(lines(parts, colours=can_colorize()))
            sys.stdout.write(ANEW + "\n".join(shown[: shutil.get_terminal_size().lines]))
            sys.stdout.flush()
            pause(seconds)
            _, parts = look()
    finally:
        sys.stdout.write(LEAVE)
        sys.stdout.flush()


def note(text: str) -> None:
    """Say something about the output on stderr, where no program reads it as a part of it."""
    sys.stderr.write(f"{text}\n")


def _document(form: str, kind: str, document: Mapping[str, Any], indent: int | None = None) -> str:
    whole = {"version": VERSION, "kind": kind, **document}
    if form == "json":
        return json.dumps(whole, indent=indent) + "\n"
    return yaml.safe_dump(whole, sort_keys=False, explicit_start=indent is None)


def lines(parts: Parts, *, colours: bool) -> Iterator[str]:
    """Yield all parts as lines."""
    for part in parts:
        if isinstance(part, Grid):
            yield from _grid(part, colours=colours)
        elif isinstance(part, str | Marked):
            yield _styled(part, colours=colours)
        else:
            yield "".join(_styled(piece, colours=colours) for piece in part)


def _grid(grid: Grid, *, colours: bool) -> Iterator[str]:
    head = [Marked(column, Mood.TITLE) for column in grid.columns]
    columns = list(zip(*grid.rows, strict=True)) or [()] * len(head)
    widths = [max(map(_width, (title, *cells))) for title, cells in zip(head, columns, strict=True)]
    right = [bool(cells) and all(isinstance(cell, int) for cell in cells) for cells in columns]
    for row in (head, *grid.rows):
        yield GAP.join(
            _padded(cell, width, right=side, colours=colours)
            for cell, width, side in zip(row, widths, right, strict=True)
        ).rstrip()


def _padded(cell: Cell, width: int, *, right: bool, colours: bool) -> str:
    """Pad by what is seen: escape sequences have no width."""
    blank, text = " " * (width - _width(cell)), _styled(cell, colours=colours)
    return blank + text if right else text + blank


def _width(cell: Cell) -> int:
    return len(_plain(cell))


def _plain(cell: Cell) -> str:
    return cell.text if isinstance(cell, Marked) else str(cell)


def _styled(cell: Cell, *, colours: bool) -> str:
    if not (colours and isinstance(cell, Marked)):
        return _plain(cell)
    colour, attributes = cell.mood.value
    return colored(cell.text, colour, attrs=attributes, force_color=True)
