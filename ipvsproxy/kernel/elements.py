"""The elements of our nft table as the kernel has them: one looked up by its key, or all of one set.

Plain netlink (NFT_MSG_GETSETELEM, include/uapi/linux/netfilter/nf_tables.h): a lookup reads one element, whatever
the size of the set, and asks no program that could stumble over tables of others. In a set of intervals the kernel
finds the interval that a key lies in, by the same search as for packets (nft_rbtree_get, nft_pipapo_get).

What the bytes mean is in `ruleset.codec`.
"""

import errno
import struct
from collections.abc import Iterator

from ipvsproxy.kernel.wire.netlink import KernelError, Wire, attribute, attributes, message, text
from ipvsproxy.kernel.wire.nfnetlink import (
    NETLINK_NETFILTER,
    NFGENMSG,
    NFT_MSG_GETSETELEM,
    NFT_SET_ELEM_INTERVAL_END,
    NFTA_COUNTER_PACKETS,
    NFTA_DATA_VALUE,
    NFTA_DATA_VERDICT,
    NFTA_EXPR_DATA,
    NFTA_LIST_ELEM,
    NFTA_SET_ELEM_DATA,
    NFTA_SET_ELEM_EXPR,
    NFTA_SET_ELEM_FLAGS,
    NFTA_SET_ELEM_KEY,
    NFTA_SET_ELEM_KEY_END,
    NFTA_SET_ELEM_LIST_ELEMENTS,
    NFTA_SET_ELEM_LIST_SET,
    NFTA_SET_ELEM_LIST_TABLE,
    NFTA_VERDICT_CHAIN,
    NFTA_VERDICT_CODE,
    NLA_F_NESTED,
    TABLE_FAMILIES,
)
from ipvsproxy.ruleset.codec import RawElement, pack, unpack, unpack_one
from ipvsproxy.ruleset.elements import Element, ElementKey, ElementOwner, Rest, Value
from ipvsproxy.ruleset.schema import SetSchema

BIG_U32, BIG_S32 = struct.Struct(">I"), struct.Struct(">i")


class ElementReader:
    """The sets and maps of the tables of one name."""

    def __init__(self, table: str) -> None:
        self._wire = Wire(NETLINK_NETFILTER)
        self._table = attribute(NFTA_SET_ELEM_LIST_TABLE, table.encode() + b"\0")

    def close(self) -> None:
        """Close the socket."""
        self._wire.close()

    def find(self, kind: SetSchema, owner: ElementOwner, rest: Rest = None) -> Element | None:
        """Look an element up, or the one of an interval that `rest` lies in. Raises KernelError.

        None also when there is no such set, or no table.
        """
        key = pack(kind, owner, rest)
        found = self._find(kind, key)
        if found is None:
            return None
        if kind.is_packed:
            return unpack_one(kind, found)
        stop = self._find(kind, key, stop=True)
        ((slot, value),) = unpack(kind, [found, stop] if stop else [found]).items()
        return slot, value

    def all(self, kind: SetSchema) -> dict[ElementKey, Value]:
        """Return all elements of a set. Raises KernelError."""
        return unpack(kind, _dumped(self._wire, self._question(kind, b"")))

    def _find(self, kind: SetSchema, key: bytes, *, stop: bool = False) -> RawElement | None:
        """`stop` asks for the element where the interval stops that holds the key."""
        wanted = attribute(NFTA_SET_ELEM_KEY | NLA_F_NESTED, attribute(NFTA_DATA_VALUE, key))
        if stop:
            wanted += attribute(NFTA_SET_ELEM_FLAGS, BIG_U32.pack(NFT_SET_ELEM_INTERVAL_END))
        wanted = attribute(NFTA_LIST_ELEM | NLA_F_NESTED, wanted)
        try:
            reply = self._wire.request(
                self._question(kind, attribute(NFTA_SET_ELEM_LIST_ELEMENTS | NLA_F_NESTED, wanted))
            )
        except KernelError as error:
            if error.errno == errno.ENOENT:
                return None
            raise
        return next(_elements(reply), None)

    def _question(self, kind: SetSchema, wanted: bytes) -> bytes:
        head = NFGENMSG.pack(TABLE_FAMILIES[kind.table], 0, 0)
        place = self._table + attribute(NFTA_SET_ELEM_LIST_SET, kind.name.encode() + b"\0")
        return message(NFT_MSG_GETSETELEM, 0, head + place + wanted)


def read_all(wire: Wire, family: int, table: str, name: str) -> list[RawElement]:
    """Return all elements of a set of any table, none when there is no such set. Raises KernelError."""
    return _dumped(wire, _all_of(family, table, name))


def read_counted(wire: Wire, family: int, table: str, name: str) -> list[tuple[RawElement, int]]:
    """Return all elements of a set with counters, each with the packets it has matched. Raises KernelError."""
    parts = _dump(wire, _all_of(family, table, name))
    return [(_element(fields), _packets(fields)) for part in parts for fields in _fields(part)]


def _all_of(family: int, table: str, name: str) -> bytes:
    place = attribute(NFTA_SET_ELEM_LIST_TABLE, table.encode() + b"\0") + attribute(
        NFTA_SET_ELEM_LIST_SET, name.encode() + b"\0"
    )
    return message(NFT_MSG_GETSETELEM, 0, NFGENMSG.pack(family, 0, 0) + place)


def _dump(wire: Wire, request: bytes) -> list[bytes]:
    try:
        return list(wire.dump(request))
    except KernelError as error:
        if error.errno == errno.ENOENT:
            return []
        raise


def _dumped(wire: Wire, request: bytes) -> list[RawElement]:
    return [element for part in _dump(wire, request) for element in _elements(part)]


def _elements(part: bytes) -> Iterator[RawElement]:
    return map(_element, _fields(part))


def _fields(part: bytes) -> Iterator[dict[int, memoryview]]:
    for number, payload in attributes(part, NFGENMSG.size):
        if number == NFTA_SET_ELEM_LIST_ELEMENTS:
            for _, element in attributes(payload):
                yield dict(attributes(element))


def _packets(fields: dict[int, memoryview]) -> int:
    """Return what the counter of an element has, 0 without one."""
    expression = dict(attributes(fields.get(NFTA_SET_ELEM_EXPR, b"")))
    counter = dict(attributes(expression.get(NFTA_EXPR_DATA, b"")))
    return int.from_bytes(counter.get(NFTA_COUNTER_PACKETS, b""))


def _element(fields: dict[int, memoryview]) -> RawElement:
    flags = BIG_U32.unpack_from(fields[NFTA_SET_ELEM_FLAGS])[0] if NFTA_SET_ELEM_FLAGS in fields else 0
    data = dict(attributes(fields[NFTA_SET_ELEM_DATA])) if NFTA_SET_ELEM_DATA in fields else {}
    code, chain = None, ""
    if NFTA_DATA_VERDICT in data:
        verdict = dict(attributes(data[NFTA_DATA_VERDICT]))
        code = BIG_S32.unpack_from(verdict[NFTA_VERDICT_CODE])[0]
        chain = text(verdict.get(NFTA_VERDICT_CHAIN, b""))
    return RawElement(
        key=_value(fields.get(NFTA_SET_ELEM_KEY)),
        end=_value(fields.get(NFTA_SET_ELEM_KEY_END)),
        stops=bool(flags & NFT_SET_ELEM_INTERVAL_END),
        value=bytes(data.get(NFTA_DATA_VALUE, b"")),
        code=code,
        chain=chain,
    )


def _value(field: memoryview | None) -> bytes:
    return bytes(dict(attributes(field)).get(NFTA_DATA_VALUE, b"")) if field is not None else b""
