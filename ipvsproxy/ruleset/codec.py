"""Elements as the text that nft reads and as the bytes that the kernel has, and back from bytes.

Keys are fields in packet order, each filled up to four bytes; numbers of the network are big-endian, names of
links are texts of 16 bytes, groups of sources numbers of the host's byte order. Intervals come in two ways: in
sets with one field as an element where an interval starts and one where it stops (not in it any more), in sets
with several fields as one element with a first and a last key.
"""

import struct
from collections.abc import Iterable, Iterator
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple, cast

from ipvsproxy.base.address import Cidr, format_ip
from ipvsproxy.base.frontend import PROTOCOL_NAMES, FrontendKey
from ipvsproxy.ruleset.elements import Element, ElementKey, ElementOwner, Interval, PortRange, Rest, Value
from ipvsproxy.ruleset.schema import OF_GROUPS, Field, NumberForm, OwnerKind, SetSchema

NF_ACCEPT, NF_DROP, NFT_GOTO = 1, 0, -4
"""Codes of verdicts (include/uapi/linux/netfilter.h, netfilter/nf_tables.h)."""
FRONTEND_TAIL, PORT_VALUE = struct.Struct(">B3xH2x"), struct.Struct(">H2x")
"""Protocol and port, or a port, as fields of a key or value of several, filled up to four bytes each."""
VERDICT_CODES = {"accept": NF_ACCEPT, "drop": NF_DROP, "goto": NFT_GOTO}
VERDICT_WORDS = {code: word for word, code in VERDICT_CODES.items()}
PACKET_FAMILIES = {4: "ip", 6: "ip6"}
"""What nft calls the headers of a family."""


class RawElement(NamedTuple):
    """An element as the kernel has it.

    `end` is the last key of an interval, empty in other sets; `stops` marks the stop of one. A map has a `value`,
    or a verdict: `code` (None: none) and, where it leads to one, `chain`.
    """

    key: bytes
    end: bytes = b""
    stops: bool = False
    value: bytes = b""
    code: int | None = None
    chain: str = ""


# Text


def texts(elements: Iterable[Element]) -> Iterator[tuple[str, str, str]]:
    """Yield elements as texts: set, key and value ('' in plain sets). Elements of one owner stand together."""
    last: ElementOwner = None
    head = ""
    for slot, value in elements:
        owner = slot.owner
        if owner is not last:
            last, head = owner, "" if owner is None else owner_text(owner)
        key = head if slot.rest is None else _with_rest(head, slot)
        yield slot.set.name, key, value if isinstance(value, str) else value_text(value)


def _with_rest(head: str, slot: ElementKey) -> str:
    """Return the key of an element whose owner's fields are `head`; a range stands in place of the port."""
    last_field = rest_text(slot.rest, slot.set.key[-1])
    if slot.owner is None:
        return last_field
    before = head.rpartition(" . ")[0] if isinstance(slot.rest, PortRange) else head
    return f"{before} . {last_field}"


def key_text(slot: ElementKey) -> str:
    """Return the key of an element."""
    ((_, key, _),) = texts([(slot, "")])
    return key


def element_text(slot: ElementKey) -> str:
    """Return an element as people are shown it: `set { key }`."""
    return f"{slot.set.name} {{ {key_text(slot)} }}"


def owner_text(owner: FrontendKey | bytes) -> str:
    """Return the fields of a key that name a frontend or an address."""
    if isinstance(owner, bytes):
        return format_ip(owner)
    protocol = owner.protocol
    return f"{format_ip(owner.address)} . {PROTOCOL_NAMES.get(protocol, protocol)} . {owner.port}"


def value_text(value: Value) -> str:
    """Return what a map has for an element."""
    if isinstance(value, str):
        return str(value)
    if isinstance(value, int):
        return _number_text(value, OF_GROUPS)
    return format_ip(value) if isinstance(value, bytes) else f"{format_ip(value.address)} . {value.port}"


def rest_text(rest: Rest, field: Field) -> str:
    """Return the field behind the owner's: single addresses of ranges go without a prefix, as nft prints them."""
    if isinstance(rest, Cidr):
        return format_ip(rest.network) if rest.prefix == len(rest.network) * 8 else str(rest)
    if isinstance(rest, bytes):
        return format_ip(rest)
    if isinstance(rest, PortRange):
        return f"{rest.first}-{rest.last}" if rest.first < rest.last else str(rest.first)
    if isinstance(rest, Interval):
        return f"{format_ip(rest.first)}-{format_ip(rest.last)}"
    if isinstance(rest, int):
        return _number_text(rest, _form(field))
    return f'"{rest}"'


def _number_text(number: int, form: NumberForm) -> str:
    return form.text.format(number * form.unit)


def _form(field: Field) -> NumberForm:
    form = field.value.number
    if form is None:
        raise TypeError(f"{field.name} is no number")
    return form


def interval_text(slot: ElementKey, value: Value) -> str:
    """Return a rule that does what an element of a set of intervals does, where all other fields match."""
    interval = rest_text(slot.rest, slot.set.key[-1])
    if slot.set.port_interval and slot.frontend:
        match = f"meta l4proto {PROTOCOL_NAMES[slot.frontend.protocol]} ct original proto-dst {interval}"
    else:
        match = f"{PACKET_FAMILIES[slot.set.family]} saddr {interval}"
    return f"{match} {value_text(value) or 'return'}"


def owners_text(kind: SetSchema, chains: Iterable[tuple[FrontendKey | bytes, str]]) -> str:
    """Return a rule that looks up all other fields of such elements and goes to a chain for each owner."""
    match, names = f"{PACKET_FAMILIES[kind.family]} daddr", [(owner_text(owner), chain) for owner, chain in chains]
    if kind.owner is OwnerKind.FRONTEND:
        match = f"meta l4proto {{ tcp, udp, sctp }} ct original {match} . meta l4proto"
        if kind.port_interval:
            names = [(name.rpartition(" . ")[0], chain) for name, chain in names]
        else:
            match += " . ct original proto-dst"
    return f"{match} vmap {{ {', '.join(f'{name} : goto {chain}' for name, chain in names)} }}"


# Bytes


def pack(kind: SetSchema, owner: ElementOwner, rest: Rest = None) -> bytes:
    """Return the key to look up; in a set of intervals `rest` is one address or link that an interval may hold."""
    head: tuple[Rest, ...] = ()
    if owner is not None:
        head = (owner,) if isinstance(owner, bytes) else (owner.address, owner.protocol, owner.port)
    fields = head if rest is None else (*head, rest)
    packed = (_packed(value, field) for value, field in zip(fields, kind.key, strict=True))
    return b"".join(map(_filled, packed) if kind.is_concatenated else packed)


def pack_keys(kind: SetSchema, elements: Iterable[Element]) -> list[bytes]:
    """Return the keys of elements of a set without intervals. Those of one owner stand together."""
    keys: list[bytes] = []
    last: ElementOwner = None
    key = head = b""
    tail = FRONTEND_TAIL.pack
    for slot, _ in elements:
        owner, rest = slot.owner, slot.rest
        if owner is not last:
            last = owner
            if isinstance(owner, FrontendKey):  # not by a call, which would cost as much again
                key = head = owner.address + tail(owner.protocol, owner.port)
            else:
                key = head = owner or b""
        if rest is not None:
            key = head + (rest if isinstance(rest, bytes) else _packed_rest(kind, rest))
        keys.append(key)
    return keys


@lru_cache(maxsize=1024)
def _packed_rest(kind: SetSchema, rest: Rest) -> bytes:
    """Return the field behind the owner's. Most are numbers of endpoints, of which there are few."""
    packed = _packed(rest, kind.key[-1])
    return _filled(packed) if kind.is_concatenated else packed


def pack_interval(slot: ElementKey) -> tuple[bytes, bytes]:
    """Return the first and the last key of an element of a set of intervals with several fields."""
    kind, owner, rest = slot.set, slot.owner, slot.rest
    if isinstance(owner, FrontendKey) and isinstance(rest, PortRange):
        return _frontend(owner, rest.first), _frontend(owner, rest.last)
    first, last = _ends(rest)
    return pack(kind, owner, first), pack(kind, owner, last)


def _frontend(key: FrontendKey, port: int) -> bytes:
    return key.address + FRONTEND_TAIL.pack(key.protocol, port)


def _ends(rest: Rest) -> tuple[Rest, Rest]:
    """Return the first and the last value of an interval, twice the same for what is none."""
    if isinstance(rest, Cidr):
        size = len(rest.network)
        hosts = (1 << (size * 8 - rest.prefix)) - 1
        return rest.network, (int.from_bytes(rest.network) | hosts).to_bytes(size)
    return (rest.first, rest.last) if isinstance(rest, Interval) else (rest, rest)


def pack_values(kind: SetSchema, elements: Iterable[Element]) -> list[bytes]:
    """Return what a map has for elements, if that is no verdict."""
    if len(kind.value) == 1:
        return [_packed(value, kind.value[0]) for _, value in elements]
    port, ends = PORT_VALUE.pack, cast("Iterable[tuple[ElementKey, FrontendKey]]", elements)
    return [end.address + port(end.port) for _, end in ends]


def pack_verdict(verdict: str) -> tuple[int, str]:
    """Return the code of a verdict, and the chain that it leads to, if any. Raises KeyError for other words."""
    word, _, chain = verdict.partition(" ")
    return VERDICT_CODES[word], chain


def _packed(value: Rest | Value, field: Field) -> bytes:
    size = field.value.size
    if isinstance(value, int):
        form = _form(field)
        return (value * form.unit).to_bytes(size, form.order)
    if isinstance(value, str):
        return value.encode().ljust(size, b"\0")
    if isinstance(value, bytes):
        return value
    raise TypeError(f"{value!r} cannot be looked up")


def _filled(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)


def unpack(kind: SetSchema, found: Iterable[RawElement]) -> dict[ElementKey, Value]:
    """Return all elements of a set with their values."""
    if not kind.is_packed:
        return dict.fromkeys((ElementKey(kind, None, rest) for rest in _intervals(kind.key[0], found)), "")
    return dict(unpack_one(kind, raw) for raw in found)


def unpack_one(kind: SetSchema, raw: RawElement) -> Element:
    """Return one element with its value; not for sets of intervals with one field."""
    first, last = _cut(raw.key, kind.key), _cut(raw.end or raw.key, kind.key)
    owner = _owner(kind, first)
    rest: Rest = None
    if kind.port_interval and isinstance(owner, FrontendKey):
        rest = PortRange(owner.port, int.from_bytes(last[-1]))
        owner = FrontendKey(owner.address, owner.protocol, 0)
    elif len(kind.key) > kind.owner:
        rest = _interval(first[-1], last[-1]) if kind.interval else _unpacked(first[-1], kind.key[-1])
    return ElementKey(kind, owner, rest), _value(kind, owner, raw)


def _owner(kind: SetSchema, fields: list[bytes]) -> ElementOwner:
    if kind.owner is OwnerKind.FRONTEND:
        return FrontendKey(fields[0], int.from_bytes(fields[1]), int.from_bytes(fields[2]))
    return fields[0] if kind.owner is OwnerKind.ADDRESS else None


def _value(kind: SetSchema, owner: ElementOwner, raw: RawElement) -> Value:
    if raw.code is not None:
        return f"{VERDICT_WORDS.get(raw.code, raw.code)} {raw.chain}".strip()
    if not raw.value:
        return ""
    if form := kind.value[0].value.number:
        return _number(raw.value, form)
    address, *port = _cut(raw.value, kind.value)
    if isinstance(owner, FrontendKey) and port:
        return FrontendKey(address, owner.protocol, int.from_bytes(port[0]))
    return address


def _number(data: bytes, form: NumberForm) -> int:
    return int.from_bytes(data, form.order) // form.unit


def _cut(data: bytes, fields: tuple[Field, ...]) -> list[bytes]:
    found = []
    for field in fields:
        size = field.value.size
        found.append(data[:size])
        data = data[size + -size % 4 :]
    return found


def _unpacked(data: bytes, field: Field) -> Rest:
    if form := field.value.number:
        return _number(data, form)
    return data.rstrip(b"\0").decode(errors="replace") if field is Field.LINK else data


def _interval(first: bytes, last: bytes) -> Cidr | Interval:
    """Return an interval of addresses, as a CIDR where it is one."""
    low, high = int.from_bytes(first), int.from_bytes(last)
    size = high - low + 1
    if size & (size - 1) or low % size:
        return Interval(first, last)
    return Cidr(first, len(first) * 8 - size.bit_length() + 1)


def _intervals(field: Field, found: Iterable[RawElement]) -> Iterator[Rest]:
    """Yield the intervals of a set with one field; the last one may reach to the end of all keys."""
    starts: dict[bytes, bool] = {}
    for raw in found:
        # Where one interval stops and the next one starts, there are two elements with one key.
        starts[raw.key] = starts.get(raw.key, True) and raw.stops
    for (first, stops), (after, _) in pairwise([*sorted(starts.items()), (b"", True)]):
        if not stops:
            yield _links(first, after) if field is Field.LINK else _interval(first, _before(after, len(first)))


def _before(data: bytes, size: int) -> bytes:
    """Return the key before the next one; before none at all, the last key there is."""
    return (int.from_bytes(data) - 1).to_bytes(size) if data else b"\xff" * size


def _links(first: bytes, after: bytes) -> str:
    """Return the name of a link, or `prefix*` for the interval of all names with a prefix."""
    prefix = first.rstrip(b"\0")
    exact = not after or int.from_bytes(after) - int.from_bytes(first) == 1
    return f"{prefix.decode(errors='replace')}{'' if exact and len(prefix) < len(first) else '*'}"
