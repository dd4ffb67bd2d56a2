"""The documents of a YAML stream as dictionaries, lists and scalars.

YAML is built from libyaml's events: five times faster than PyYAML's own construction, and what could hurt is
refused on the way (deep nesting, a key given twice, aliases that expand to more than the text they stand in).
Scalars follow what kubectl understands, except that timestamps stay text.

A document that makes no sense affects no other: reading goes on at the next separator. Each error costs a copy of
the rest, so there are only so many.
"""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple, NoReturn

import yaml

from ipvsproxy.kube.text import Unreadable, unreadable_at

MAX_DEPTH = 100
MAX_BROKEN = 20
WORDS: dict[str, Any] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE", "yes", "Yes", "YES", "on", "On", "ON"), True),
    **dict.fromkeys(("false", "False", "FALSE", "no", "No", "NO", "off", "Off", "OFF"), False),
}
NUMBER_START = frozenset("0123456789+-.")
INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]{0,30})")
FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?")
TEXT_TAG = "tag:yaml.org,2002:str"
MERGE = "<<"
SEPARATOR = re.compile(rb"^---(?=[ \t\r\n]|\Z)", re.MULTILINE)
FORBIDDEN = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|\xc2[\x80-\x84\x86-\x9f]|\xef\xbf[\xbe\xbf]")
"""Characters that YAML does not allow (YAML 1.1, section 5.1), in UTF-8."""

# The pure-Python loader understands the same, slower; libyaml is part of PyYAML's wheels.
LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Flaw(NamedTuple):
    """Something that ends a document, and where."""

    at: int
    error: Unreadable


def documents(data: bytes) -> Iterator[Any]:
    """Yield each document of UTF-8 text, or an `Unreadable` in its place."""
    at = broken = 0
    while at < len(data):
        flaw = _bad_text(data, at)
        end = _beginning(data, at, flaw.at) if flaw else len(data)
        stretch = data[at:end]
        try:
            yield from _Builder(stretch).trees()
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            flaw = _flaw(
                data, at, stretch, mark.index if mark else 0, error.problem or error.context or "not YAML"
            )
        except _Refused as error:
            flaw = _flaw(data, at, stretch, error.index, error.reason)
        except yaml.YAMLError as error:
            flaw = _Flaw(at, unreadable_at(data, at, " ".join(str(error).split())))
        if flaw is None:
            return
        yield flaw.error
        broken += 1
        following = SEPARATOR.search(data, max(flaw.at, at + 1))
        if following is None:
            return
        at = following.start()
        if broken == MAX_BROKEN:
            yield unreadable_at(
                data, at, f"{broken} documents before this one make no sense; the rest is not read"
            )
            return


def _bad_text(data: bytes, at: int) -> _Flaw | None:
    """Return the first place that is no text."""
    found = FORBIDDEN.search(data, at)
    end = found.start() if found else len(data)
    try:
        memoryview(data)[at:end].tobytes().decode()
    except UnicodeDecodeError as error:
        place = at + error.start
        return _Flaw(place, unreadable_at(data, place, f"byte {data[place]:#04x} is no UTF-8"))
    if found is None:
        return None
    return _Flaw(end, unreadable_at(data, end, f"character {found[0].decode()!r} is not allowed in YAML"))


def _beginning(data: bytes, at: int, place: int) -> int:
    """Return where the document begins that holds a place."""
    begin = at
    for found in SEPARATOR.finditer(data, at, place):
        begin = found.start()
    return begin


def _flaw(data: bytes, at: int, stretch: bytes, index: int, reason: str) -> _Flaw:
    """Return the flaw at a character of a stretch that begins at a byte of the data."""
    place = at + len(stretch.decode()[:index].encode())
    return _Flaw(place, unreadable_at(data, place, reason))


class _Refused(Exception):
    def __init__(self, event: Any, reason: str) -> None:
        super().__init__(reason)
        self.index: int = event.start_mark.index
        self.reason = reason


def _refuse(event: Any, reason: str) -> NoReturn:
    raise _Refused(event, reason)


class _Builder:
    """Makes trees of events. Aliases share what they stand for, and count as much as it."""

    def __init__(self, data: bytes) -> None:
        self._events: Iterator[Any] = iter(yaml.parse(data, Loader=LOADER))
        self._most = len(data)
        self._nodes = 0
        self._anchors: dict[str, tuple[Any, int]] = {}

    def trees(self) -> Iterator[Any]:
        """Yield the documents. Raises MarkedYAMLError, _Refused."""
        for event in self._events:
            if isinstance(event, yaml.DocumentStartEvent):
                self._anchors = {}
                yield self._node(next(self._events), 0)

    def _node(self, event: Any, depth: int) -> Any:
        if isinstance(event, yaml.AliasEvent):
            return self._alias(event)
        before = self._nodes
        self._nodes += 1
        if isinstance(event, yaml.ScalarEvent):
            value = _scalar(event)
        elif depth == MAX_DEPTH:
            _refuse(event, "nested too deeply")
        elif isinstance(event, yaml.MappingStartEvent):
            value = self._mapping(depth + 1)
        else:
            value = self._sequence(depth + 1)
        if event.anchor is not None:
            self._anchors[event.anchor] = value, self._nodes - before
        return value

    def _alias(self, event: Any) -> Any:
        if event.anchor not in self._anchors:
            _refuse(event, f"alias *{event.anchor} has no anchor before it")
        value, nodes = self._anchors[event.anchor]
        self._nodes += nodes
        if self._nodes > self._most:
            _refuse(event, f"alias *{event.anchor}: aliases expand to more than the size of the file")
        return value

    def _sequence(self, depth: int) -> list[Any]:
        found = []
        for event in self._events:
            if isinstance(event, yaml.SequenceEndEvent):
                break
            found.append(self._node(event, depth))
        return found

    def _mapping(self, depth: int) -> dict[Any, Any]:
        found: dict[Any, Any] = {}
        merged: list[Any] = []
        for event in self._events:
            if isinstance(event, yaml.MappingEndEvent):
                break
            if not isinstance(event, yaml.ScalarEvent):
                _refuse(event, "a key must be a scalar")
            key = _scalar(event)
            if key in found:
                _refuse(event, f"key {key!r} is given twice")
            if key == MERGE and event.implicit[0]:
                merged += _merged(event, self._node(next(self._events), depth))
            else:
                found[key] = self._node(next(self._events), depth)
        for other in merged:
            for key, value in other.items():
                found.setdefault(key, value)
        return found


def _merged(event: Any, value: Any) -> list[dict[Any, Any]]:
    """Return the mappings that a merge key stands for."""
    others = value if isinstance(value, list) else [value]
    if not all(isinstance(other, dict) for other in others):
        _refuse(event, f"{MERGE} takes a mapping, or a list of them")
    return others


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
