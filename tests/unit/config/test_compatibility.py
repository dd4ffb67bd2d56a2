"""docs/compatibility.md says of every flag and field what the program does with it."""

import re
from pathlib import Path

from ipvsproxy.config.table import SETTINGS

PAGE = Path(__file__).parents[3] / "docs" / "compatibility.md"


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
