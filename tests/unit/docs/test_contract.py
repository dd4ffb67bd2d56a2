"""Every "contract N" in the repository names a section of docs/kube-proxy-behaviour.md."""

import re

import pytest

from tests.support import repository
from tests.support.repository import REPO

BEHAVIOUR = REPO / "docs/kube-proxy-behaviour.md"
NUMBER = r"\d+(?:\.\d+)*"
REFERENCE = re.compile(rf"[Cc]ontract (?:sections? )?({NUMBER}(?:(?:, | and | to ){NUMBER})*)")
MORE = re.compile(rf"[Cc]ontract {NUMBER}, ([PE]-?\d+)\b")
SECTION = re.compile(rf"^(?:#+ |\*\*)({NUMBER})\.? ", re.MULTILINE)
KINDS = (".py", ".nft", ".md", ".json", ".sh", ".toml")


def plain(text: str) -> str:
    """The text as one line, without the signs of comments."""
    return re.sub(r"\s+(?:#\s+)?", " ", text)


def references(text: str) -> set[str]:
    """The sections, rows (E-9) and points (P3) that a text names."""
    text = plain(text)
    numbers = {number for found in REFERENCE.findall(text) for number in re.findall(NUMBER, found)}
    return numbers | set(MORE.findall(text))


def named() -> dict[str, set[str]]:
    files = [file for file in repository.files() if file.suffix in KINDS]
    texts = {str(file.relative_to(REPO)): file.read_text(errors="replace") for file in files}
    return {name: found for name, text in texts.items() if (found := references(text))}


def headings() -> set[str]:
    text = BEHAVIOUR.read_text()
    rows = set(re.findall(r"^\| (E-\d+) \|", text, re.MULTILINE)) | set(
        re.findall(r"^\* (P\d+) ", text, re.MULTILINE)
    )
    return rows | {number.rstrip(".") for number in SECTION.findall(text)}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("(contract 4.1, P3).", {"4.1", "P3"}),
        ("contract 4.3, E-9", {"4.3", "E-9"}),
        ("Rules: contract 3.1, 4.3, 4.4, 4.9 to 4.12.", {"3.1", "4.3", "4.4", "4.9", "4.12"}),
        ("contract sections 2 and 3.2", {"2", "3.2"}),
        ("as there (contract\n# 4.10.2)", {"4.10.2"}),
        ("in contract or tort", set()),
    ],
)
def test_references_are_found_in_every_form(text, expected):
    assert references(text) == expected


def test_every_section_that_is_named_exists():
    there, unknown = headings(), {}
    for name, sections in named().items():
        if missing := sections - there:
            unknown[name] = sorted(missing)
    assert not unknown, f"docs/kube-proxy-behaviour.md has no such sections: {unknown}"


def test_the_code_names_the_specification():
    """If the pattern no longer matched, nothing would be checked."""
    assert sum(map(len, named().values())) > 70
    assert {"1.1", "4.10.2", "9.3", "E-40", "P8"} <= headings()
