"""Links at which tunnels end, in bytes: IPIP and its like for IPv6, settings of IPv4 of a link, ports for GUE.

Sources: include/uapi/linux/{if_link,if_tunnel,ip,fou}.h. Settings of a link go by rtnetlink (inet_set_link_af),
since containers have /proc/sys read-only.
"""

import socket
from collections.abc import Mapping
from typing import NamedTuple

from ipvsproxy.base.address import address_family
from ipvsproxy.kernel.wire.netlink import (
    GENERIC,
    NLM_F_CREATE,
    NLM_F_EXCL,
    attribute,
    attributes,
    generic,
    message,
    text,
)
from ipvsproxy.kernel.wire.rtnetlink import (
    IFA_ADDRESS,
    IFA_LOCAL,
    IFADDRMSG,
    IFINFOMSG,
    IFLA_IFNAME,
    IFLA_INFO_KIND,
    IFLA_LINKINFO,
    RTM_GETLINK,
    RTM_NEWLINK,
    U32,
)

IFLA_INFO_DATA, IFLA_AF_SPEC, IFLA_INET_CONF = 2, 26, 1
IFLA_IPTUN_LOCAL, IFLA_IPTUN_PROTO = 2, 9
IFF_UP, IFF_LOOPBACK = 0x1, 0x8
RT_SCOPE_UNIVERSE = 0
RP_FILTER, ARP_ANNOUNCE, ARP_IGNORE = 8, 18, 19
"""Numbers of settings of a link (IPV4_DEVCONF_...)."""
FOU_CMD_ADD, FOU_CMD_GET = 1, 3
FOU_ATTR_PORT, FOU_ATTR_AF, FOU_ATTR_TYPE, FOU_ENCAP_GUE = 1, 2, 4, 2
KINDS = {4: (b"ipip", b""), 6: (b"ip6tnl", attribute(IFLA_IPTUN_PROTO, bytes((socket.IPPROTO_IPV6,))))}
"""What each family calls its tunnels, and which packets are in them."""


class PodLink(NamedTuple):
    """A link of this network namespace, with the local end if it is a tunnel."""

    number: int
    name: str
    is_loopback: bool
    local: bytes


def read_link(part: bytes) -> PodLink:
    """Read one record of a list of links."""
    _, _, index, flags, _ = IFINFOMSG.unpack_from(part)
    fields = dict(attributes(part, IFINFOMSG.size))
    info = dict(attributes(fields.get(IFLA_LINKINFO, b"")))
    kinds = {kind for kind, _ in KINDS.values()}
    is_tunnel = text(info.get(IFLA_INFO_KIND, b"")).encode() in kinds
    data = dict(attributes(info.get(IFLA_INFO_DATA, b""))) if is_tunnel else {}
    local = bytes(data.get(IFLA_IPTUN_LOCAL, b""))
    return PodLink(index, text(fields[IFLA_IFNAME]), bool(flags & IFF_LOOPBACK), local)


def read_address(part: bytes) -> tuple[int, bytes, bool]:
    """Read one record of a list of addresses: number of the link, address, whether others can reach it."""
    _, _, _, scope, index = IFADDRMSG.unpack_from(part)
    fields = dict(attributes(part, IFADDRMSG.size))
    address = fields[IFA_LOCAL] if IFA_LOCAL in fields else fields[IFA_ADDRESS]
    return index, bytes(address), scope == RT_SCOPE_UNIVERSE


def new_tunnel(name: str, number: int, local: bytes) -> bytes:
    """Return the message that makes the end of tunnels from anywhere to a local address, of family 4 or 6."""
    kind, more = KINDS[number]
    data = attribute(IFLA_IPTUN_LOCAL, local) + more
    info = attribute(IFLA_INFO_KIND, kind) + attribute(IFLA_INFO_DATA, data)
    body = IFINFOMSG.pack(0, 0, 0, 0, 0) + attribute(IFLA_IFNAME, name.encode() + b"\0")
    return message(RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body + attribute(IFLA_LINKINFO, info))


def set_up(index: int) -> bytes:
    """Return the message that sets a link up."""
    return message(RTM_NEWLINK, 0, IFINFOMSG.pack(0, 0, index, IFF_UP, IFF_UP))


def ipv4_settings(index: int, values: Mapping[int, int]) -> bytes:
    """Return the message that gives a link settings of IPv4, by their numbers."""
    settings = b"".join(attribute(number, U32.pack(value)) for number, value in values.items())
    inet = attribute(socket.AF_INET, attribute(IFLA_INET_CONF, settings))
    return message(RTM_NEWLINK, 0, IFINFOMSG.pack(0, 0, index, 0, 0) + attribute(IFLA_AF_SPEC, inet))


def new_gue_port(family: int, port: int, address_length: int) -> bytes:
    """Return the message that takes GUE at a UDP port; `family` is the number of the netlink family `fou`."""
    body = attribute(FOU_ATTR_PORT, port.to_bytes(2)) + attribute(FOU_ATTR_TYPE, bytes((FOU_ENCAP_GUE,)))
    return generic(family, FOU_CMD_ADD, body + attribute(FOU_ATTR_AF, bytes((address_family(address_length),))))


def list_gue_ports(family: int) -> bytes:
    """Return the request for all ports that take GUE or its like."""
    return generic(family, FOU_CMD_GET, b"")


def read_gue_port(part: bytes) -> tuple[int, int]:
    """Read one record of that list: address family and port."""
    fields = dict(attributes(part, GENERIC.size))
    return fields[FOU_ATTR_AF][0], int.from_bytes(fields[FOU_ATTR_PORT])


def all_links() -> bytes:
    """Return the request for all links."""
    return message(RTM_GETLINK, 0, IFINFOMSG.pack(0, 0, 0, 0, 0))
