"""The elements of our nft table as the kernel has them: one looked up by its key, or all of one set.

Plain netlink (NFT_MSG_GETSETELEM, include/uapi/linux/netfilter/nf_tables.h): a lookup reads one element, whatever
the size of the set, and asks no program that could stumble over tables of others. In a set of intervals the kernel
finds the interval that a key lies in, by the same search as for packets (nft_rbtree_get, nft_pipapo_get).

What the bytes mean is told by `inspect.elements`.
"""

import errno
import struct
from collections.abc import Iterator

from ipvsproxy.inspect.elements import RawElement, texts
from ipvsproxy.kernel.wire.netlink import KernelError, Wire, attribute, attributes, message
from ipvsproxy.kernel.wire.nfnetlink import (
    NETLINK_NETFILTER,
    NFGENMSG,
    NFPROTO_ARP,
    NFPROTO_INET,
    NFT_MSG_GETSETELEM,
    NFT_SET_ELEM_INTERVAL_END,
    NFTA_DATA_VALUE,
    NFTA_DATA_VERDICT,
    NFTA_LIST_ELEM,
    NFTA_SET_ELEM_DATA,
    NFTA_SET_ELEM_FLAGS,
    NFTA_SET_ELEM_KEY,
    NFTA_SET_ELEM_KEY_END,
    NFTA_SET_ELEM_LIST_ELEMENTS,
    NFTA_SET_ELEM_LIST_SET,
    NFTA_SET_ELEM_LIST_TABLE,
    NFTA_VERDICT_CHAIN,
    NFTA_VERDICT_CODE,
    NLA_F_NESTED,
)
from ipvsproxy.plan.rules import ARP_SETS

BIG_U32, BIG_S32 = struct.Struct(">I"), struct.Struct(">i")


class ElementReader:
    """The sets and maps of the tables of one name in the families inet and arp."""

    def __init__(self, table: str) -> None:
        self._wire = Wire(NETLINK_NETFILTER)
        self._table = attribute(NFTA_SET_ELEM_LIST_TABLE, table.encode() + b"\0")

    def close(self) -> None:
        """Close the socket."""
        self._wire.close()

    def find(self, name: str, key: bytes, *, stop: bool = False) -> RawElement | None:
        """Return the element of a set with this key, or of an interval that it lies in. Raises KernelError.

        None also when there is no such set, or no table. `stop` asks for the element where that interval stops.
        """
        wanted = attribute(NFTA_SET_ELEM_KEY | NLA_F_NESTED, attribute(NFTA_DATA_VALUE, key))
        if stop:
            wanted += attribute(NFTA_SET_ELEM_FLAGS, BIG_U32.pack(NFT_SET_ELEM_INTERVAL_END))
        wanted = attribute(NFTA_LIST_ELEM | NLA_F_NESTED, wanted)
        try:
            answer = self._wire.request(
                self._question(name, attribute(NFTA_SET_ELEM_LIST_ELEMENTS | NLA_F_NESTED, wanted))
            )
        except KernelError as error:
            if error.errno == errno.ENOENT:
                return None
            raise
        return next(_elements(answer), None)

    def all(self, name: str) -> list[RawElement]:
        """Return all elements of a set, in the kernel's order. Raises KernelError."""
        return _dumped(self._wire, self._question(name, b""))

    def texts(self, name: str) -> dict[str, str]:
        """Return all elements of a set in the words of the planner. Raises KernelError."""
        return texts(name, self.all(name))

    def _question(self, name: str, wanted: bytes) -> bytes:
        head = NFGENMSG.pack(NFPROTO_ARP if name in ARP_SETS else NFPROTO_INET, 0, 0)
        return message(
            NFT_MSG_GETSETELEM,
            0,
            head + self._table + attribute(NFTA_SET_ELEM_LIST_SET, name.encode() + b"\0") + wanted,
        )


def read_all(wire: Wire, family: int, table: str, name: str) -> list[RawElement]:
    """Return all elements of a set of any table, none when there is no such set. Raises KernelError."""
    place = attribute(NFTA_SET_ELEM_LIST_TABLE, table.encode() + b"\0") + attribute(
        NFTA_SET_ELEM_LIST_SET, name.encode() + b"\0"
    )
    return _dumped(wire, message(NFT_MSG_GETSETELEM, 0, NFGENMSG.pack(family, 0, 0) + place))


def _dumped(wire: Wire, question: bytes) -> list[RawElement]:
    try:
        parts = wire.dump(question)
    except KernelError as error:
        if error.errno == errno.ENOENT:
            return []
        raise
    return [element for part in parts for element in _elements(part)]


def _elements(part: bytes) -> Iterator[RawElement]:
    for number, payload in attributes(part, NFGENMSG.size):
        if number == NFTA_SET_ELEM_LIST_ELEMENTS:
            for _, element in attributes(payload):
                yield _element(dict(attributes(element)))


def _element(fields: dict[int, memoryview]) -> RawElement:
    flags = BIG_U32.unpack_from(fields[NFTA_SET_ELEM_FLAGS])[0] if NFTA_SET_ELEM_FLAGS in fields else 0
    data = dict(attributes(fields[NFTA_SET_ELEM_DATA])) if NFTA_SET_ELEM_DATA in fields else {}
    code, chain = None, ""
    if NFTA_DATA_VERDICT in data:
        verdict = dict(attributes(data[NFTA_DATA_VERDICT]))
        code = BIG_S32.unpack_from(verdict[NFTA_VERDICT_CODE])[0]
        chain = bytes(verdict.get(NFTA_VERDICT_CHAIN, b"")).rstrip(b"\0").decode()
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
