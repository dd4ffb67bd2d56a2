"""Set elements between the kernel's bytes and the words of the planner.

Keys are fields in packet order, each filled up to four bytes; numbers of the network are big-endian, names of
links are texts of 16 bytes. Intervals come in two ways: in sets with one field as an element where an interval
starts and one where it stops (not in it any more), in sets with several fields as one element with a first and a
last key.

The texts are those of `plan.rules`, so that what the kernel has can be compared with what is wanted.
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from typing import NamedTuple

from ipvsproxy.base.address import Cidr, format_ip, parse_ip
from ipvsproxy.plan.rules import LINKS, PROTOCOL_NAMES, QUIET, SENDERS
from ipvsproxy.plan.state import FrontendKey

ACCEPT, DROP, GOTO = 1, 0, -4
"""Codes of verdicts: NF_ACCEPT, NF_DROP, NFT_GOTO (include/uapi/linux/netfilter/nf_tables.h)."""
PROTOCOL_NUMBERS = {name: number for number, name in PROTOCOL_NAMES.items()}
PORT, PROTOCOL, NAME, IP4, IP6 = "port", "protocol", "name", "ip4", "ip6"
SIZES = {PORT: 2, PROTOCOL: 1, NAME: 16, IP4: 4, IP6: 16}
FRONTEND = {4: (IP4, PROTOCOL, PORT), 6: (IP6, PROTOCOL, PORT)}
ADDRESS = {4: IP4, 6: IP6}


class RawElement(NamedTuple):
    """An element as the kernel tells it.

    `end` is the last key of an interval, empty in other sets; `stops` marks the stop of one. A map has a `value`,
    or a verdict: `code` (None: none) and, where it leads to one, `chain`.
    """

    key: bytes
    end: bytes = b""
    stops: bool = False
    value: bytes = b""
    code: int | None = None
    chain: str = ""


class Shape(NamedTuple):
    """What the keys and values of a set consist of."""

    key: tuple[str, ...]
    value: tuple[str, ...] = ()
    interval: bool = False


def _shapes() -> Iterator[tuple[str, Shape]]:
    for number, address in ADDRESS.items():
        yield f"pod_cidrs{number}", Shape((address,), interval=True)
        yield f"vips{number}", Shape((address,))
        yield f"served{number}", Shape((address,))
        yield f"hairpin{number}", Shape((address, address))
        for name in ("frontends", "masquerade", "ranged", "inside_servers"):
            yield f"{name}{number}", Shape(FRONTEND[number])
        yield f"inside{number}", Shape(FRONTEND[number], (address, PORT))
        yield f"allowed{number}", Shape((*FRONTEND[number], address), interval=True)
    yield "pod_interfaces", Shape((NAME,), interval=True)
    yield "health_check_ports", Shape((PORT,))
    yield QUIET, Shape((IP4,))
    yield LINKS, Shape((NAME,))
    yield SENDERS, Shape((NAME,), (IP4,))


SHAPES: Mapping[str, Shape] = dict(_shapes())
"""Of every set and map of the ruleset (nft/ipvsproxy.nft, nft/quiet.nft), by its name."""

Field = bytes | int | str


def key(name: str, fields: Iterable[Field]) -> bytes:
    """Return the key of an element: addresses packed, ports and protocols as numbers, links by name."""
    return b"".join(
        _filled(_packed(field, kind)) if len(SHAPES[name].key) > 1 else _packed(field, kind)
        for field, kind in zip(fields, SHAPES[name].key, strict=True)
    )


def _packed(field: Field, kind: str) -> bytes:
    if isinstance(field, int):
        return field.to_bytes(SIZES[kind])
    return field.encode().ljust(SIZES[kind], b"\0") if isinstance(field, str) else field


def _filled(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def texts(name: str, elements: Iterable[RawElement]) -> dict[str, str]:
    """Return all elements of a set as text, with their values ('' in plain sets)."""
    shape = SHAPES[name]
    if shape.interval and len(shape.key) == 1:
        return dict.fromkeys(_ranges(shape.key[0], elements), "")
    return {text(name, element): value(name, element) for element in elements}


def text(name: str, element: RawElement) -> str:
    """Return the key of an element as nft writes it; an interval of its last field as a CIDR."""
    kinds = SHAPES[name].key
    first, last = _cut(element.key, kinds), _cut(element.end or element.key, kinds)
    words = [_word(field, kind) for field, kind in zip(first, kinds, strict=True)]
    if first[-1] != last[-1]:
        words[-1] = _range(first[-1], last[-1])
    return " . ".join(words)


def frontend_of(text: str) -> FrontendKey:
    """Return the frontend that an element of text is about: its first three fields."""
    address, protocol, port = text.split(" . ")[:3]
    return FrontendKey(parse_ip(address), PROTOCOL_NUMBERS[protocol], int(port))


def value(name: str, element: RawElement) -> str:
    """Return what a map says of an element: a verdict, or fields; '' in a plain set."""
    if element.code is not None:
        return {ACCEPT: "accept", DROP: "drop", GOTO: f"goto {element.chain}"}.get(element.code, str(element.code))
    kinds = SHAPES[name].value
    return " . ".join(_word(field, kind) for field, kind in zip(_cut(element.value, kinds), kinds, strict=True))


def _cut(data: bytes, kinds: tuple[str, ...]) -> list[bytes]:
    found = []
    for kind in kinds:
        size = SIZES[kind]
        found.append(data[:size])
        data = data[size + -size % 4 :]
    return found


def _word(data: bytes, kind: str) -> str:
    if kind in (IP4, IP6):
        return format_ip(data)
    if kind == NAME:
        return f'"{data.rstrip(bytes(1)).decode(errors="replace")}"'
    number = int.from_bytes(data)
    return PROTOCOL_NAMES.get(number, str(number)) if kind == PROTOCOL else str(number)


def _range(first: bytes, last: bytes) -> str:
    """Return an interval as a CIDR where it is one."""
    low, high = int.from_bytes(first), int.from_bytes(last)
    size = high - low + 1
    if size & (size - 1) or low % size:
        return f"{format_ip(first)}-{format_ip(last)}"
    return str(Cidr(first, len(first) * 8 - size.bit_length() + 1))


def _ranges(kind: str, elements: Iterable[RawElement]) -> Iterator[str]:
    """Yield the intervals of a set with one field; the last one may reach to the end of all keys."""
    starts: dict[bytes, bool] = {}
    for element in elements:
        # Where one interval stops and the next one starts, there are two elements with one key.
        starts[element.key] = starts.get(element.key, True) and element.stops
    marks = sorted(starts.items())
    for (first, stops), (after, _) in pairwise([*marks, (b"", True)]):
        if not stops:
            yield _name_range(first, after) if kind == NAME else _range(first, _before(after, len(first)))


def _before(data: bytes, size: int) -> bytes:
    """Return the key before the next one; before none at all, the last key there is."""
    return (int.from_bytes(data) - 1).to_bytes(size) if data else b"\xff" * size


def _name_range(first: bytes, after: bytes) -> str:
    """Return the name of a link, or `prefix*` for the interval of all names with a prefix."""
    prefix = first.rstrip(b"\0")
    exact = not after or int.from_bytes(after) - int.from_bytes(first) == 1
    return f'"{prefix.decode(errors="replace")}{"" if exact and len(prefix) < len(first) else "*"}"'
