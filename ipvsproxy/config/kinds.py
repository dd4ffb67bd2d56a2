"""Kinds of values that settings have: how each is read from a flag and from a file, and written back.

Durations are whole nanoseconds in here, as in Go, so that what is written is exactly what was read; numbers keep
the limits of the fields they go into. All readers raise BadValue with a reason that can follow the name of
the setting. Grammar: contract 1.1; what a field may hold in a file: contract 1.3 and 1.4.
"""

import re
import reprlib
from collections.abc import Callable, Iterable
from contextlib import suppress
from fractions import Fraction
from math import isfinite
from typing import Any, NamedTuple

NANOSECONDS = 10**9
UNITS = {"ns": 1, "us": 10**3, "µs": 10**3, "μs": 10**3, "ms": 10**6, "s": NANOSECONDS}
UNITS |= {"m": 60 * NANOSECONDS, "h": 3600 * NANOSECONDS}
LONGEST = 2**63 - 1
"""In nanoseconds: what Go's durations can hold."""
LONGEST_TEXT = 100
DURATION_PART = re.compile(r"(\d+\.?\d*|\.\d+)(ns|us|µs|μs|ms|s|m|h)")
QUANTITY = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(|[numkMGTPE]|[KMGTPE]i|[eE][+-]?\d+)")
OCTAL = re.compile(r"([-+]?)0([0-7_]*[0-7])")
shown = reprlib.Repr()
shown.maxstring = shown.maxother = shown.maxlong = 100
shown.maxlevel = 3
TRUE, FALSE = ("1", "t", "T", "true", "TRUE", "True"), ("0", "f", "F", "false", "FALSE", "False")


class BadValue(ValueError):
    """A text or value that a setting cannot have."""


def _shown(value: Any) -> str:
    """Return a value as it is shown to people: of a large one only the beginning."""
    return shown.repr(value)


class ValueKind(NamedTuple):
    """One kind of value.

    `read` takes the text of a flag, `decode` what a file has for a field, `encode` makes the latter. `bare` is the
    text of a flag without a value, None where it needs one. `join` combines a flag that is given again with
    what was given before; without it the last one counts.
    """

    name: str
    zero: Any
    read: Callable[[str], Any]
    decode: Callable[[Any], Any]
    encode: Callable[[Any], Any] = lambda value: value
    bare: str | None = None
    join: Callable[[Any, Any], Any] | None = None

    def show(self, value: Any) -> str:
        """Return a value as the text of a flag."""
        value = self.encode(value)
        if isinstance(value, bool):
            return str(value).lower()
        if isinstance(value, dict):
            return ",".join(f"{key}={self.show_item(item)}" for key, item in value.items())
        return ",".join(map(self.show_item, value)) if isinstance(value, list) else str(value)

    @staticmethod
    def show_item(item: Any) -> str:
        """Return one item of a list or map as text."""
        if isinstance(item, dict):
            return "=".join(map(str, item.values()))
        return str(item).lower() if isinstance(item, bool) else str(item)


def duration(text: str) -> int:
    """Read a Go duration such as 1h2m3.5s into nanoseconds."""
    sign, body = (-1, text[1:]) if text.startswith("-") else (1, text.removeprefix("+"))
    if body == "0":
        return 0
    if not body or len(body) > LONGEST_TEXT or DURATION_PART.sub("", body):
        raise BadValue(f"{text[:LONGEST_TEXT]!r} is not a duration such as 30s or 1m30s")
    size = int(sum(Fraction(number) * UNITS[unit] for number, unit in DURATION_PART.findall(body)))
    if size > LONGEST:
        raise BadValue(f"{text!r} is longer than 292 years")
    return sign * size


def format_duration(nanoseconds: int) -> str:
    """Write a duration as Go does: 0s, 500ms, 1m30s, 24h0m0s."""
    size, sign = abs(nanoseconds), "-" if nanoseconds < 0 else ""
    for unit in ("ns", "µs", "ms"):
        if 0 < size < 1000 * UNITS[unit] and size < NANOSECONDS:
            return f"{sign}{_decimal(size, UNITS[unit])}{unit}"
    hours, rest = divmod(size, UNITS["h"])
    minutes, rest = divmod(rest, UNITS["m"])
    head = f"{hours}h{minutes}m" if hours else f"{minutes}m" if minutes else ""
    return f"{sign}{head}{_decimal(rest, NANOSECONDS)}s"


def _decimal(size: int, unit: int) -> str:
    whole, part = divmod(size, unit)
    digits = f"{part:0{len(str(unit)) - 1}d}".rstrip("0") if part else ""
    return f"{whole}.{digits}" if digits else str(whole)


def _boolean(text: str) -> bool:
    if text not in TRUE + FALSE:
        raise BadValue(f"{text!r} is not a boolean")
    return text in TRUE


def _integer_text(text: str) -> int:
    """Read a whole number as Go does with base 0: 0x10, 0b1, 0o7, and 07 is octal."""
    octal = OCTAL.fullmatch(text)
    return int(octal[1] + octal[2], 8) if octal else int(text, 0)


def _integer(low: int, high: int) -> Callable[[Any], int]:
    def read(value: Any) -> int:
        try:
            number = _integer_text(value) if isinstance(value, str) else value
        except ValueError:
            raise BadValue(f"{_shown(value)} is not a whole number") from None
        if isinstance(number, float) and number.is_integer():
            number = int(number)
        if not isinstance(number, int) or isinstance(number, bool):
            raise BadValue(f"{_shown(value)} is not a whole number")
        if not low <= number <= high:
            raise BadValue(f"{value} is out of range")
        return number

    return read


def _number(value: Any) -> float:
    with suppress(TypeError, ValueError, OverflowError):
        number = float(value)
        if isfinite(number):
            return number
    raise BadValue(f"{_shown(value)} is not a number")


def choice(*names: str) -> "ValueKind":
    """Return the kind of a text that is one of few; the first is the usual one."""

    def read(value: Any) -> str:
        if value not in names:
            raise BadValue(f"{_shown(value)} is none of {', '.join(names)}")
        return str(value)

    return ValueKind("|".join(names), "", read, read)


def _quantity(value: Any) -> str:
    text = value.strip() if isinstance(value, str) else repr(value)
    found = QUANTITY.fullmatch(text)
    if found is None or isinstance(value, bool) or not isinstance(value, str | int | float):
        raise BadValue(f"{_shown(value)} is not a quantity such as 64Ki")
    return text if float(found[1]) else "0"


def _strictly(wanted: type, expected: str, read: Callable[[Any], Any] | None = None) -> Callable[[Any], Any]:
    """Return a decoder of one type: a file must not hold a number where a text belongs, or the reverse."""

    def decode(value: Any) -> Any:
        if not isinstance(value, wanted) or (wanted is not bool and isinstance(value, bool)):
            raise BadValue(f"{_shown(value)} is not {expected}")
        return read(value) if read else value

    return decode


def _number_only(read: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def decode(value: Any) -> Any:
        if isinstance(value, str | bool):
            raise BadValue(f"{_shown(value)} is not a number")
        return read(value)

    return decode


def _words(text: str) -> list[str]:
    return [part.strip() for part in text.split(",")] if text.strip() else []


def _strings(value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(item, str | None) for item in value):
        raise BadValue(f"{_shown(value)} is not a list of strings")
    return [item or "" for item in value]


def _pairs(text: str, read: Callable[[str], Any]) -> Iterable[tuple[str, Any]]:
    for part in _words(text):
        name, equals, value = part.partition("=")
        if not equals or not name.strip():
            raise BadValue(f"{part!r} has not the form NAME=VALUE")
        yield name.strip(), read(value.strip())


def _gates(value: Any) -> dict[str, bool]:
    if not isinstance(value, dict) or not all(isinstance(item, bool | None) for item in value.values()):
        raise BadValue(f"{_shown(value)} is not a map of names to booleans, such as {{A: true}}")
    return {str(name): bool(on) for name, on in value.items()}


def _texts(value: Any) -> dict[str, str]:
    """Read a map of names to texts; numbers and booleans become what YAML has for them."""
    if not isinstance(value, dict):
        raise BadValue(f"{_shown(value)} is not a map of names to values")
    found = {}
    for name, item in value.items():
        if not isinstance(name, str) or not isinstance(item, str | int):
            raise BadValue(f"{_shown(name)}: {_shown(item)} is neither text, nor a number, nor true or false")
        found[name] = str(item).lower() if isinstance(item, bool) else str(item)
    return found


def _assignments(text: str) -> dict[str, str]:
    """Read NAME=VALUE;NAME=VALUE: a value may have commas and equals signs."""
    found = {}
    for part in filter(None, map(str.strip, text.split(";"))):
        name, equals, value = part.partition("=")
        if not equals or not name.strip():
            raise BadValue(f"{_shown(part)} has not the form NAME=VALUE")
        found[name.strip()] = value.strip()
    return found


def _vmodule(value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, list):
        raise BadValue(f"{_shown(value)} is not a list")
    return [_vmodule_item(item if item is not None else {}) for item in value]


def _vmodule_item(item: Any) -> dict[str, Any]:
    """Read a pattern with its verbosity, 0 where there is none; unknown fields are passed over."""
    if not isinstance(item, dict):
        raise BadValue(f"{_shown(item)} has not the fields filePattern and verbosity")
    pattern, verbosity = item.get("filePattern"), item.get("verbosity")
    if not isinstance(pattern, str) or not pattern or "=" in pattern or "," in pattern:
        raise BadValue(f"filePattern {_shown(pattern)} is not a pattern of file names")
    return {"filePattern": pattern, "verbosity": UINT.decode(verbosity or 0)}


def _flush(value: Any) -> int:
    """Logging's own kind of duration, which once was a number of nanoseconds."""
    return duration(value) if isinstance(value, str) else UINT.decode(value)


_text = _strictly(str, "a string")
_int32 = _integer(-(2**31), 2**31 - 1)
_uint32 = _integer(0, 2**63 - 1)

STRING = ValueKind("string", "", str, _text)
BOOL = ValueKind("bool", False, _boolean, _strictly(bool, "a boolean"), bare="true")
VERSION = ValueKind("version", "false", str, _text, bare="true")
INT = ValueKind("int", 0, _int32, _number_only(_int32))
UINT = ValueKind("uint", 0, _uint32, _number_only(_uint32))
FLOAT = ValueKind("float", 0.0, _number, _number_only(_number), lambda n: int(n) if n.is_integer() else n)
DURATION = ValueKind(
    "duration", 0, duration, _strictly(str, "a duration such as 30s", duration), format_duration
)  # fmt: skip
FLUSH = DURATION._replace(decode=_flush)
QUANTITIES = ValueKind("quantity", "0", _quantity, _quantity)
LIST = ValueKind("list", [], _words, _strings, join=lambda old, new: old + new)
CIDRS = ValueKind(
    # One string, in which commas separate; an empty flag is one empty CIDR, and so an error, as in kube-proxy.
    "CIDR[,CIDR]", [], lambda text: [part.strip() for part in text.split(",")],
    _strictly(str, "a string", _words), ",".join,
)  # fmt: skip
GATES = ValueKind(
    "NAME=bool,...", {}, lambda text: dict(_pairs(text, _boolean)), _gates, join=lambda old, new: old | new
)  # fmt: skip
TEXTS = ValueKind(
    "NAME=VALUE;...", {}, _assignments, _texts, join=lambda old, new: old | new
)  # fmt: skip
VMODULE = ValueKind(
    "PATTERN=N,...", [],
    lambda text: [{"filePattern": name, "verbosity": level} for name, level in _pairs(text, _uint32)],
    _vmodule, join=lambda old, new: old + new,
)  # fmt: skip
