"""Parts of a command's answer as lines of text: tables without borders, colours, and what fits a terminal.

In: lines, each a text or pieces with a `Style`, and grids. Out: strings. Without a `width` nothing is shortened,
so that files and pipes hold everything. With one, lines break at words, and a grid that is too wide is made
narrower in this order: long lists show their first values, columns that the grid names as spare are left out (and
named below it), the widest columns break at words. What has no space in it never breaks.
"""

import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from enum import Enum
from typing import NamedTuple

from termcolor import colored

from ipvsproxy.process.log import printable

GAP = "   "
NARROWEST = 20
"""Characters to which a column may shrink; less than this is not readable."""
FEW = (3, 1)
"""How many values of a list are shown where there is not room for all, as kubectl shows endpoints."""
WORD = re.compile(r"\S+")


class Style(Enum):
    """What a piece of text is, as a colour and attributes."""

    PLAIN = (None, ())
    TITLE = (None, ("bold",))
    GOOD = ("green", ())
    WARNING = ("yellow", ())
    BAD = ("red", ("bold",))
    QUIET = ("dark_grey", ())


class Marked(NamedTuple):
    """A piece of text with a style."""

    text: str
    style: Style = Style.PLAIN


class Hanging(NamedTuple):
    """A line whose continuation is indented by so many columns."""

    pieces: Sequence[str | Marked]
    indent: int


Cell = str | int | Marked | list[str]
Line = str | Marked | Hanging | Sequence[str | Marked]


class Grid(NamedTuple):
    """A table: heads of columns, and rows as long. Columns of numbers stand on the right.

    `spare` are columns that a narrow terminal can do without, the least important first.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    spare: Sequence[str] = ()


OutputParts = Iterable[Line | Grid]


def lines(parts: OutputParts, *, colours: bool, width: int | None = None) -> Iterator[str]:
    """Yield all parts as lines, at most so wide where they have spaces to break at."""
    for part in parts:
        if isinstance(part, Grid):
            yield from _grid(part, colours, width)
        else:
            yield from _line(part, colours, width)


# Lines


def _line(line: Line, colours: bool, width: int | None) -> Iterator[str]:
    pieces = [line] if isinstance(line, str | Marked) else line.pieces if isinstance(line, Hanging) else line
    text = "".join(map(_plain, pieces))
    indent = line.indent if isinstance(line, Hanging) else len(text) - len(text.lstrip()) + 2
    if width is None or len(text) <= width or width - indent < NARROWEST:
        yield "".join(_styled(piece, colours) for piece in pieces)
        return
    for start, end in _spans(text, width, indent):
        cut = "".join(_styled(piece, colours) for piece in _cut(pieces, start, end))
        yield " " * indent + cut if start else cut


def _spans(text: str, width: int, indent: int) -> Iterator[tuple[int, int]]:
    """Yield where each line begins and ends, so that all but the first leave room for the indent."""
    start = end = 0
    for word in WORD.finditer(text):
        if end and word.end() - start > width - (indent if start else 0):
            yield start, end
            start = word.start()
        end = word.end()
    yield start, end


def _cut(pieces: Sequence[str | Marked], start: int, end: int) -> Iterator[str | Marked]:
    at = 0
    for piece in pieces:
        text = _plain(piece)
        cut = text[max(start - at, 0) : max(end - at, 0)]
        yield piece._replace(text=cut) if isinstance(piece, Marked) else cut
        at += len(text)


# Grids


def _grid(grid: Grid, colours: bool, width: int | None) -> Iterator[str]:
    dropped: list[str] = []
    if width is not None:
        grid, dropped = _narrowed(grid, width)
    columns = list(zip(*grid.rows, strict=True)) or [()] * len(grid.columns)
    widths = _widths(grid) if width is None else _shrunk(_widths(grid), _floors(grid), width)
    right = [bool(cells) and all(isinstance(cell, int) for cell in cells) for cells in columns]
    for row in ([Marked(column, Style.TITLE) for column in grid.columns], *grid.rows):
        yield from _row(row, widths, right, colours)
    if dropped:
        yield from _line(
            Marked(f"Not shown: {', '.join(dropped)}. -o wide shows all.", Style.QUIET), colours, width
        )


def _narrowed(grid: Grid, width: int) -> tuple[Grid, list[str]]:
    """Return the grid with shorter lists and without spare columns, as far as needed, and what was left out."""
    dropped: list[str] = []
    spare = [name for name in grid.spare if name in grid.columns]
    if _fits(grid, width):
        return grid, dropped
    while spare and not _fits(_with_lists_of(FEW[0], grid), width):
        dropped.append(spare.pop(0))
        grid = _without(dropped[-1], grid)
    shortened = [_with_lists_of(most, grid) for most in FEW]
    return next((found for found in shortened if _fits(found, width)), shortened[-1]), dropped


def _without(name: str, grid: Grid) -> Grid:
    at = list(grid.columns).index(name)
    rows = [[*row[:at], *row[at + 1 :]] for row in grid.rows]
    return grid._replace(columns=[*grid.columns[:at], *grid.columns[at + 1 :]], rows=rows)


def _with_lists_of(most: int, grid: Grid) -> Grid:
    return grid._replace(rows=[[_shortened(cell, most) for cell in row] for row in grid.rows])


def _shortened(cell: Cell, most: int) -> Cell:
    if not isinstance(cell, list) or len(cell) <= most:
        return cell
    shown = cell[:most]
    return f"{','.join(shown)} + {len(cell) - most} more"


def _fits(grid: Grid, width: int) -> bool:
    return _total(_widths(grid)) <= width


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + len(GAP) * (len(widths) - 1)


def _widths(grid: Grid) -> list[int]:
    columns = zip(*grid.rows, strict=True) if grid.rows else [()] * len(grid.columns)
    return [max(map(_width, (title, *cells))) for title, cells in zip(grid.columns, columns, strict=True)]


def _floors(grid: Grid) -> list[int]:
    """Return how far each column may shrink: not below its longest word."""
    columns = zip(*grid.rows, strict=True) if grid.rows else [()] * len(grid.columns)
    return [
        max(NARROWEST, *(len(word) for cell in (title, *cells) for word in _plain(cell).split()))
        for title, cells in zip(grid.columns, columns, strict=True)
    ]


def _shrunk(widths: list[int], floors: Sequence[int], width: int) -> list[int]:
    """Take the excess from the widest columns that can give."""
    while (excess := _total(widths) - width) > 0:
        giving = [at for at, floor in enumerate(floors) if widths[at] > floor]
        if not giving:
            break
        widest = max(giving, key=lambda at: widths[at])
        second = max((widths[at] for at in giving if widths[at] < widths[widest]), default=0)
        widths[widest] = max(second, floors[widest], widths[widest] - excess)
    return widths


def _row(row: Sequence[Cell], widths: Sequence[int], right: Sequence[bool], colours: bool) -> Iterator[str]:
    """Yield one row, several lines of it where a cell is wider than its column."""
    cells = [_broken(cell, width) for cell, width in zip(row, widths, strict=True)]
    for number in range(max(map(len, cells), default=0)):
        here = [found[number] if number < len(found) else "" for found in cells]
        yield GAP.join(
            _padded(cell, width, side, colours) for cell, width, side in zip(here, widths, right, strict=True)
        ).rstrip()


def _broken(cell: Cell, width: int) -> list[str | Marked]:
    text = _plain(cell)
    style = cell.style if isinstance(cell, Marked) else Style.PLAIN
    if len(text) <= width:
        return [Marked(text, style)]
    broken = textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)
    return [Marked(line, style) for line in broken or [text]]


def _padded(cell: str | Marked, width: int, right: bool, colours: bool) -> str:
    """Pad by what is seen: escape sequences have no width."""
    blank, text = " " * (width - _width(cell)), _styled(cell, colours)
    return blank + text if right else text + blank


def _width(cell: Cell) -> int:
    return len(_plain(cell))


def _plain(cell: Cell) -> str:
    """Return the text of a cell; whatever it comes from, nothing in it moves a cursor or sets a colour."""
    if isinstance(cell, list):
        return printable(",".join(cell)) or "-"
    return printable(cell.text if isinstance(cell, Marked) else str(cell))


def _styled(cell: Cell, colours: bool) -> str:
    text = _plain(cell)
    if not (colours and isinstance(cell, Marked) and text):
        return text
    colour, attributes = cell.style.value
    return colored(text, colour, attrs=attributes, force_color=True)
