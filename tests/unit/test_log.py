import json
import re

import pytest
import structlog
from build import config

from ipvsproxy import log as log_settings
from ipvsproxy.config import LogFormat

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


def test_a_line_of_json(start):
    log, said = start(log_format=LogFormat.JSON)
    log.info("synced", services=3)
    found = json.loads(said())
    assert found.pop("timestamp").endswith("Z")
    assert found == {"event": "synced", "level": "info", "services": 3}


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
