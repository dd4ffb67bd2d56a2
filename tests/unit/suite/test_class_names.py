"""A name of a class or type has one meaning: it is defined once, in the product, its tests and their programs."""

import ast
from collections import defaultdict
from collections.abc import Iterator, Mapping

from tests.support import repository
from tests.support.repository import REPO

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)


def types_of(text: str) -> Iterator[str]:
    """Classes, and what a module assigns to a name in CamelCase (aliases, type variables).

    Not classes in functions: these are met there only.
    """
    tree = ast.parse(text)
    yield from classes(tree)
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        yield from (name.id for name in targets if isinstance(name, ast.Name) and is_camel(name.id))


def classes(tree: ast.AST) -> Iterator[str]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef):
            yield node.name
        if not isinstance(node, FUNCTIONS):
            yield from classes(node)


def is_camel(name: str) -> bool:
    return name[:1].isupper() and not name.isupper()


def defined_twice(texts: Mapping[str, str]) -> dict[str, list[str]]:
    """Names of types that more than one place defines, with the files."""
    places = defaultdict(list)
    for file, text in texts.items():
        for name in types_of(text):
            places[name].append(file)
    return {name: files for name, files in places.items() if len(files) > 1}


def test_no_type_shares_its_name():
    files = [file for file in repository.files() if file.suffix == ".py" and file.is_file()]
    texts = {str(file.relative_to(REPO)): file.read_text() for file in files}
    for folder in ("ipvsproxy/", "nft/", "tests/unit/", "tests/cluster/", "vagrant/"):
        assert any(name.startswith(folder) for name in texts)
    assert not defined_twice(texts)


def test_classes_and_aliases_that_share_a_name_are_found():
    texts = {
        "a.py": "class Found: ...\nLIMIT = 1\nRow = dict[str, int]\nif LIMIT:\n    class Deep: ...",
        "b.py": "class Row:\n    class Found: ...\nclass Deep: ...",
    }
    assert defined_twice(texts) == {"Found": ["a.py", "b.py"], "Row": ["a.py", "b.py"], "Deep": ["a.py", "b.py"]}
    assert not defined_twice({"a.py": "LIMIT = 1", "b.py": "LIMIT = 2\nfrom a import Row"})
    assert not defined_twice({"a.py": "class Row: ...", "b.py": "def test():\n    class Row: ..."})
