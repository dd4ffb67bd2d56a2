"""Printing for people and for programs.

For people a command makes parts, which `commands.layout` lays out. On a terminal they fit its width (not with
`-o wide`); elsewhere nothing is wrapped or left out, so that it can be searched. Colours appear on a terminal only
(NO_COLOR is honored), and the text has everything that a colour means.

For programs there is one document, which begins with `version` and `kind` (docs/commands.md).

Not with rich: structlog loads it wherever it is installed, which would cost the proxy 5 MiB and 0.1 s. Nor with
blessed, which asks the terminal who it is, and waits for the answer, before it prints a line.
"""

import json
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import yaml
from termcolor import can_colorize

from ipvsproxy.commands.layout import Cell, Grid, Hanging, Line, Marked, OutputParts, Style, lines

__all__ = [
    "Cell",
    "Grid",
    "Hanging",
    "Line",
    "Marked",
    "OutputParts",
    "Style",
    "emit",
    "follow",
    "lines",
    "note",
]  # fmt: skip
VERSION = 1
"""Of all documents. Fields may be added to one; when one changes its meaning or goes, this is raised."""
DOCUMENTS = ("json", "yaml")
WIDE = "wide"
ENTER, LEAVE = "\x1b[?1049h\x1b[?25l\x1b[?7l", "\x1b[?7h\x1b[?25h\x1b[?1049l"
"""Of a terminal: its other screen, without a cursor and without wrapping; and back."""
ANEW = "\x1b[H\x1b[2J"
ReadOnce = Callable[[], tuple[Mapping[str, Any], OutputParts]]
"""Looks once and returns a document (without version and kind) and the same for people."""


def emit(form: str, kind: str, document: Mapping[str, Any], parts: OutputParts) -> None:
    """Print in one of the forms table, wide, json, yaml."""
    if form in DOCUMENTS:
        sys.stdout.write(_document(form, kind, document, indent=2))
    else:
        sys.stdout.writelines(f"{line}\n" for line in lines(parts, colours=can_colorize(), width=_width(form)))
    sys.stdout.flush()


def follow(
    form: str, kind: str, look: ReadOnce, seconds: float, pause: Callable[[float], None] = time.sleep
) -> None:
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
            shown = list(lines(parts, colours=can_colorize(), width=_width(form)))
            sys.stdout.write(ANEW + "\n".join(shown[: shutil.get_terminal_size().lines]))
            sys.stdout.flush()
            pause(seconds)
            _, parts = look()
    finally:
        sys.stdout.write(LEAVE)
        sys.stdout.flush()


def note(text: str) -> None:
    """Say something about the output on stderr, where no program reads it as a part of it."""
    width = shutil.get_terminal_size().columns if sys.stderr.isatty() else None
    sys.stderr.writelines(f"{line}\n" for line in lines([text], colours=False, width=width))


def _width(form: str) -> int | None:
    """Return the columns there are, None where nothing may be left out."""
    if form == WIDE or not sys.stdout.isatty():
        return None
    return shutil.get_terminal_size().columns


def _document(form: str, kind: str, document: Mapping[str, Any], indent: int | None = None) -> str:
    # The safe dumper of YAML refuses enums and tuples.
    whole = msgspec.to_builtins({"version": VERSION, "kind": kind, **document})
    if form == "json":
        return json.dumps(whole, indent=indent) + "\n"
    return yaml.safe_dump(whole, sort_keys=False, explicit_start=indent is None)
