import errno
import json
import os
import re
import subprocess
import sys
import time

import pytest
import structlog

from ipvsproxy.base import messages
from ipvsproxy.config import LogFormat
from ipvsproxy.process import log as log_settings
from tests.support.build import config

LINE = re.compile(r'([IWE])(\d{4}) \d\d:\d\d:\d\d\.\d{6} +\d+ test_log\.py:\d+\] ("[^"]*")(.*)')


@pytest.fixture
def start(capsys):
    """Configure logging; return a logger and what it has said so far."""
    before = structlog.get_config()

    def configured(**settings):
        log_settings.configure(config(**settings))
        return structlog.get_logger(), lambda: capsys.readouterr().err

    yield configured
    structlog.configure(**before)
    log_settings.verbosity.general, log_settings.verbosity.patterns = 0, ()


@pytest.mark.parametrize(
    ("method", "letter"), [("info", "I"), ("warning", "W"), ("error", "E"), ("critical", "E"), ("debug", "I")]
)
def test_a_line_of_text_is_klogs(start, method, letter):
    log, said = start(verbosity=4)
    getattr(log, method)("synced", services=3, seconds=0.25, name='a "b"', families=[4, 6], zone=None, ok=True)
    found = LINE.fullmatch(said().rstrip("\n"))
    assert found
    assert found[1] == letter
    assert found[3] == '"synced"'
    assert found[4] == ' services=3 seconds=0.25 name="a \\"b\\"" families=[4, 6] zone=null ok=true'


def test_tracebacks_are_indented_and_show_no_variables(start):
    log, said = start()
    secret = "hush" * 2
    try:
        int(secret[:0])
    except ValueError:
        log.exception("crash")
    head, *lines, end = said().rstrip("\n").split("\n")
    assert head.endswith('] "crash" exception=<')
    assert end == " >"
    assert all(line.startswith("\t") for line in lines)
    assert "hushhush" not in "".join(lines)


@pytest.mark.parametrize("form", LogFormat)
def test_a_name_that_is_no_utf8_costs_no_line(start, form):
    log, said = start(log_format=form)
    log.info(messages.MANIFEST_FILE_REMOVED, file=os.fsdecode(b"a\xff.yaml"))
    line = said()
    assert line.isascii()
    if form is LogFormat.JSON:
        assert json.loads(line)["file"] == "a\udcff.yaml"
    else:
        assert r"a\udcff.yaml" in line


def test_a_line_of_json_is_that_of_a_component(start):
    log, said = start(log_format=LogFormat.JSON)
    log.info("synced", services=3)
    found = json.loads(said())
    assert abs(found.pop("ts") / 1000 - time.time()) < 60
    assert re.fullmatch(r"test_log\.py:\d+", found.pop("caller"))
    assert found == {"msg": "synced", "v": 0, "level": "info", "services": 3}


def test_an_error_in_json_has_no_verbosity(start):
    log, said = start(log_format=LogFormat.JSON, verbosity=4)
    log.error("refused", reason="busy")
    log.debug("detail")
    first, second = map(json.loads, said().splitlines())
    assert (first["level"], first["reason"], "v" in first) == ("error", "busy", False)
    assert second["v"] == 4


@pytest.mark.parametrize("form", list(LogFormat))
def test_verbosity_changes_while_a_logger_lives(start, form):
    log, said = start(log_format=form)
    log.debug("one")
    assert said() == ""
    log_settings.set_verbosity(4)
    log.debug("two")
    assert "two" in said()
    log_settings.set_verbosity(0)
    log.debug("three")
    assert said() == ""


@pytest.mark.parametrize(
    ("patterns", "shown"),
    [
        ((("test_log", 4),), True),
        ((("test_*", 5),), True),
        ((("loop", 9),), False),
        ((("test_log", 3),), False),
        ((("test_l*", 0), ("test_log", 4)), False),
    ],
)
def test_files_with_a_verbosity_of_their_own(start, patterns, shown):
    log, said = start(vmodule=patterns)
    log.debug("detail")
    assert ("detail" in said()) is shown
    log.info("news")
    assert "news" in said()


WRITER = """
import os, resource, structlog
from ipvsproxy.process import log
from ipvsproxy.config import Config
log.configure(Config(node_name="node1"))
def say(times):
    for _ in range(times):
        structlog.get_logger().error("nobody hears this", text="x" * 1000)
say(100)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
say(20000)
os._exit(7 if resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + 5000 else 8)
"""


@pytest.mark.parametrize("where", ["a full disk", "a reader that has gone"])
def test_logs_that_cannot_be_written_cost_lines_and_no_memory(where):
    reader, writer = os.pipe() if where == "a reader that has gone" else (None, os.open("/dev/full", os.O_WRONLY))
    if reader is not None:
        os.close(reader)
    done = subprocess.run([sys.executable, "-c", WRITER], stderr=writer, stdout=writer, timeout=240, check=False)
    os.close(writer)
    assert done.returncode == 7


def test_lost_lines_are_counted_and_reported_when_there_is_room_again():
    class Stream:
        def __init__(self):
            self.room, self.text = True, ""

        def write(self, text):
            if not self.room:
                raise OSError(errno.ENOSPC, "full")
            self.text += text

        def flush(self):
            pass

    stream = Stream()
    output = log_settings.Output(stream)
    output.write("one\n")
    stream.room = False
    output.write("two\n")
    output.write("three\n")
    stream.room = True
    output.write("four\n")
    output.write("five\n")
    assert stream.text == "one\n2 log lines could not be written\nfour\nfive\n"


HOSTILE = ["a\x1b[2Jb", "a\u2028b", "a\x85b", "a\x9bb", "a\u202eb", "a\ud800b", "a\rb", "a\x00b", 'a"b\\']


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_texts_stay_in_their_line(start, text):
    log, said = start()
    log.warning(text, object=text, several=[text], lines=f"{text}\n{text}")
    first, *lines = said().rstrip("\n").split("\n")
    assert LINE.fullmatch(first) or '"b' in first
    assert first.isprintable()
    assert len(lines) >= 3
    assert all(line.replace("\t", "").isprintable() for line in lines)


def test_commands_report_a_thing_once(start, capsys):
    start()
    log_settings.quiet()
    for _ in range(3):
        structlog.get_logger().warning("pods count as outside clients", family=6)
    structlog.get_logger().warning("pods count as outside clients", family=4)
    assert capsys.readouterr().err.splitlines() == [
        "Warning: pods count as outside clients family=6", "Warning: pods count as outside clients family=4",
    ]  # fmt: skip
