import io
import json
import re
import sys

import pytest
import yaml

from ipvsproxy.commands.output import ENTER, LEAVE, Grid, Hanging, Marked, Style, emit, follow, lines
from tests.support.terminal import Terminal

GRID = Grid(("NAME", "COUNT", "STATE"), [("a", 1, Marked("fine", Style.GOOD)), ("longer", 12345, "")])
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
    emit("table", "Thing", {}, ["text", [Marked("good", Style.GOOD), " and ", Marked("bad", Style.BAD)], GRID])
    out = capsys.readouterr().out
    assert out.startswith("text\ngood and bad\nNAME")
    assert "\x1b" not in out


@pytest.mark.parametrize(("form", "read"), [("json", json.loads), ("yaml", yaml.safe_load)])
def test_documents_have_version_and_kind(form, read, capsys):
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


WORDS = (
    "the reverse path filter of eth0 is strict, so replies that leave by another uplink than they came are dropped"
)
SERVICES = Grid(
    ("NAMESPACE", "SERVICE", "ENDPOINTS", "CONN/S", "IN-BYTES/S"),
    [("monitoring", "a-service-with-a-long-name", [f"10.244.{n}.1:8080" for n in range(6)], 12, 4096)],
    ("IN-BYTES/S", "CONN/S"),
)


def on_terminal(monkeypatch, columns, form, *parts):
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("NO_COLOR", "1")
    emit(form, "Thing", {}, parts)
    return screen.getvalue().splitlines()


@pytest.mark.parametrize("columns", [40, 80, 119])
def test_lines_break_at_words_and_stay_indented(columns, monkeypatch):
    head = [Marked("warning      ", Style.WARNING), Marked("reverse path", Style.TITLE), f": {WORDS}"]
    found = on_terminal(monkeypatch, columns, "table", Hanging(head, 15), [" " * 13, WORDS], "short")
    assert all(len(line) <= columns for line in found)
    assert found[-1] == "short"
    assert " ".join(" ".join(found).split()) == " ".join(f"warning reverse path: {WORDS} {WORDS} short".split())
    assert all(line.startswith((" " * 13, "warning", "short")) for line in found)


def test_a_word_that_is_too_long_stays_whole(monkeypatch):
    found = on_terminal(monkeypatch, 40, "table", f"next: https://{'x' * 60} and more")
    assert found == ["next:", f"  https://{'x' * 60}", "  and more"]


def test_a_narrow_terminal_gets_first_values_and_the_important_columns(monkeypatch):
    found = on_terminal(monkeypatch, 80, "table", SERVICES)
    assert found[0].split() == ["NAMESPACE", "SERVICE", "ENDPOINTS"]
    assert found[1].endswith("10.244.0.1:8080 + 5 more")
    assert found[2] == "Not shown: IN-BYTES/S, CONN/S. -o wide shows all."
    assert all(len(line) <= 80 for line in found)
    wider = on_terminal(monkeypatch, 122, "table", SERVICES)
    assert wider[0].split() == ["NAMESPACE", "SERVICE", "ENDPOINTS", "CONN/S", "IN-BYTES/S"]
    assert "10.244.2.1:8080 + 3 more" in wider[1]
    assert len(wider) == 2


def test_wide_and_pipes_get_everything(monkeypatch, capsys):
    emit("table", "Thing", {}, [SERVICES, WORDS])
    piped = capsys.readouterr().out.splitlines()
    assert "10.244.5.1:8080" in piped[1]
    assert piped[2] == WORDS
    assert on_terminal(monkeypatch, 80, "wide", SERVICES, WORDS) == piped


def test_columns_with_words_break_when_nothing_can_be_left_out(monkeypatch):
    found = on_terminal(monkeypatch, 60, "table", Grid(("WHERE", "WHAT", "N"), [("decide", WORDS, 7)]))
    assert all(len(line) <= 60 for line in found)
    assert found[1].startswith("decide")
    assert found[1].endswith(" 7")
    assert found[2].startswith(" " * 9)
    assert " ".join(" ".join(found[1:]).split()).replace("decide ", "").replace(" 7", "", 1) == WORDS


def test_colours_survive_breaking():
    (one, two) = lines([[Marked("a" * 30, Style.BAD), Marked(" " + "b" * 30, Style.GOOD)]], colours=True, width=40)
    assert one.startswith("\x1b[1m\x1b[31m" + "a" * 30)
    assert re.sub("\x1b\\[[0-9;]*m", "", two) == "  " + "b" * 30


def test_columns_that_cannot_break_keep_their_width(monkeypatch):
    rows = [
        ("[2001:db8:113::10]:30081/TCP", ["[fd00:10:244:1::20]:8080", "[fd00:10:244:1::21]:8080"]),
        ("short", []),
    ]
    found = on_terminal(monkeypatch, 56, "table", Grid(("FRONTEND", "ENDPOINTS"), rows))
    assert found == [
        "FRONTEND                       ENDPOINTS",
        "[2001:db8:113::10]:30081/TCP   [fd00:10:244:1::20]:8080",
        "                               + 1 more",
        "short                          -",
    ]


@pytest.mark.parametrize("columns", [30, 40, 60, 80, 100])
def test_every_column_begins_at_one_place(columns, monkeypatch):
    rows = [(f"name-{'x' * n}", WORDS[: 10 * n], [f"[fd00::{n}]:8080"] * n, n) for n in range(12)]
    head, *lines_ = on_terminal(monkeypatch, columns, "table", Grid(("NAME", "WHY", "ENDPOINTS", "N"), rows))
    for title in ("WHY", "ENDPOINTS"):
        at = head.index(title)
        assert {line[at - 3 : at] for line in lines_ if len(line) > at} == {"   "}


@pytest.mark.parametrize("width", [None, 40])
def test_nothing_in_a_text_commands_the_terminal(width):
    hostile = "a\x1b]0;title\x07\x9b2J\r\nError: b\u202e"
    grid = Grid(["NAME", "OF"], [[hostile, [hostile]], [Marked(hostile, Style.BAD), 7]])
    parts = [hostile, Marked(hostile, Style.GOOD), Hanging([hostile], 2), grid]
    text = list(lines(parts, colours=False, width=width))
    assert all(line.isprintable() for line in text), text
    coloured = "".join(lines(parts, colours=True, width=width))
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured).isprintable()
