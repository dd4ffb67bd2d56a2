"""The values of a text of JSON, one after the other, as kubectl takes them.

Between two values there may be white space or a line `---`. Where a value makes no sense, reading goes on at the
next line that begins with a brace, as each object of `kubectl get -o json` and of JSON lines does.
"""

import json
import re
from collections.abc import Iterator
from typing import NoReturn

import msgspec

from ipvsproxy.kube.text import Unreadable, unreadable_at

MAX_BROKEN = 20
BLANK = re.compile(r"(?:[\s\x1e]|^---[ \t]*(?:#.*)?$)*", re.MULTILINE)
OBJECT = re.compile(r"^\{", re.MULTILINE)
LOGS = re.compile(r"==== START logs .*")
LOGS_END = re.compile(r"^==== END logs .*$", re.MULTILINE)
DUMP_WITH_LOGS = (
    "logs of `kubectl cluster-info dump` begin here: use its --output-directory, or save the objects alone with"
    " kubectl get services,endpointslices,nodes -A -o yaml"
)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no value of JSON")


# Numbers stay text: these values are never used, and long ones cost more than their length.
DECODER = json.JSONDecoder(parse_constant=_no_constant, parse_int=str, parse_float=str)


def documents(data: bytes) -> Iterator[msgspec.Raw | Unreadable]:
    """Yield each value of UTF-8 text, or an `Unreadable` in its place."""
    try:
        msgspec.json.decode(data, type=msgspec.Raw)
    except (msgspec.DecodeError, RecursionError):
        yield from _values(data)
    else:
        yield msgspec.Raw(data.strip())


def _values(data: bytes) -> Iterator[msgspec.Raw | Unreadable]:
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        yield unreadable_at(data, error.start, f"byte {data[error.start]:#04x} is no UTF-8")
        return
    broken, said_logs = 0, False
    at = _next(text, 0)
    while at < len(text) and broken < MAX_BROKEN:
        if LOGS.match(text, at):
            if not said_logs:
                yield _error(text, at, DUMP_WITH_LOGS)
            said_logs, at = True, _after(LOGS_END, text, at)
            continue
        value, at = _value(text, at)
        broken += isinstance(value, Unreadable)
        yield value
    if at < len(text):
        yield _error(text, at, f"{broken} values before this one make no sense; the rest is not read")


def _value(text: str, at: int) -> tuple[msgspec.Raw | Unreadable, int]:
    """Return the value that begins here, and where the next one may."""
    try:
        _, end = DECODER.raw_decode(text, at)
    except RecursionError:
        # Not looked at again and again from within: each time it would be read to the same depth.
        return _error(text, at, "nested too deeply; what follows is not read"), len(text)
    except json.JSONDecodeError as error:
        following = OBJECT.search(text, max(error.pos, at + 1))
        return _malformed(text, error.pos, error.msg), following.start() if following else len(text)
    except ValueError as error:
        following = OBJECT.search(text, at + 1)
        return _malformed(text, at, str(error)), following.start() if following else len(text)
    return msgspec.Raw(text[at:end].encode()), _next(text, end)


def _malformed(text: str, at: int, reason: str) -> Unreadable:
    return _error(text, at, f"JSON is malformed: {reason}")


def _after(pattern: re.Pattern[str], text: str, at: int) -> int:
    found = pattern.search(text, at)
    return _next(text, found.end()) if found else len(text)


def _next(text: str, at: int) -> int:
    """Return where the next value begins."""
    found = BLANK.match(text, at)
    return found.end() if found else at


def _error(text: str, at: int, reason: str) -> Unreadable:
    return Unreadable(reason, text.count("\n", 0, at) + 1, at - text.rfind("\n", 0, at))
