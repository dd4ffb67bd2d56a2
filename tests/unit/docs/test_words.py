"""Words that docs/glossary.md replaces are in no code, help, message, document, or name of a test."""

import re

import pytest

from tests.support import repository
from tests.support.repository import REPO

ROW = re.compile(r"^\| (.+) \| (.+) \| ?(.*) ?\|$", re.MULTILINE)
REPLACED = re.compile(r'"([^"]+)"')
# Comments that go on in the next line: a phrase may be broken there.
BREAK = re.compile(r"\s+(?:#\s*)?")
NAME = re.compile(r"^\s*(?:def|class) (test_\w+|[A-Z]\w+)", re.MULTILINE)
PROSE = (".py", ".nft", ".md", ".sh", ".yaml", ".toml")
ELSEWHERE = ("tests", "docs/glossary.md", "docs/kube-proxy-behaviour.md", "docs/decisions", ".github")


def rows() -> list[tuple[str, str, str]]:
    """Terms with their meaning and what they are used instead of."""
    found = ROW.findall((REPO / "docs/glossary.md").read_text())
    return [row for row in found if set(row[0]) != {"-"} and row[0] != "term"]


def replaced() -> list[str]:
    return [word for _, _, instead in rows() for word in REPLACED.findall(instead)]


def pattern(word: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![\w-]){re.escape(word)}(?![\w-])", re.IGNORECASE)


@pytest.fixture(scope="module")
def texts() -> dict[str, str]:
    """What people read, each file as one line."""
    files = [file for file in repository.files() if file.suffix in PROSE and file.is_file()]
    names = {str(file.relative_to(REPO)): file for file in files}
    return {
        name: BREAK.sub(" ", file.read_text(errors="replace"))
        for name, file in names.items()
        if not name.startswith(ELSEWHERE)
    }


@pytest.mark.parametrize("word", replaced())
def test_a_replaced_word_is_left_nowhere(word, texts):
    used = sorted(name for name, text in texts.items() if pattern(word).search(text))
    assert not used, f"docs/glossary.md has another word for {word!r}"


@pytest.fixture(scope="module")
def names_of_tests() -> list[str]:
    """Names of tests and of classes beside them, as sentences."""
    texts = (file.read_text() for file in sorted((REPO / "tests").rglob("*.py")))
    return [name.replace("_", " ") for text in texts for name in NAME.findall(text)]


@pytest.mark.parametrize("word", replaced())
def test_a_replaced_word_is_in_no_name_of_a_test(word, names_of_tests):
    assert not [name for name in names_of_tests if pattern(word).search(name)]


def test_a_replaced_word_is_found_across_lines_and_not_within_others():
    text = BREAK.sub(" ", "# it is a made-up\n    # port, and the inside\nview")
    assert pattern("made-up").search(text)
    assert pattern("inside view").search(text)
    assert not pattern("mend").search("recommend, mend-all, _mend")


def test_the_glossary_is_complete_and_unique():
    terms = [term for term, _, _ in rows()]
    assert len(terms) > 40
    assert len(set(terms)) == len(terms)
    assert len(set(replaced())) == len(replaced()) > 20
