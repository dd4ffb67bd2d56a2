"""The text of a manifest file as a list of Kubernetes objects.

In: the name and bytes of one file, YAML (many documents) or JSON, as `kubectl get -o yaml|json` prints it.
Out: `Item`s in the order of the file, with `List`, `ServiceList` and the like unfolded; each knows its document
number and place in its list. `Unreadable` with line and column when the file as a whole makes no sense.

YAML is built from libyaml's events: five times faster than PyYAML's own construction, and what could hurt is
refused on the way (aliases, because a few lines of them expand without bound; deep nesting; a key given twice).
Scalars follow what kubectl understands, except that timestamps stay text. This module never looks into objects.
"""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple, NoReturn

import msgspec
import yaml

MAX_DEPTH = 100
WORDS: dict[str, Any] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE", "yes", "Yes", "YES", "on", "On", "ON"), True),
    **dict.fromkeys(("false", "False", "FALSE", "no", "No", "NO", "off", "Off", "OFF"), False),
}
NUMBER_START = frozenset("0123456789+-.")
INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]{0,30})")
FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?")
TEXT_TAG = "tag:yaml.org,2002:str"

# The pure-Python loader understands the same, slower; libyaml is part of PyYAML's wheels.
LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class Unreadable(ValueError):
    """A file that cannot be taken apart; `line` and `column` count from 1, 0 is unknown."""

    def __init__(self, reason: str, line: int = 0, column: int = 0) -> None:
        super().__init__(reason)
        self.reason = reason
        self.line = line
        self.column = column


class Item(NamedTuple):
    """One object of a file. `place` counts within a list from 1, 0 is outside of one."""

    document: int
    place: int
    api_version: str
    kind: str
    body: Any


class _Envelope(msgspec.Struct, rename="camel"):
    """As much of an object as tells whether it is a list."""

    kind: str = ""
    api_version: str = ""
    items: list[msgspec.Raw] | None = None


def read_items(name: str, data: bytes) -> list[Item]:
    """Return the objects in a file.

    Raises Unreadable when it is neither YAML nor JSON.
    """
    try:
        if name.endswith(".json"):
            return _json_items(data)
        if data.lstrip().startswith(b"{"):
            # What kubectl printed as JSON may carry any name; JSON is read 20 times faster than YAML.
            try:
                return _json_items(data)
            except Unreadable:
                return _yaml_items(data)
        return _yaml_items(data)
    except RecursionError:
        raise Unreadable("nested too deeply") from None


def _json_items(data: bytes) -> list[Item]:
    data = data.removeprefix(b"\xef\xbb\xbf")
    try:
        outer = msgspec.json.decode(data, type=_Envelope)
    except msgspec.ValidationError as error:
        raise Unreadable(str(error)) from None
    except msgspec.DecodeError as error:
        raise _at_byte(data, str(error)) from None
    except UnicodeDecodeError as error:
        raise Unreadable(str(error)) from None
    if not outer.kind.endswith("List"):
        return [Item(1, 0, outer.api_version, outer.kind, msgspec.Raw(data))]
    return [_listed(1, place, outer, _head(raw), raw) for place, raw in enumerate(outer.items or (), 1)]


def _head(raw: msgspec.Raw) -> _Envelope:
    try:
        return msgspec.json.decode(raw, type=_Envelope)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return _Envelope()  # whoever decodes the whole object says what is wrong


def _listed(number: int, place: int, outer: _Envelope, head: _Envelope, body: Any) -> Item:
    """Make an item; what the API itself sends as a ServiceList has no kind in its items."""
    version = head.api_version or outer.api_version
    return Item(number, place, version, head.kind or outer.kind.removesuffix("List"), body)


def _at_byte(data: bytes, message: str) -> Unreadable:
    found = re.search(r" \(byte (\d+)\)$", message)
    at = int(found[1]) if found else len(data)
    reason = message[: found.start()] if found else message
    return Unreadable(reason, data.count(b"\n", 0, at) + 1, at - data.rfind(b"\n", 0, at))


def _yaml_items(data: bytes) -> list[Item]:
    try:
        return [item for number, tree in enumerate(_trees(data), 1) for item in _unfold(number, tree)]
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        reason = error.problem or error.context or "not YAML"
        raise Unreadable(reason, mark.line + 1 if mark else 0, mark.column + 1 if mark else 0) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise Unreadable(" ".join(str(error).split())) from None


def _unfold(number: int, tree: Any) -> Iterator[Item]:
    if tree is None:
        return  # nothing between two `---`
    outer = _tree_head(tree)
    if not outer.kind.endswith("List"):
        yield Item(number, 0, outer.api_version, outer.kind, tree)
        return
    items = tree.get("items") or ()
    if not isinstance(items, list | tuple):
        raise Unreadable(f"items of document {number} are not a list")
    for place, body in enumerate(items, 1):
        yield _listed(number, place, outer, _tree_head(body), body)


def _tree_head(tree: Any) -> _Envelope:
    fields = tree if isinstance(tree, dict) else {}
    kind, version = fields.get("kind"), fields.get("apiVersion")
    return _Envelope(kind if isinstance(kind, str) else "", version if isinstance(version, str) else "")


def _trees(data: bytes) -> Iterator[Any]:
    """Yield the documents of a YAML stream as dictionaries, lists and scalars."""
    events = iter(yaml.parse(data, Loader=LOADER))
    for event in events:
        if isinstance(event, yaml.DocumentStartEvent):
            yield _node(next(events), events, 0)


def _node(event: Any, events: Iterator[Any], depth: int) -> Any:
    if isinstance(event, yaml.ScalarEvent):
        return _scalar(event)
    if isinstance(event, yaml.AliasEvent):
        _refuse(event, f"alias *{event.anchor} is not supported")
    if depth == MAX_DEPTH:
        _refuse(event, "nested too deeply")
    if isinstance(event, yaml.MappingStartEvent):
        return _mapping(events, depth + 1)
    return _sequence(events, depth + 1)


def _sequence(events: Iterator[Any], depth: int) -> list[Any]:
    found = []
    for event in events:
        if isinstance(event, yaml.SequenceEndEvent):
            break
        found.append(_node(event, events, depth))
    return found


def _mapping(events: Iterator[Any], depth: int) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for event in events:
        if isinstance(event, yaml.MappingEndEvent):
            break
        if not isinstance(event, yaml.ScalarEvent):
            _refuse(event, "a key must be a scalar")
        key = _scalar(event)
        if key in found:
            _refuse(event, f"key {key!r} is given twice")
        found[key] = _node(next(events), events, depth)
    return found


def _refuse(event: Any, reason: str) -> NoReturn:
    raise Unreadable(reason, event.start_mark.line + 1, event.start_mark.column + 1)


def _scalar(event: Any) -> Any:
    text: str = event.value
    if not event.implicit[0]:
        if event.tag not in (None, TEXT_TAG):
            _refuse(event, f"tag {event.tag} is not supported")
        return text
    if text in WORDS:
        return WORDS[text]
    return _number(text) if text[0] in NUMBER_START else text


def _number(text: str) -> Any:
    """Return a number, or the text: dates, addresses, 007 and 12:30 (base 60, octal) are none."""
    if INTEGER.fullmatch(text):
        return int(text)
    if FLOAT.fullmatch(text):
        return float(text)
    return text
