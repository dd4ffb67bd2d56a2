"""Mutations that keep the form: a tree of JSON or YAML is read, changed in some places and written again.

libFuzzer's own mutations of bytes would hardly ever get past a parser. In: bytes and a seed. Out: bytes.
"""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterator
from typing import Any

import yaml

from tests.support import hostile

DocumentPath = tuple[Any, ...]
FAMILIES: list[Any] = [
    hostile.service("web", "10.96.0.10"),
    hostile.endpoint_slice("web-1", "web", "10.244.3.5", "10.244.2.5"),
    hostile.node("node2"),
]
MOST_COPIES = 200


def tree_of(data: bytes) -> Any:
    """Read JSON or YAML, or begin anew."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        pass
    try:
        return yaml.safe_load(data)
    except (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None


def mutated(tree: Any, choose: random.Random) -> Any:
    """Return the tree with one to four changes."""
    root = [copy.deepcopy(tree)]
    for _ in range(choose.randint(1, 4)):
        path = choose.choice(list(_places(root)))
        choose.choice(CHANGES)(root, path, choose)
    return root[0]


def as_bytes(tree: Any, choose: random.Random, forms: tuple[str, ...]) -> bytes:
    """Write a tree in one of the forms."""
    form = choose.choice(forms)
    if form == "json":
        return json.dumps(tree).encode("utf-8", "replace")
    if form == "stream":
        items = tree if isinstance(tree, list) else [tree]
        return "\n".join(map(json.dumps, items)).encode("utf-8", "replace")
    items = tree if isinstance(tree, list) and form == "documents" else [tree]
    try:
        written = yaml.safe_dump_all(items, allow_unicode=choose.random() < 0.5)
    except (yaml.YAMLError, ValueError, RecursionError):
        return json.dumps(tree).encode("utf-8", "replace")
    return written.encode("utf-16" if form == "utf-16" else "utf-8", "replace")


def _places(tree: Any, path: DocumentPath = ()) -> Iterator[DocumentPath]:
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for name, value in items:
        yield (*path, name)
        yield from _places(value, (*path, name))


def _parent(root: Any, path: DocumentPath) -> Any:
    place = root
    for part in path[:-1]:
        place = place[part]
    return place


def _replace(root: Any, path: DocumentPath, choose: random.Random) -> None:
    _parent(root, path)[path[-1]] = copy.deepcopy(choose.choice(hostile.EVERYTHING))


def _remove(root: Any, path: DocumentPath, choose: random.Random) -> None:
    if len(path) > 1:
        del _parent(root, path)[path[-1]]


def _number(root: Any, path: DocumentPath, choose: random.Random) -> None:
    _parent(root, path)[path[-1]] = choose.choice([choose.randint(-1, 70000), str(choose.randint(0, 99999)) + "s"])


def _address(root: Any, path: DocumentPath, choose: random.Random) -> None:
    octets = [choose.choice([10, 96, 244, choose.randint(0, 255)]) for _ in range(4)]
    _parent(root, path)[path[-1]] = ".".join(map(str, octets)) + choose.choice(["", "", "/32", "/8"])


def _several(root: Any, path: DocumentPath, choose: random.Random) -> None:
    place = _parent(root, path)
    if isinstance(place, list) and place is not root:
        place.extend(copy.deepcopy(place[path[-1]]) for _ in range(choose.randint(1, MOST_COPIES)))


def _move(root: Any, path: DocumentPath, choose: random.Random) -> None:
    other = choose.choice(list(_places(root)))
    value = copy.deepcopy(_parent(root, other)[other[-1]])
    _parent(root, path)[path[-1]] = value


def _key(root: Any, path: DocumentPath, choose: random.Random) -> None:
    place = _parent(root, path)
    if isinstance(place, dict):
        place[choose.choice(hostile.INJECTIONS)] = place.pop(path[-1])


def _object(root: Any, path: DocumentPath, choose: random.Random) -> None:
    if isinstance(root[0], list):
        root[0].append(copy.deepcopy(choose.choice(FAMILIES)))


Mutation = Callable[[Any, DocumentPath, random.Random], None]
CHANGES: tuple[Mutation, ...] = (_replace, _replace, _remove, _number, _address, _several, _move, _key, _object)
FORMS = {
    "configuration": ("yaml", "json", "utf-16"),
    "decoding": ("json",),
    "kubeconfig": ("yaml", "json"),
    "manifests": ("json", "stream", "yaml", "documents", "utf-16"),
    "objects": ("json",),
}
BYTES_EVERY = 4
"""One mutation in so many is one of bytes."""


def custom(name: str, by_bytes: Callable[[bytes, int], bytes]) -> Callable[[bytes, int, int], bytes]:
    """Return the mutator of a target, as atheris calls it."""
    forms = FORMS.get(name)

    def mutate(data: bytes, most: int, seed: int) -> bytes:
        choose = random.Random(seed)
        tree = tree_of(data) if forms and choose.randrange(BYTES_EVERY) else None
        if not forms or tree is None:
            return by_bytes(data, most)
        try:
            return as_bytes(mutated(tree, choose), choose, forms)[:most]
        except (RecursionError, ValueError, TypeError):
            return by_bytes(data, most)

    return mutate
