import io
import json
import re
import sys

import pytest
import yaml

from ipvsproxy.commands.output import ENTER, LEAVE, Grid, Marked, Mood, emit, follow, lines

GRID = Grid(("NAME", "COUNT", "STATE"), [("a", 1, Marked("fine", Mood.GOOD)), ("longer", 12345, "")])
DOCUMENT = {"items": [{"name": "a", "count": 1}]}


def plain(parts):
    return list(lines(parts, colours=False))


def test_columns_are_as_wide_as_needed_and_numbers_stand_on_the_right():
    assert plain([GRID]) == ["NAME     COUNT   STATE", "a            1   fine", "longer   12345"]


def test_a_grid_without_rows_has_its_head():
    assert plain([Grid(("NAME", "COUNT"), [])]) == ["NAME   COUNT"]


def test_colours_do_not_count_as_width():
    coloured = list(lines([GRID], colours=True))
    assert "\x1b[32mfine" in coloured[1]
    assert [re.sub("\x1b\\[[0-9;]*m", "", line).rstrip() for line in coloured] == plain([GRID])


def test_no_colours_in_a_pipe(capsys):
    emit("table", "Thing", {}, ["text", [Marked("good", Mood.GOOD), " and ", Marked("bad", Mood.BAD)], GRID])
    out = capsys.readouterr().out
    assert out.startswith("text\ngood and bad\nNAME")
    assert "\x1b" not in out


@pytest.mark.parametrize(("form", "read"), [("json", json.loads), ("yaml", yaml.safe_load)])
def test_documents_say_version_and_kind(form, read, capsys):
    emit(form, "Thing", DOCUMENT, ["not for programs"])
    assert read(capsys.readouterr().out) == {"version": 1, "kind": "Thing", **DOCUMENT}


class Enough(Exception):
    pass


def test_following_prints_one_document_a_line(capsys):
    pauses = []

    def pause(seconds):
        pauses.append(seconds)
        if len(pauses) == 2:
            raise Enough

    with pytest.raises(Enough):
        follow("json", "Thing", lambda: ({"look": len(pauses)}, []), 2.0, pause)
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [document["look"] for document in printed] == [0, 1]
    assert pauses == [2.0, 2.0]


def test_a_terminal_is_left_as_it_was(monkeypatch):
    class Screen(io.StringIO):
        def isatty(self):
            return True

    screen = Screen()
    monkeypatch.setattr(sys, "stdout", screen)

    def pause(_):
        raise KeyboardInterrupt

    def look():
        screen.write("a note")
        return {}, [GRID] * 100

    with pytest.raises(KeyboardInterrupt):
        follow("table", "Thing", look, 2.0, pause)
    text = screen.getvalue()
    assert text.startswith(f"a note{ENTER}"), "what is noted stays on the usual screen"
    assert text.endswith(LEAVE)
    assert len(text.splitlines()) <= 60
