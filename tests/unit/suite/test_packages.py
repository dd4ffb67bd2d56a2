"""The tests are packages: they import each other by full names, and no test imports another."""

import ast
import pathlib
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator

import pytest

from tests.support.repository import REPO

FILES = sorted(path.relative_to(REPO) for path in (REPO / "tests").rglob("*.py"))
# The second one lists what the image has on its path.
MENTION_THE_SEARCH_PATH = {"tests/unit/suite/test_packages.py", "tests/lab/in_image.py"}
SEARCH_PATH = re.compile(
    r"\bsys\.path\b|\bfrom sys import .*\bpath\b|\bsys, ['\"]path['\"]|\baddsitedir\b|\bPYTHONPATH\b"
)
IS_A_TEST = re.compile(r"tests\.(.*\.)?(test_\w+|conftest)(\.|$)")


def imported(tree: ast.AST) -> Iterator[str]:
    """Yield the full names of imported modules, and of what is imported from them, which may be modules."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or "")
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def wrong_imports(text: str) -> list[str]:
    """Return the imports of tests, and those that depend on where a file is."""
    return [name for name in imported(ast.parse(text)) if name.startswith(".") or IS_A_TEST.match(name)]


IN_THE_IMAGE = "tests.lab.in_image"  # a program that runs when it is imported
# What is not installed everywhere may be missing, and nothing else.
IMPORT = """
import importlib, sys
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name not in ("matplotlib", "atheris"):
            raise
"""


@pytest.mark.parametrize("path", FILES, ids=str)
def test_a_file_imports_by_full_names_and_no_test(path: pathlib.Path):
    assert wrong_imports((REPO / path).read_text()) == []


def test_every_module_can_be_imported_also_where_its_tests_cannot_run():
    names = {".".join(path.with_suffix("").parts) for path in FILES} - {IN_THE_IMAGE}
    argv = [sys.executable, "-c", IMPORT, *sorted(names)]
    done = subprocess.run(argv, cwd=REPO, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_no_file_changes_where_modules_are_looked_for():
    found = {str(path) for path in FILES if SEARCH_PATH.search((REPO / path).read_text())}
    assert found == MENTION_THE_SEARCH_PATH


def test_pytest_looks_for_modules_in_the_root_alone():
    settings = tomllib.loads((REPO / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
    assert settings["pythonpath"] == ["."]


@pytest.mark.parametrize(
    "line",
    [
        "sys.path.insert(0, 'here')",
        "sys.path[:0] = ['here']",
        "from sys import argv, path",
        "monkeypatch.setattr(sys, 'path', ['here'])",
        "site.addsitedir('here')",
        "env = {'PYTHONPATH': 'here'}",
    ],
)
def test_a_change_of_the_search_path_is_found(line: str):
    assert SEARCH_PATH.search(line)


@pytest.mark.parametrize(
    "line",
    [
        "from tests.integration.test_traffic import eventually",
        "from tests.integration import test_traffic",
        "import tests.integration.test_traffic",
        "from tests.unit.conftest import something",
        "from tests import conftest",
        "from . import something",
        "from .lab import Lab",
    ],
)
def test_an_import_of_a_test_is_found(line: str):
    assert wrong_imports(line)


def test_an_import_of_a_helper_is_fine():
    assert not wrong_imports("import json\nfrom tests.lab.lab import Lab\nfrom tests.lab import netns")
