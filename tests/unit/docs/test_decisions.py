"""Decisions are numbered without gaps, complete, and listed."""

import pathlib
import re

FOLDER = pathlib.Path(__file__).resolve().parents[3] / "docs/decisions"
HEADINGS = ["Context", "Decision", "Consequences"]


def pages() -> list[pathlib.Path]:
    return sorted(page for page in FOLDER.glob("*.md") if page.name != "README.md")


def test_numbers_have_no_gaps_and_no_duplicates():
    assert [page.name[:4] for page in pages()] == [f"{number:04d}" for number in range(1, len(pages()) + 1)]


def test_each_decision_has_its_number_and_three_parts():
    for page in pages():
        text = page.read_text()
        assert re.match(rf"# {int(page.name[:4])}\. \S", text), page.name
        assert re.findall(r"^## (.+)$", text, re.MULTILINE) == HEADINGS, page.name
        assert all(part.strip() for part in re.split(r"^## .+$", text, flags=re.MULTILINE)), page.name


def test_the_index_lists_each_decision_with_its_title():
    rows = re.findall(
        r"^\| \[(\d{4})\]\((\S+\.md)\) \| (.+) \| \d+\.\d+\.\d+ \|$",
        (FOLDER / "README.md").read_text(),
        re.MULTILINE,
    )
    titles = [page.read_text().partition("\n")[0].partition(". ")[2] for page in pages()]
    assert rows == [(page.name[:4], page.name, title) for page, title in zip(pages(), titles, strict=True)]
