"""kube-ipvs0, the VIPs on it, and the addresses of the node's other links, over rtnetlink.

A VIP is an address of the dummy link kube-ipvs0 (the link stays down; its addresses are local all the same), or
a `local` host route. Routes are marked with a protocol number of our own, so that ours and only ours are read
back and removed. They go to `lo`: IPv6 routes need a link that is up, and when the last IPv4 address leaves a
link the kernel takes all IPv4 routes of that link with it (fib_disable_ip, net/ipv4/fib_frontend.c), which would
happen to those on kube-ipvs0 whenever VIPs change from one form to the other. Stray ones, which a former version
has left on another link, are replaced.

Layouts: include/uapi/linux/if_addr.h, rtnetlink.h. Addresses of kube-ipvs0 that no Service wants are removed, but
IPv6 link-local ones (contract 4.2).
"""

import errno
import os
import re
import socket
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from ipvsproxy.base.address import format_ip, is_node_address
from ipvsproxy.base.names import DNS_PORT, VIP_LINK
from ipvsproxy.kernel.wire.netlink import (
    NLM_F_CREATE,
    NLM_F_EXCL,
    SEQUENCE,
    KernelError,
    Wire,
    attribute,
    attributes,
    message,
)
from ipvsproxy.kernel.wire.rtnetlink import (
    AF_BRIDGE,
    IFA_ADDRESS,
    IFA_BROADCAST,
    IFA_F_SECONDARY,
    IFA_LOCAL,
    IFADDRMSG,
    IFINFOMSG,
    IFLA_IFNAME,
    IFLA_INFO_KIND,
    IFLA_LINKINFO,
    NDA_DST,
    NDMSG,
    NETLINK_ROUTE,
    ROUTE_PROTOCOL,
    RT_TABLE_LOCAL,
    RTA_DST,
    RTA_OIF,
    RTA_PREFSRC,
    RTM_GETADDR,
    RTM_GETLINK,
    RTM_GETNEIGH,
    RTM_GETROUTE,
    RTM_NEWLINK,
    RTMSG,
    RTN_LOCAL,
    U32,
    address_message,
    next_hops,
    route_frame,
)
from ipvsproxy.plan.node import THIS_NODE, Reserved
from ipvsproxy.plan.state import Vip, VipForm

NAMED = IFINFOMSG.pack(0, 0, 0, 0, 0) + attribute(IFLA_IFNAME, VIP_LINK.encode() + b"\0")
GET_LINK = message(RTM_GETLINK, 0, NAMED)
NEW_LINK = message(
    RTM_NEWLINK,
    NLM_F_CREATE | NLM_F_EXCL,
    NAMED + attribute(IFLA_LINKINFO, attribute(IFLA_INFO_KIND, b"dummy")),
)
BROADCAST = "a network's broadcast"
PLAIN_NAME = re.compile(r"[a-zA-Z0-9_.-]+")
"""Of links; the few others are left alone."""
PAUSE_FACTOR = 20
"""How much longer than it takes to read all routes they are taken to be the same."""
GONE = (errno.EADDRNOTAVAIL, errno.ESRCH, errno.ENOENT, errno.ENODEV)


class Links:
    """The dummy link and the VIPs. Belongs to the loop's thread."""

    def __init__(self) -> None:
        self._wire = Wire(NETLINK_ROUTE)
        self._strict_wire = Wire(NETLINK_ROUTE, strict=True)
        self._hops: frozenset[bytes] = frozenset()
        self._hops_until = 0.0
        self._index = 0
        self._loopback = socket.if_nametoindex("lo")
        self._strays: dict[bytes, int] = {}
        self._sourced: set[bytes] = set()

    def ensure_link(self) -> bool:
        """Make sure that kube-ipvs0 exists and tell whether it had to be made.

        Raises KernelError when it cannot be made.
        """
        index = self._own_index()
        if not index:
            failure = self._wire.batch([NEW_LINK]).get(0, 0)
            if failure not in (0, errno.EEXIST):
                raise KernelError(f"adding the dummy link {VIP_LINK}", failure)
        self._index = index or self._own_index()
        if not self._index:
            raise KernelError(f"looking for the dummy link {VIP_LINK}", errno.ENODEV)
        return not index

    def _own_index(self) -> int:
        """Return the index of kube-ipvs0, 0 when there is none. Needs no new descriptor. Raises KernelError."""
        try:
            return int(IFINFOMSG.unpack_from(self._wire.request(GET_LINK))[2])
        except KernelError as error:
            if error.errno == errno.ENODEV:
                return 0
            raise

    def close(self) -> None:
        """Close the sockets."""
        self._wire.close()
        self._strict_wire.close()

    def look(self) -> bool:
        """Look for kube-ipvs0 without making it, and tell whether it is there. Raises KernelError."""
        self._index = self._own_index()
        return bool(self._index)

    def vips(self) -> set[Vip]:
        """Read the VIPs that are there, in both forms. Raises Lost."""
        self._sourced.clear()
        addresses = {Vip(a, VipForm.ADDRESS) for index, a in self._addresses() if index == self._index}
        return {vip for vip in addresses if is_node_address(vip.address)} | set(self._routes())

    def other_addresses(self) -> frozenset[bytes]:
        """Read the addresses of all links but kube-ipvs0. Raises Lost."""
        return frozenset(address for index, address in self._addresses() if index != self._index)

    def senders(self) -> dict[str, bytes]:
        """Read the first IPv4 address of each link but lo and kube-ipvs0, by name. Raises KernelError."""
        found: dict[str, bytes] = {}
        for index, address in self._addresses():
            if len(address) == 4 and index not in (self._index, self._loopback):
                try:
                    found.setdefault(socket.if_indextoname(index), address)
                except OSError as error:
                    if error.errno not in (errno.ENXIO, errno.ENODEV):  # gone meanwhile
                        raise KernelError("reading the name of a link", error.errno or 0) from error
        return {name: address for name, address in found.items() if PLAIN_NAME.fullmatch(name)}

    def gateways(self) -> frozenset[bytes]:
        """Return the next hops of all routes, as fresh as a twentieth of a core allows. Raises Lost.

        A thousand routes are read in 5 ms, the million of a router on the Internet in some seconds.
        """
        began = time.monotonic()
        if began >= self._hops_until:
            parts = self._wire.dump(message(RTM_GETROUTE, 0, RTMSG.pack(0, 0, 0, 0, 0, 0, 0, 0, 0)))
            self._hops = frozenset(hop for part in parts for hop in next_hops(attributes(part, RTMSG.size)))
            ended = time.monotonic()
            self._hops_until = ended + PAUSE_FACTOR * (ended - began)
        return self._hops

    def tunnel_ends(self) -> frozenset[bytes]:
        """Read the far ends of VXLAN links: with many network plugins, the addresses of all other nodes.

        Raises Lost.
        """
        found = set()
        for part in self._wire.dump(message(RTM_GETNEIGH, 0, NDMSG.pack(AF_BRIDGE, 0, 0, 0, 0))):
            end = dict(attributes(part, NDMSG.size)).get(NDA_DST)
            if end is not None and any(end):
                found.add(bytes(end))
        return frozenset(found)

    def by_link(self) -> dict[int, list[bytes]]:
        """Read all addresses by the index of their link. Raises Lost."""
        found: dict[int, list[bytes]] = {}
        for index, address in self._addresses():
            found.setdefault(index, []).append(address)
        return found

    def own(self) -> Iterator[tuple[int, bytes, int]]:
        """Yield index, address and prefix length of the primary IPv4 addresses of global scope. Raises Lost."""
        for part in self._wire.dump(message(RTM_GETADDR, 0, IFADDRMSG.pack(socket.AF_INET, 0, 0, 0, 0))):
            _, prefix, flags, scope, index = IFADDRMSG.unpack_from(part)
            if not scope and not flags & IFA_F_SECONDARY:
                yield index, bytes(dict(attributes(part, IFADDRMSG.size))[IFA_LOCAL]), prefix

    def subnets(self) -> Iterator[Reserved]:
        """Yield the node's own addresses in the subnets of its links, and the broadcasts of these. Raises Lost.

        An address of its own that programs move from node to node (keepalived, kube-vip) has no subnet or stands
        second in one.
        """
        for part in self._wire.dump(message(RTM_GETADDR, 0, IFADDRMSG.pack(0, 0, 0, 0, 0))):
            number, prefix, flags, _, index = IFADDRMSG.unpack_from(part)
            fields = dict(attributes(part, IFADDRMSG.size))
            address = bytes(fields.get(IFA_LOCAL, fields.get(IFA_ADDRESS, b"")))
            if index == self._index or prefix == len(address) * 8 or not is_node_address(address):
                continue
            if number == socket.AF_INET6 or not flags & IFA_F_SECONDARY:
                yield Reserved(address, THIS_NODE)
            if number == socket.AF_INET:
                yield from (Reserved(found, BROADCAST) for found in _broadcasts(address, prefix, fields))

    def bind(self, vips: Sequence[Vip]) -> dict[int, int]:
        """Add VIPs and return {index: errno} of those that could not be. Raises Lost."""
        failures = self._wire.batch([self._message(vip, index, add=True) for index, vip in enumerate(vips)])
        return {i: code for i, code in failures.items() if code != errno.EEXIST}

    def unbind(self, vips: Sequence[Vip]) -> dict[int, int]:
        """Remove VIPs and return {index: errno} of those that could not be. Raises Lost."""
        failures = self._wire.batch([self._message(vip, index, add=False) for index, vip in enumerate(vips)])
        return {i: code for i, code in failures.items() if code not in GONE}

    def route_with_source(self, source: bytes) -> list[str]:
        """Make the VIPs of a family routes which give new connections of the node that source.

        Return what could not be. A VIP is local all the time. Raises Lost.
        """
        found = sorted(vip for vip in self.vips() if len(vip.address) == len(source))
        addresses = sorted({vip.address for vip in found})
        refused = self._wire.batch([self._route(each, i, source) for i, each in enumerate(addresses)])
        kept = {addresses[i] for i in refused}
        self.unbind([vip for vip in found if vip.form is not VipForm.ROUTE and vip.address not in kept])
        return [f"source of {format_ip(addresses[i])}: {os.strerror(code)}" for i, code in refused.items()]

    def without_sources(self) -> dict[bytes, int]:
        """Undo `route_with_source` for VIPs that were read last; return {address: errno} of those that keep one.

        Raises Lost.
        """
        addresses = sorted(self._sourced)
        refused = self._wire.batch([self._route(each, i, b"") for i, each in enumerate(addresses)])
        return {addresses[i]: code for i, code in refused.items()}

    def _route(self, address: bytes, sequence: int, source: bytes) -> bytes:
        start, middle, tail = route_frame(len(address), self._loopback, True, source)
        return start + SEQUENCE.pack(sequence) + middle + address + tail

    def remove_link(self) -> list[str]:
        """Delete our routes and kube-ipvs0 with its addresses, if they are there; return what could not be.

        Raises Lost. A link of that name that is no dummy link was made by another program, and stays.
        """
        problems = self.remove_routes()
        with IPRoute() as route:
            found = route.link_lookup(ifname=VIP_LINK)
            for index in route.link_lookup(ifname=VIP_LINK, kind="dummy"):
                found.remove(index)
                try:
                    route.link("del", index=index)
                except NetlinkError as error:
                    problems.append(f"the dummy link {VIP_LINK}: {os.strerror(error.code)}")
        return problems + [f"the link {VIP_LINK}: it is no dummy link" for _ in found]

    def remove_routes(self) -> list[str]:
        """Delete our routes and return what could not be. Raises Lost."""
        routes = list(self._routes())
        refused = self.unbind(routes)
        return [f"route {format_ip(routes[i].address)}: {os.strerror(code)}" for i, code in refused.items()]

    def _message(self, vip: Vip, sequence: int, *, add: bool) -> bytes:
        if vip.form is VipForm.ADDRESS:
            return address_message(vip.address, self._index, sequence, add=add)
        # A route is deleted by the link that it goes to: one to lo may stand beside a stray one.
        link = self._strays.get(vip.address, 0) if vip.form is VipForm.STRAY else self._loopback
        start, middle, tail = route_frame(len(vip.address), link, add)
        return start + SEQUENCE.pack(sequence) + middle + vip.address + tail

    def _addresses(self) -> Iterator[tuple[int, bytes]]:
        """Yield (link index, address) of every address in the namespace."""
        for part in self._wire.dump(message(RTM_GETADDR, 0, IFADDRMSG.pack(0, 0, 0, 0, 0))):
            _, _, _, _, index = IFADDRMSG.unpack_from(part)
            fields = dict(attributes(part, IFADDRMSG.size))
            address = fields.get(IFA_LOCAL, fields.get(IFA_ADDRESS))
            if address is not None:
                yield index, bytes(address)

    def _routes(self) -> Iterator[Vip]:
        """Yield the VIPs that are routes of ours: the kernel lists no others, of which there may be a million."""
        for family in (socket.AF_INET, socket.AF_INET6):
            for part in self._listed(RTMSG.pack(family, 0, 0, 0, RT_TABLE_LOCAL, ROUTE_PROTOCOL, 0, RTN_LOCAL, 0)):
                _, _, _, _, table, protocol, _, kind, _ = RTMSG.unpack_from(part)
                if (table, protocol, kind) == (RT_TABLE_LOCAL, ROUTE_PROTOCOL, RTN_LOCAL):
                    yield self._vip(part)

    def _vip(self, part: bytes) -> Vip:
        """Read a route of ours, and remember the link of a stray one, and which one has a source of its own."""
        fields = dict(attributes(part, RTMSG.size))
        vip, link = read_route(fields, self._loopback)
        if RTA_PREFSRC in fields:
            self._sourced.add(vip.address)
        if vip.form is VipForm.STRAY:
            self._strays[vip.address] = link
        return vip

    def _listed(self, like: bytes) -> list[bytes]:
        try:
            return self._strict_wire.dump(message(RTM_GETROUTE, 0, like))
        except KernelError as error:
            if error.errno == errno.ENOENT:
                return []  # a family without any local address has no such table
            raise


def read_route(fields: Mapping[int, memoryview], loopback: int) -> tuple[Vip, int]:
    """Return the VIP that a route of ours makes local, and the index of the link it goes to (0: none)."""
    link = U32.unpack(fields[RTA_OIF])[0] if RTA_OIF in fields else 0
    return Vip(bytes(fields[RTA_DST]), VipForm.ROUTE if link == loopback else VipForm.STRAY), link


def _broadcasts(address: bytes, prefix: int, fields: Mapping[int, memoryview]) -> set[bytes]:
    """Return the broadcast addresses of an IPv4 subnet; one of two addresses has none (RFC 3021)."""
    found = {bytes(fields[IFA_BROADCAST])} if IFA_BROADCAST in fields else set()
    if prefix < 31:
        found.add((int.from_bytes(address) | (1 << 32 - prefix) - 1).to_bytes(4))
    return found


def reserved(links: Links, nameservers: Iterable[bytes]) -> Iterator[Reserved]:
    """Yield what is the node's own, and what it depends on: gateways, tunnels, DNS servers. Raises Lost."""
    yield from links.subnets()
    for address in links.gateways():
        yield Reserved(address, "a gateway")
    for address in links.tunnel_ends():
        yield Reserved(address, "a node behind a tunnel")
    for address in nameservers:
        yield Reserved(address, "a DNS server", DNS_PORT)
