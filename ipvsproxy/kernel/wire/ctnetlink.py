"""Messages of ctnetlink about tracked connections: the tuples in them, and a quick look at whose they are.

Facts: include/uapi/linux/netfilter/nfnetlink_conntrack.h, net/netfilter/nf_conntrack_netlink.c.
"""

import struct
from collections.abc import Container
from typing import NamedTuple

from ipvsproxy.base.frontend import FrontendKey
from ipvsproxy.kernel.wire.netlink import attributes
from ipvsproxy.kernel.wire.nfnetlink import (
    CTA_IP_V4_DST,
    CTA_IP_V4_SRC,
    CTA_IP_V6_DST,
    CTA_IP_V6_SRC,
    CTA_PROTO_DST_PORT,
    CTA_PROTO_NUM,
    CTA_PROTO_SRC_PORT,
    CTA_TUPLE_IP,
    CTA_TUPLE_PROTO,
    NFPROTO_IPV4,
    NFPROTO_IPV6,
)

SOURCE = {4: CTA_IP_V4_SRC, 6: CTA_IP_V6_SRC}
DESTINATION = {4: CTA_IP_V4_DST, 6: CTA_IP_V6_DST}
AF = {4: NFPROTO_IPV4, 6: NFPROTO_IPV6}
PORT = struct.Struct("!H")
HEAD = struct.Struct("=HH")
EMPTY = memoryview(b"")


class TupleLayout(NamedTuple):
    """Where the kernel puts parts of the original tuple in a message; `heads` are attribute headers on the way."""

    address: slice
    protocol: slice
    port: slice
    heads: tuple[tuple[slice, bytes], ...]


def _layout(number: int, length: int) -> TupleLayout:
    """Each attribute has a header of four bytes; before the source address there are three, and the message's."""
    address, protocol, port = 20 + length, 28 + 2 * length, 44 + 2 * length
    heads = (
        (slice(address - 4, address), HEAD.pack(4 + length, DESTINATION[number])),
        (slice(port - 4, port), HEAD.pack(4 + PORT.size, CTA_PROTO_DST_PORT)),
    )
    return TupleLayout(
        slice(address, address + length), slice(protocol, protocol + 1), slice(port, port + 2), heads
    )


LAYOUTS = {4: _layout(4, 4), 6: _layout(6, 16)}


def packed(name: FrontendKey) -> bytes:
    """Return address, protocol and port as `is_of` compares them."""
    return name.address + bytes((name.protocol,)) + PORT.pack(name.port)


def is_of(body: bytes, layout: TupleLayout, wanted: Container[bytes]) -> bool:
    """Tell, within a microsecond, an entry that must be looked at from one of the thousands that need not be."""
    for place, head in layout.heads:
        if body[place] != head:
            return True  # not where it has always been: parsing will tell
    address = body[layout.address]
    return address in wanted or address + body[layout.protocol] + body[layout.port] in wanted


class Tuple(NamedTuple):
    """One direction of a connection."""

    source: bytes
    destination: bytes
    protocol: int
    source_port: int
    destination_port: int


def read_tuple(payload: memoryview, number: int) -> Tuple | None:
    """Read one direction of an entry; None for protocols without ports."""
    parts = dict(attributes(payload))
    ip, proto = (
        dict(attributes(parts.get(CTA_TUPLE_IP, EMPTY))),
        dict(attributes(parts.get(CTA_TUPLE_PROTO, EMPTY))),
    )
    try:
        return Tuple(
            bytes(ip[SOURCE[number]]),
            bytes(ip[DESTINATION[number]]),
            proto[CTA_PROTO_NUM][0],
            int(PORT.unpack(proto[CTA_PROTO_SRC_PORT])[0]),
            int(PORT.unpack(proto[CTA_PROTO_DST_PORT])[0]),
        )
    except KeyError:
        return None
