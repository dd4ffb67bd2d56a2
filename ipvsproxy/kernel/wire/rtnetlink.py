"""rtnetlink in bytes: its numbers under the kernel's names, its headers, messages about addresses and routes.

Sources: include/uapi/linux/{rtnetlink,if_addr,if_link,neighbour}.h, rtnetlink(7).
"""

import struct
from collections.abc import Iterator
from functools import lru_cache

from ipvsproxy.base.address import address_family
from ipvsproxy.kernel.wire.netlink import (
    NLM_F_APPEND,
    NLM_F_CREATE,
    NLM_F_EXCL,
    NLM_F_REPLACE,
    attribute,
    attributes,
    message,
)

NETLINK_ROUTE = 0
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_GETNEIGH, AF_BRIDGE, NDA_DST = 30, 7, 1
RT_TABLE_LOCAL, RTN_UNICAST, RTN_LOCAL, RT_SCOPE_HOST = 255, 1, 2, 254
IFA_ADDRESS, IFA_LOCAL, IFA_BROADCAST = 1, 2, 4
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PREFSRC, RTA_MULTIPATH, RTA_VIA = 1, 4, 5, 7, 9, 18
RTM_F_FIB_MATCH = 0x2000
"""Report the route that was found, and not what it comes to."""
RTNEXTHOP = struct.Struct("=HBBi")
IFA_F_SECONDARY, IFA_F_NODAD = 0x01, 0x02
IFADDRMSG = struct.Struct("=BBBBI")
NDMSG = struct.Struct("=BxxxiHBB")
RTMSG = struct.Struct("=BBBBBBBBI")
U32 = struct.Struct("=I")
IFINFOMSG = struct.Struct("=BxHiII")
RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK = 16, 17, 18
IFLA_IFNAME, IFLA_LINKINFO, IFLA_INFO_KIND = 3, 18, 1
ROUTE_PROTOCOL = 118
"""rtm_protocol of our routes; unused in iproute2's rt_protos."""


def next_hops(fields: Iterator[tuple[int, memoryview]]) -> Iterator[bytes]:
    """Yield the gateways in the attributes of a route, those of several paths as well."""
    for number, payload in fields:
        if number == RTA_GATEWAY:
            yield bytes(payload)
        elif number == RTA_VIA:
            yield bytes(payload[2:])
        elif number == RTA_MULTIPATH:
            offset = 0
            while offset + RTNEXTHOP.size <= len(payload):
                length = RTNEXTHOP.unpack_from(payload, offset)[0]
                yield from next_hops(attributes(payload[: offset + length], offset + RTNEXTHOP.size))
                offset += max((length + 3) & ~3, RTNEXTHOP.size)


def address_message(address: bytes, index: int, sequence: int, *, add: bool) -> bytes:
    """Return the message that adds or removes an address of a link."""
    v4 = len(address) == 4
    scope_flags = 0 if v4 else IFA_F_NODAD
    body = IFADDRMSG.pack(address_family(len(address)), len(address) * 8, scope_flags, 0, index)
    body += attribute(IFA_LOCAL, address) + attribute(IFA_ADDRESS, address)
    return message(RTM_NEWADDR if add else RTM_DELADDR, NLM_F_CREATE | NLM_F_EXCL if add else 0, body, sequence)


@lru_cache(maxsize=8)
def route_frame(length: int, index: int, add: bool, source: bytes | None = None) -> tuple[bytes, bytes, bytes]:
    """Return a message about a route in three pieces: cut at its sequence number and at its address.

    With a source the route takes the place of one that is there, and new connections of the node to the address
    begin at it; an empty one is what the kernel gives them.
    """
    body = RTMSG.pack(
        address_family(length), length * 8, 0, 0, RT_TABLE_LOCAL, ROUTE_PROTOCOL, RT_SCOPE_HOST, RTN_LOCAL, 0
    )
    tail = attribute(RTA_OIF, U32.pack(index)) if index else b""
    tail += attribute(RTA_PREFSRC, source) if source else b""
    # Appended, so that the route can stand beside the one that an address of the same VIP has made; a source
    # counts in the first one only.
    flags = NLM_F_CREATE | (NLM_F_APPEND if source is None else NLM_F_REPLACE) if add else 0
    framed = message(RTM_NEWROUTE if add else RTM_DELROUTE, flags, body + attribute(RTA_DST, bytes(length)) + tail)
    return framed[:8], framed[12 : len(framed) - len(tail) - length], tail
