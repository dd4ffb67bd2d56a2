"""Files, modules and tests that the documents for newcomers name exist."""

import re
from collections.abc import Iterator

import pytest
from repository import REPO

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
    text = "`plan/wanted.py` `plan/gone.py` `plan.wanted` `plan.gone` `nft/` `none/` `test_of_nothing` `--flag`"
    assert list(unknown(text, "")) == ["plan/gone.py", "plan.gone", "none/", "test_of_nothing"]
