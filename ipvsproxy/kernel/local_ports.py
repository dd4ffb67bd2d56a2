"""NodePorts are kept out of the ports that the kernel chooses for connections of the node itself.

IPVS takes each packet to a NodePort for a Service, also the answer to a connection of the node that has this port
as its source (ip_vs_in, net/netfilter/ipvs/ip_vs_core.c): the connection never comes about. So where the range of
local ports (net.ipv4.ip_local_port_range, of IPv6 as well) and that of NodePorts overlap, the common part is added
to net.ipv4.ip_local_reserved_ports, beside what others have put there. What was added is recorded in the alias of
kube-ipvs0, since the kernel does not tell who has reserved a port, so that `cleanup` gives back just that.

A program that binds such a port itself, and explicitly, is not helped: the kernel offers no way to do so.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

import structlog
from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from ipvsproxy.base.errors import plain
from ipvsproxy.base.names import VIP_LINK
from ipvsproxy.kernel import host

RANGE = "net/ipv4/ip_local_port_range"
RESERVED = "net/ipv4/ip_local_reserved_ports"
RECORD = "ipvsproxy reserved ports "
LONGEST_ALIAS = 255
"""IFALIASZ without the zero at the end (include/uapi/linux/if.h)."""

log = structlog.get_logger()


def parse_ports(text: str) -> frozenset[int]:
    """Read ports as the kernel writes them, such as `8080,30000-32767`. Raises ValueError."""
    found: set[int] = set()
    for piece in filter(None, text.strip().split(",")):
        first, _, last = piece.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return frozenset(found)


def format_ports(ports: Iterable[int]) -> str:
    """Write ports as the kernel reads them: sorted, neighbours as ranges."""
    return ",".join(f"{first}-{last}" if last > first else f"{first}" for first, last in _ranges(sorted(ports)))


def _ranges(ports: list[int]) -> Iterator[tuple[int, int]]:
    first = 0
    for index, port in enumerate(ports):
        if index + 1 == len(ports) or ports[index + 1] != port + 1:
            yield ports[first], port
            first = index + 1


def local_range() -> range:
    """Return the range from which the kernel chooses source ports; empty where it does not tell."""
    try:
        first, last = map(int, (host.PROC_SYS / RANGE).read_text().split())
        return range(first, last + 1)
    except (OSError, ValueError):
        return range(0)


def unreserved(node_ports: str) -> frozenset[int]:
    """Return the NodePorts that the kernel may choose as source ports."""
    try:
        return frozenset(local_range()) & parse_ports(node_ports) - _reserved()
    except (OSError, ValueError):
        return frozenset()


class LocalPorts:
    """The reservation of NodePorts in this network namespace."""

    def __init__(self, node_ports: str) -> None:
        self._node_ports = node_ports
        self._ours: frozenset[int] | None = None
        self._refused = ""

    def reserve(self) -> None:
        """Reserve what overlaps and is not reserved; called again, it puts back what has changed since.

        What cannot be done is logged once, with the reason: Services do not depend on it.
        """
        try:
            self._reserve()
        except (OSError, ValueError, NetlinkError) as error:
            if str(error) != self._refused:
                self._refused = str(error)
                log.warning(
                    "Could not reserve NodePorts, connections of the node that get one as source port will fail",
                    sysctl=host.dotted(RESERVED), err=str(error),
                    hint="where /proc/sys is read-only, run once with --init-only where it is not",
                )  # fmt: skip

    def _reserve(self) -> None:
        if self._ours is None:
            self._ours = recorded()
        reserved = _reserved()
        others = reserved - self._ours
        local = frozenset(local_range())
        wanted = local & parse_ports(self._node_ports) - others
        if len(wanted) * 2 > len(local - others):
            raise ValueError("less than half of net.ipv4.ip_local_port_range would be left: choose another range")
        if (wanted or self._ours) and recorded() != wanted:
            # First, so that whatever happens next can be given back; a kube-ipvs0 that was made anew has no alias.
            record(wanted)
        self._ours = wanted
        if others | wanted != reserved:
            _write(others | wanted)
            log.info("Reserved NodePorts as local ports", ports=format_ports(wanted), sysctl=host.dotted(RESERVED))


def give_back() -> list[str]:
    """Take out of the reserved ports what was added for NodePorts; return what could not be done."""
    try:
        ours = recorded()
        if ours:
            _write(_reserved() - ours)
            record(frozenset())
    except (OSError, ValueError, NetlinkError) as error:
        return [f"{host.dotted(RESERVED)}: {plain(error)}"]
    return []


def _file() -> Path:
    return host.PROC_SYS / RESERVED


def _reserved() -> frozenset[int]:
    return parse_ports(_file().read_text())


def _write(ports: frozenset[int]) -> None:
    _file().write_text(f"{format_ports(ports)}\n")


def recorded() -> frozenset[int]:
    """Return the ports that are recorded as added by us. Raises ValueError, NetlinkError."""
    with IPRoute() as route:
        for link in route.link("dump", ifname=VIP_LINK):
            alias = link.get_attr("IFLA_IFALIAS") or ""
            if link.get_attr("IFLA_IFNAME") == VIP_LINK and alias.startswith(RECORD):
                return parse_ports(alias.removeprefix(RECORD))
    return frozenset()


def record(ports: frozenset[int]) -> None:
    """Record ports as added by us. Raises ValueError when they cannot be, NetlinkError."""
    alias = f"{RECORD}{format_ports(ports)}" if ports else ""
    if len(alias) > LONGEST_ALIAS:
        raise ValueError("other programs have reserved too many single ports among the NodePorts")
    with IPRoute() as route:
        for index in route.link_lookup(ifname=VIP_LINK):
            route.link("set", index=index, ifalias=alias)
