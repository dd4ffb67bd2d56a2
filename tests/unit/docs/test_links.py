"""Relative links of the documents lead to files and headings that exist."""

import pathlib
import re
from collections.abc import Iterator

import pytest

from tests.support import repository
from tests.support.repository import REPO

LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
CODE = re.compile(r"^```.*?^```|`[^`\n]*`", re.DOTALL | re.MULTILINE)
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
FENCED = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)


def documents() -> list[pathlib.Path]:
    return [file for file in repository.files() if file.suffix == ".md"]


def anchor(heading: str) -> str:
    """The name that GitHub gives a heading."""
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
    return re.sub(r"[^\w\- ]", "", text).strip().replace(" ", "-")


def anchors(document: pathlib.Path) -> set[str]:
    found: set[str] = set()
    for heading in HEADING.findall(FENCED.sub("", document.read_text())):
        name, again = anchor(heading), 0
        while (unique := f"{name}-{again}" if again else name) in found:
            again += 1
        found.add(unique)
    return found


def broken(document: pathlib.Path) -> Iterator[str]:
    for target in LINK.findall(CODE.sub("", document.read_text())):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, fragment = target.partition("#")
        file = (document.parent / path).resolve() if path else document
        if not file.exists() or not file.is_relative_to(REPO):
            yield f"{target}: no such file"
        elif fragment and fragment not in anchors(file):
            yield f"{target}: no such heading"


@pytest.mark.parametrize("document", documents(), ids=lambda document: str(document.relative_to(REPO)))
def test_links_of_a_document_lead_somewhere(document):
    assert not list(broken(document))


def test_what_leads_nowhere_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(f"{__name__}.REPO", tmp_path)
    document = tmp_path / "page.md"
    document.write_text(
        "# A page, with `code`\n[a](#a-page-with-code) [b](#other) [c](missing.md) `[d](x.md)` [e](https://example.org)\n"
        "```\n[f](y.md)\n```\n[g](../outside.md)\n"
    )
    assert list(broken(document)) == [
        "#other: no such heading", "missing.md: no such file", "../outside.md: no such file",
    ]  # fmt: skip
