"""docs/annotations.md is what the table of annotations says, and its examples can be used."""

import pytest
import yaml

from ipvsproxy.config import annotations
from ipvsproxy.config.annotations import BY_KEY, TABLE
from tests.support.annotations_page import PATH, page
from tests.support.repository import REPO


def test_the_page_is_made_from_the_table():
    assert PATH.read_text() == page(), "python -m tests.support.annotations_page"


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
def test_the_example_of_an_annotation_can_be_used(row):
    complaints: list[str] = []
    for kind in row.objects:
        found = annotations.read(kind, {row.key: yaml.safe_load(row.example)}, complaints)
        assert found.keys() == {row.field}
    assert not complaints


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
def test_compatibility_names_every_annotation(row):
    assert f"`{row.key}`" in (REPO / "docs" / "compatibility.md").read_text()


def test_names_are_unique():
    assert sum(map(len, BY_KEY.values())) == sum(len(row.objects) for row in TABLE)
