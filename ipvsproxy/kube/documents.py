"""The text of a manifest file as a list of Kubernetes objects.

In: the name and bytes of one file, YAML (many documents) or JSON (one value after the other), as `kubectl get
-o yaml|json` prints it, in UTF-8 or UTF-16.
Out: `FileItem`s in the order of the file, with `List`, `ServiceList`, bare lists and lists in lists unfolded; each
knows its document number and place in its list. What makes no sense is `Broken`, document by document;
`Unreadable` with line and column when nothing in the file does. This module never looks into objects.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, NamedTuple

import msgspec

from ipvsproxy.kube import json_stream, yaml_stream
from ipvsproxy.kube.text import Unreadable, utf8

LEAST_BYTES, FEW_ITEMS = 32, 1000
"""An object has more bytes than that. Smaller items would cost many times their size, so only a few are read."""
MAX_LISTS = 5
"""Lists within lists. Each level costs another look at the text."""


class FileItem(NamedTuple):
    """One object of a file. `place` counts within the lists of a document from 1, 0 is outside of one."""

    document: int
    place: int
    api_version: str
    kind: str
    body: Any


class Broken(NamedTuple):
    """A document that cannot be taken apart."""

    document: int
    error: Unreadable


class Contents(NamedTuple):
    """What a file holds."""

    items: list[FileItem]
    broken: list[Broken]


class _Head(NamedTuple):
    """As much of a body as tells whether it is a list. `items` is None where there are none."""

    kind: str = ""
    api_version: str = ""
    items: Any = None


class _Envelope(msgspec.Struct, rename="camel"):
    kind: Any = ""
    api_version: Any = ""
    items: msgspec.Raw = msgspec.Raw(b"null")


def read(name: str, data: bytes) -> Contents:
    """Return the objects in a file.

    Raises Unreadable when no document in it makes sense.
    """
    text = utf8(data)
    found = _as_json(name, text) if text.lstrip()[:1] in (b"{", b"[") else _taken(yaml_stream.documents, text)
    if found.broken and not found.items:
        raise found.broken[0].error
    return found


def _as_json(name: str, text: bytes) -> Contents:
    """Read what looks like JSON: 20 times faster than YAML, which it may be all the same under another name."""
    found = _taken(json_stream.documents, text)
    if found.broken and not name.casefold().endswith(".json"):
        as_yaml = _taken(yaml_stream.documents, text)
        if not (found.items and as_yaml.broken):
            return as_yaml
    return found


def _taken(documents: Callable[[bytes], Iterable[Any]], text: bytes) -> Contents:
    found = Contents([], [])
    most = len(text) // LEAST_BYTES + FEW_ITEMS
    for number, body in enumerate(documents(text), 1):
        try:
            if isinstance(body, Unreadable):
                raise body
            found.items.extend(islice(_unfolded(number, body), most - len(found.items) + 1))
        except Unreadable as error:
            found.broken.append(Broken(number, error))
        if len(found.items) > most:
            raise Unreadable(f"more than {most} items in {len(text)} bytes: these are no Kubernetes objects")
    return found


def _unfolded(number: int, body: Any) -> Iterator[FileItem]:
    """Yield the objects of a document. Raises Unreadable when a list in it is none."""
    if body is None:
        return  # nothing between two `---`
    head = _head(body)
    if head.items is None:
        yield FileItem(number, 0, head.api_version, head.kind, body)
        return
    for place, found in enumerate(_flat(number, head, 0), 1):
        yield FileItem(number, place, *found)


def _flat(number: int, outer: _Head, depth: int) -> Iterator[tuple[str, str, Any]]:
    if depth == MAX_LISTS:
        raise Unreadable(f"lists of document {number} are nested too deeply")
    for body in _list(number, outer.items):
        head = _head(body)
        if head.items is not None:
            yield from _flat(number, head, depth + 1)
        else:
            # What the API itself sends as a ServiceList has no kind in its items.
            yield head.api_version or outer.api_version, head.kind or outer.kind.removesuffix("List"), body


def _list(number: int, items: Any) -> list[Any] | tuple[Any, ...]:
    try:
        found = (
            msgspec.json.decode(items, type=list[msgspec.Raw] | None) if isinstance(items, msgspec.Raw) else items
        )
    except msgspec.DecodeError:
        found = items
    if found and not isinstance(found, list | tuple):
        raise Unreadable(f"items of document {number} are not a list")
    return found or ()


def _head(body: Any) -> _Head:
    return _json_head(body) if isinstance(body, msgspec.Raw) else _tree_head(body)


def _json_head(body: msgspec.Raw) -> _Head:
    if bytes(memoryview(body)[:64]).lstrip()[:1] == b"[":
        return _Head(items=body)
    try:
        found = msgspec.json.decode(body, type=_Envelope)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _Head()  # the decoder of the whole object reports what is wrong
    return _of(found.kind, found.api_version, found.items)


def _tree_head(tree: Any) -> _Head:
    if isinstance(tree, list):
        return _Head(items=tree)
    fields = tree if isinstance(tree, dict) else {}
    return _of(fields.get("kind"), fields.get("apiVersion"), fields.get("items") or ())


def _of(kind: Any, version: Any, items: Any) -> _Head:
    kind = kind if isinstance(kind, str) else ""
    return _Head(kind, version if isinstance(version, str) else "", items if kind.endswith("List") else None)
