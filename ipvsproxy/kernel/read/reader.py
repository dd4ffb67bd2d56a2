"""The kernel read and never changed: what `explain`, `show`, `diff` and `doctor` know of this node.

Everything is asked when it is wanted, one question for one thing, so that a look at one frontend costs the same on
a node with fifty thousand of them. Only `servers` and `elements` read a whole table. Must be closed.
"""

import errno
import socket
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from typing import Self

from ipvsproxy.base.address import address_family
from ipvsproxy.base.names import TABLE
from ipvsproxy.kernel import host
from ipvsproxy.kernel.elements import ElementReader
from ipvsproxy.kernel.ipvs_reader import IpvsReader
from ipvsproxy.kernel.links import Links, reserved
from ipvsproxy.kernel.listeners import Listeners
from ipvsproxy.kernel.read.connections import Connection
from ipvsproxy.kernel.read.counters import parse_real, parse_virtual
from ipvsproxy.kernel.read.masquerade_source import Own, masquerade_source
from ipvsproxy.kernel.read.tracked import tracked
from ipvsproxy.kernel.ruleset import Ruleset
from ipvsproxy.kernel.wire.ipvs_records import native_u32
from ipvsproxy.kernel.wire.netlink import (
    KernelError,
    Wire,
    attribute,
    attributes,
    message,
)
from ipvsproxy.kernel.wire.nfnetlink import NETLINK_NETFILTER
from ipvsproxy.kernel.wire.rtnetlink import (
    NETLINK_ROUTE,
    RTA_DST,
    RTA_GATEWAY,
    RTA_OIF,
    RTA_PREFSRC,
    RTM_F_FIB_MATCH,
    RTM_GETROUTE,
    RTMSG,
    RTN_LOCAL,
)
from ipvsproxy.plan.host_ports import Port
from ipvsproxy.plan.node import Reserved
from ipvsproxy.plan.records import DestinationRecord, ElementMatch, Route, ServerRecord
from ipvsproxy.plan.state import FrontendKey, ServerState, Vip
from ipvsproxy.ruleset.elements import ElementKey, ElementOwner, Rest, Value
from ipvsproxy.ruleset.schema import SETS, SetSchema

NO_ROUTE = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ESRCH, errno.EACCES, errno.EINVAL)
"""The error of the kernel where no route leads, or one that forbids: EACCES prohibit, EINVAL blackhole."""


class KernelReader:
    """A node's kernel, read only. Every method raises KernelError when the kernel refuses to tell."""

    def __init__(self) -> None:
        self._elements = ElementReader(TABLE)
        self._route = Wire(NETLINK_ROUTE)
        self._conntrack = Wire(NETLINK_NETFILTER)
        self._links = Links()
        self._ruleset = Ruleset(TABLE)
        self._listeners = Listeners()
        self._ipvs: IpvsReader | None = None
        self._own: list[Own] = []
        with suppress(KernelError):  # a kernel without IPVS has no servers
            self._ipvs = IpvsReader()

    def close(self) -> None:
        """Close all sockets."""
        wires = self._elements, self._route, self._conntrack, self._links, self._ruleset, self._listeners
        for opened in wires:
            opened.close()
        if self._ipvs is not None:
            self._ipvs.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # IPVS

    @property
    def has_ipvs(self) -> bool:
        """Whether the kernel has IPVS at all."""
        return self._ipvs is not None

    def server(self, key: FrontendKey) -> ServerRecord | None:
        """Return a virtual server, None where there is none."""
        record = self._ipvs.service(key) if self._ipvs is not None else None
        return parse_virtual(record) if record is not None else None

    def servers(self) -> list[ServerRecord]:
        """Return all virtual servers but firewall-mark ones, sorted."""
        records = self._ipvs.services() if self._ipvs is not None else []
        return sorted(filter(None, map(parse_virtual, records)))

    def destinations(self, key: FrontendKey) -> Sequence[DestinationRecord]:
        """Return the destinations of a virtual server, sorted; none for one that is gone."""
        records = self._ipvs.destinations(key) if self._ipvs is not None else []
        return sorted(parse_real(record, len(key.address)) for record in records)

    def server_states(self) -> dict[FrontendKey, ServerState]:
        """Return all servers with their destinations, as the shadow has them."""
        return {
            virtual.key: ServerState(
                virtual.server, {real.destination: real.attributes for real in self.destinations(virtual.key)}
            )
            for virtual in self.servers()
        }

    # The ruleset

    def has_table(self) -> bool:
        """Whether our nft table is there."""
        return bool(self._ruleset.stamp())

    def find(self, kind: SetSchema, owner: ElementOwner, rest: Rest = None) -> ElementMatch | None:
        """Look one element up in a set or map, by an interval that holds `rest` where the set has intervals."""
        found = self._elements.find(kind, owner, rest)
        return ElementMatch(*found) if found else None

    def elements(self, kind: SetSchema) -> dict[ElementKey, Value]:
        """Return all elements of a set or map with their values ('' in a plain set)."""
        return self._elements.all(kind)

    def all_elements(self) -> dict[ElementKey, Value]:
        """Return all elements of our tables, as the shadow has them."""
        return {slot: value for kind in SETS.values() for slot, value in self.elements(kind).items()}

    # Connection tracking

    def tracked(self, frontends: Collection[FrontendKey]) -> Iterator[Connection]:
        """Yield the connections of frontends on the short path; without any, nothing is read."""
        return tracked(self._conntrack, frontends)

    # Addresses and routes

    def has_link(self) -> bool:
        """Whether kube-ipvs0 is there."""
        return self._links.look()

    def vips(self) -> set[Vip]:
        """Return the VIPs that are there, in both forms."""
        self._links.look()
        return self._links.vips()

    def other_addresses(self) -> frozenset[bytes]:
        """Return the addresses of all links but kube-ipvs0."""
        self._links.look()
        return self._links.other_addresses()

    def listening(self) -> frozenset[Port]:
        """Return the ports on which programs of this node listen."""
        return self._listeners.ports()

    def senders(self) -> dict[str, bytes]:
        """Return the links with IPv4 addresses, each with its first one."""
        self._links.look()
        return self._links.senders()

    def reserved(self) -> Iterator[Reserved]:
        """Yield the addresses that this node depends on."""
        return reserved(self._links, host.nameservers())

    def masquerade_source(self, route: Route, address: bytes) -> bytes | None:
        """Return the source that masquerading gives what goes to an address by a route, None if that is unknown.

        IPv6: that of the route, unless an administrator has chosen one for it, which masquerading passes over.
        """
        if len(address) == 4:
            self._own = self._own or [Own(*own) for own in self._links.own()]
            link = socket.if_nametoindex(route.link) if route.link else 0
            return masquerade_source(self._own, link, route.gateway or address)
        entry = dict(attributes(self._ask_route(address, RTM_F_FIB_MATCH), RTMSG.size))
        return None if RTA_PREFSRC in entry else route.source

    def route(self, address: bytes) -> Route | None:
        """Return the way to an address, None where there is none."""
        try:
            answer = self._ask_route(address)
        except KernelError as error:
            if error.errno in NO_ROUTE:
                return None
            raise
        kind = RTMSG.unpack_from(answer)[7]
        fields = dict(attributes(answer, RTMSG.size))
        source, gateway = (bytes(fields[n]) if n in fields else None for n in (RTA_PREFSRC, RTA_GATEWAY))
        return Route(kind == RTN_LOCAL, _link_name(fields), source, gateway)

    def _ask_route(self, address: bytes, flags: int = 0) -> bytes:
        body = RTMSG.pack(address_family(len(address)), len(address) * 8, 0, 0, 0, 0, 0, 0, flags) + attribute(
            RTA_DST, address
        )
        return self._route.request(message(RTM_GETROUTE, 0, body))


def _link_name(fields: dict[int, memoryview]) -> str:
    try:
        return socket.if_indextoname(native_u32(fields[RTA_OIF]))
    except (OSError, KeyError):
        return ""
