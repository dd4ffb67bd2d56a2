"""Files, modules and tests that the documents for newcomers name exist."""

import re
from collections.abc import Iterator

import pytest

from tests.support import repository
from tests.support.repository import REPO

PAGES = [
    REPO / "CONTRIBUTING.md",
    *sorted((REPO / "docs").glob("internals-*.md")),
    *sorted((REPO / "docs/decisions").glob("*.md")),
    *(REPO / "docs" / name for name in ("design.md", "glossary.md", "release.md")),
]
QUOTED = re.compile(r"`([^`\n]+)`")
PATH = re.compile(r"[\w.\-]+(?:/[\w.\-]+)*(?:\.(?:py|nft|md|toml)|/)")
MODULE = re.compile(r"(?:plan|kube|kernel|serve|inspect|diagnosis|commands|config|probe)\.[a-z_]+")
TEST = re.compile(r"test_\w+")
PAGE = re.compile(r"\b(?:docs|deploy|nft|vagrant)/[\w\-/]+\.(?:md|nft|svg|sh)\b")
CODE = (".py", ".nft", ".sh", ".toml", ".yaml", ".json")


def exists(path: str) -> bool:
    return any((folder / path).exists() for folder in (REPO, REPO / "ipvsproxy", REPO / "docs"))


def is_there(name: str, tests: str) -> bool:
    """Whether something has the name, if it is a name of a file, a module or a test."""
    if PATH.fullmatch(name):
        return exists(name)
    if MODULE.fullmatch(name):
        return exists(f"{name.replace('.', '/')}.py") or is_defined(name)
    return not TEST.fullmatch(name) or f"def {name}(" in tests


def unknown(text: str, tests: str) -> Iterator[str]:
    """Names in a text that nothing has; `tests` is the text of all tests."""
    return (name for name in QUOTED.findall(text) if not is_there(name, tests))


def is_defined(name: str) -> bool:
    """Whether a package or a module of it defines what follows the dot, as `topology.choose` does."""
    package, _, inside = name.partition(".")
    texts = (file.read_text() for file in (REPO / "ipvsproxy" / package).glob("*.py"))
    return any(re.search(rf"^(?:def|class) {inside}\b", text, re.MULTILINE) for text in texts)


@pytest.fixture(scope="module")
def tests():
    return "".join(file.read_text() for file in sorted((REPO / "tests").rglob("test_*.py")))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPO)))
def test_what_a_page_names_exists(page, tests):
    assert not list(unknown(page.read_text(), tests))


def test_names_that_nothing_has_are_found(tests):
    text = "`plan/planner.py` `plan/gone.py` `plan.planner` `plan.gone` `nft/` `none/` `test_of_nothing` `--flag`"
    assert list(unknown(text, "")) == ["plan/gone.py", "plan.gone", "none/", "test_of_nothing"]


def test_pages_that_the_code_names_exist():
    mine = REPO / "tests/unit/docs"
    files = [file for file in repository.files() if file.suffix in CODE and not file.is_relative_to(mine)]
    named = {
        (str(file.relative_to(REPO)), page)
        for file in files
        for page in PAGE.findall(file.read_text(errors="replace"))
    }
    assert len(named) > 20
    assert not sorted((file, page) for file, page in named if not (REPO / page).exists())


def test_names_that_the_glossary_mentions_are_in_the_code():
    rows = re.findall(r"^\| .+ \| (.+) \| ?.*\|$", (REPO / "docs/glossary.md").read_text(), re.MULTILINE)
    code = "".join(
        file.read_text()
        for folder in ("ipvsproxy", "nft")
        for file in sorted((REPO / folder).rglob("*.*"))
        if file.suffix in CODE
    )
    words = {
        word
        for meaning in rows
        for name in QUOTED.findall(meaning)
        for word in name.split(".")
        if "/" not in name and name != "ipvsadm"
    }
    assert len(words) > 25
    assert not sorted(
        word
        for word in words
        if not re.search(rf"(?<![\w-]){re.escape(word)}(?![\w])", code)
        and not exists(f"plan/{word}.py")
        and not exists(f"{word}.py")
    )
