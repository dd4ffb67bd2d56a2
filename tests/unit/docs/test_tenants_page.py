"""docs/tenants.md: each attempt of a hostile tenant names tests, and these exist."""

import pathlib
import re

import pytest

REPO = pathlib.Path(__file__).resolve().parents[3]
ATTEMPTS = (REPO / "docs/tenants.md").read_text().partition("## What a hostile tenant can try")[2]
ROWS = [line for line in ATTEMPTS.partition("\n\nWhat tenants do not prevent")[0].splitlines() if "|" in line][2:]
NAMED = re.compile(r"`(test_\w+)`")


@pytest.fixture(scope="module")
def names():
    paths = (REPO / "tests").rglob("test_*.py")
    return {name for path in paths for name in re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE)}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split("|")[1].strip()[:40])
def test_each_attempt_names_tests_that_exist(row, names):
    found = NAMED.findall(row.split("|")[3])
    assert found
    assert not set(found) - names


def test_the_rows_are_found():
    assert len(ROWS) > 10
