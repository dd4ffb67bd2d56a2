"""SECURITY.md: every promise names tests, and these exist."""

import ast
import functools
import pathlib
import re

import pytest

REPO = pathlib.Path(__file__).resolve().parents[3]
TEXT = (REPO / "SECURITY.md").read_text()
PROMISES = TEXT.partition("## Promises")[2].partition("## Not promised")[0]
NAMED = re.findall(r"`(tests/[\w/.-]+)::(\w+)`", PROMISES)
MENTIONED = re.findall(r"`(tests/[\w/.-]+)`", TEXT)


@functools.cache
def names_in(path):
    tree = ast.parse((REPO / path).read_text())
    return {found.name for found in ast.walk(tree) if isinstance(found, ast.FunctionDef)}


@pytest.mark.parametrize(("path", "name"), NAMED, ids=lambda text: text.rpartition("/")[2])
def test_a_test_that_is_named_exists(path, name):
    assert name in names_in(path)


@pytest.mark.parametrize("path", MENTIONED or [""])
def test_a_place_that_is_named_exists(path):
    assert (REPO / path).exists()


def test_every_promise_is_followed_by_tests():
    """A promise is a paragraph below a heading of the third level; its tests are the list behind it."""
    for section in PROMISES.split("\n### ")[1:]:
        title, _, body = section.partition("\n")
        blocks = [block for block in body.strip().split("\n\n") if block]
        promises, lists = blocks[::2], blocks[1::2]
        assert len(promises) == len(lists), title
        assert not any(block.startswith("* ") for block in promises), title
        assert all(re.fullmatch(r"(\* `tests/[^`]+::\w+`\n?)+", block) for block in lists), title
    assert len(NAMED) > 40
