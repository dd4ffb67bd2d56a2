"""What pages of docs/ have in indented blocks, so that a test can use what a reader is told to use."""

from __future__ import annotations

import re
import textwrap

from tests.support.api_object import ApiObject
from tests.support.deploy_tools import documents
from tests.support.repository import REPO

_BLOCK = re.compile(r"(?m)(?<=\n\n)(?: {4}.*\n|\n(?= {4}))+")


def blocks(page: str) -> list[str]:
    """The indented blocks of a page such as `docs/dsr.md`, without the indent."""
    return [textwrap.dedent(found).strip() for found in _BLOCK.findall((REPO / page).read_text())]


def manifests(page: str) -> list[list[ApiObject]]:
    """Those blocks of a page that are YAML of objects, or of parts of them."""
    return [documents(found) for found in blocks(page) if re.match(r"[A-Za-z]+:\s", found)]
