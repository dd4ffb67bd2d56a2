"""docs/compatibility.md says of every flag and field what the program does with it."""

import re
from pathlib import Path

from ipvsproxy.config.table import SETTINGS

REPO = Path(__file__).parents[3]
PAGE = REPO / "docs" / "compatibility.md"


def documented():
    section = PAGE.read_text().partition("## Flags and fields\n")[2].partition("\n## ")[0]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line[:1] == "|"
    ]
    for flag, field, status, *_ in rows[2:]:
        yield flag.strip("`").removeprefix("--"), field.strip("`"), re.sub(r"\W", "", status)


def test_the_page_has_exactly_the_settings_of_the_program():
    page = list(documented())
    table = [(row.flag, row.field, row.status.value) for row in SETTINGS]
    assert sorted(page) == sorted(table)


def test_the_tests_it_names_are_there():
    named = set(re.findall(r"`(tests/[^`]*)`", PAGE.read_text()))
    assert len(named) > 10
    assert [path for path in named if not (REPO / path).exists()] == []


def test_every_table_reports_where_it_is_tested():
    for section in PAGE.read_text().split("\n## ")[1:]:
        assert "|---|" not in section or "`tests/" in section, section.partition("\n")[0]
