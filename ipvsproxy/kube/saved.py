"""Saved objects, read once: files, folders and standard input into `kube.once.Objects`.

What people have is read: `kubectl get -o yaml|json`, folders of `kubectl cluster-info dump --output-directory`,
must-gather trees, support bundles. What cannot be read affects nothing else and is named in `refused`. Where
nothing can be used, that is an error that states what was found.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, NamedTuple

from ipvsproxy.base.errors import plain
from ipvsproxy.exchange.inbox import ALWAYS, Kind
from ipvsproxy.kube.decoded import InvalidObject, first_few
from ipvsproxy.kube.documents import FileItem, read
from ipvsproxy.kube.hints import NOTHING, what_is_there
from ipvsproxy.kube.manifest_file import MAX_BYTES, MOST_NAMELESS, endpoints_key, kind_and_group, kind_of
from ipvsproxy.kube.objects import Objects, Unavailable
from ipvsproxy.kube.text import Unreadable
from ipvsproxy.kube.tree import look

STANDARD_INPUT = "-"


def read_folder(folder: Path, kinds: Iterable[Kind] = ALWAYS) -> Objects:
    """Read a folder of manifests. Raises Unavailable."""
    found = Objects(f"the folder {folder}", kinds)
    _add_folder(found, folder, "")
    _finish(found)
    return found


def read_saved(names: Iterable[str], stdin: IO[bytes], kinds: Iterable[Kind] = ALWAYS) -> Objects:
    """Read files, folders and, for `-`, standard input. Raises Unavailable."""
    found = Objects("saved objects", kinds)
    for name in names:
        if name == STANDARD_INPUT:
            _add_stream(found, stdin)
        elif Path(name).is_dir():
            _add_folder(found, Path(name), f"{name.rstrip('/')}/")
        else:
            _add_named(found, name)
    _finish(found)
    return found


def _finish(found: Objects) -> None:
    """Say what is missing as a whole. Raises Unavailable where nothing can be used."""
    found.note_lacks()
    if not any(found.items.values()):
        raise Unavailable("; ".join(first_few(found.refused)))


def _add_folder(found: Objects, folder: Path, prefix: str) -> None:
    before = _state(found)
    try:
        tree = look(folder)
    except OSError as error:
        raise Unavailable(plain(error)) from None
    found.refused += [f"{prefix}{name}: {reason}" for name, reason in tree.problems.items()]
    for name, path in sorted(tree.files.items()):
        if path.is_file():
            _add_file(found, f"{prefix}{name}", path)
        else:  # opening a pipe would hang
            found.refused.append(f"{prefix}{name}: not a regular file")
    _note_nothing(found, str(folder), before, tree.others)


def _add_named(found: Objects, name: str) -> None:
    before = _state(found)
    _add_file(found, name, Path(name))
    _note_nothing(found, name, before, ())


def _add_stream(found: Objects, stdin: IO[bytes]) -> None:
    before = _state(found)
    _add_bytes(found, "<stdin>", stdin.read(MAX_BYTES + 1))
    _note_nothing(found, "<stdin>", before, ())


class _ReadState(NamedTuple):
    """How far reading has come."""

    seen: int
    refused: int
    unread: Counter[str]


def _state(found: Objects) -> _ReadState:
    return _ReadState(found.seen, len(found.refused), found.unread.copy())


def _note_nothing(found: Objects, name: str, before: _ReadState, others: Sequence[str]) -> None:
    """Describe what is there if no object came of a file or folder and no complaint either."""
    if (found.seen, len(found.refused)) == before[:2]:
        there = what_is_there(found.unread - before.unread, others)
        found.refused.append(f"{name}: {NOTHING}: {there}")


def _add_file(found: Objects, name: str, path: Path) -> None:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        found.refused.append(f"{name}: {plain(error)}")
    else:
        _add_bytes(found, name, data)


def _add_bytes(found: Objects, name: str, data: bytes) -> None:
    if len(data) > MAX_BYTES:
        found.refused.append(f"{name}: more than {MAX_BYTES} bytes")
        return
    try:
        contents = read(name, data)
    except Unreadable as error:
        place = f":{error.line}:{error.column}" if error.line else ""
        found.refused.append(f"{name}{place}: {error.reason}")
        return
    nameless: list[str] = []
    for item in contents.items:
        _add(found, name, item, nameless)
    found.refused += nameless[:MOST_NAMELESS]
    if len(nameless) > MOST_NAMELESS:
        found.refused.append(f"{name}: and {len(nameless) - MOST_NAMELESS} more objects without a kind")
    for document, broken in contents.broken:
        found.refused.append(f"{name}:{broken.line}:{broken.column}: document {document}: {broken.reason}")


def _add(found: Objects, name: str, item: FileItem, nameless: list[str]) -> None:
    try:
        kind = kind_of(item, found.kinds)
    except InvalidObject as error:
        place = f", item {item.place}" if item.place else ""
        nameless.append(f"{name}: document {item.document}{place}: {error.field}: {error.reason}")
        return
    if kind is not None:
        found.add(kind, item.body, name)
        return
    found.unread[kind_and_group(item)] += 1
    if key := endpoints_key(item):
        found.endpoints.add(key)
