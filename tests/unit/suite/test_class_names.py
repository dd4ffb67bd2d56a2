"""A name of a class or type of the product has one meaning: it is defined once."""

import ast
from collections import defaultdict
from collections.abc import Iterator, Mapping

from tests.support import repository
from tests.support.repository import REPO

PRODUCT = ("ipvsproxy/", "nft/")


def types_of(text: str) -> Iterator[str]:
    """Classes at any depth, and what a module assigns to a name in CamelCase (aliases, type variables)."""
    tree = ast.parse(text)
    yield from (node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef))
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        yield from (name.id for name in targets if isinstance(name, ast.Name) and is_camel(name.id))


def is_camel(name: str) -> bool:
    return name[:1].isupper() and not name.isupper()


def defined_twice(texts: Mapping[str, str]) -> dict[str, list[str]]:
    """Names of types that more than one place defines, with the files."""
    places = defaultdict(list)
    for file, text in texts.items():
        for name in types_of(text):
            places[name].append(file)
    return {name: files for name, files in places.items() if len(files) > 1}


def test_no_type_of_the_product_shares_its_name():
    names = {str(file.relative_to(REPO)): file for file in repository.files() if file.suffix == ".py"}
    texts = {name: file.read_text() for name, file in names.items() if name.startswith(PRODUCT) and file.is_file()}
    assert len(texts) > 100
    assert not defined_twice(texts)


def test_classes_and_aliases_that_share_a_name_are_found():
    texts = {
        "a.py": "class Found: ...\nLIMIT = 1\nRow = dict[str, int]",
        "b.py": "class Row:\n    class Found: ...",
    }
    assert defined_twice(texts) == {"Found": ["a.py", "b.py"], "Row": ["a.py", "b.py"]}
    assert not defined_twice({"a.py": "LIMIT = 1", "b.py": "LIMIT = 2\nfrom a import Row"})
