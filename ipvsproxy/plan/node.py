"""The facts about this node that decisions depend on, from its Node object, its links and the settings.

Deterministic, no I/O: `facts` is called again whenever the Node object or an address of a link changes; equal
facts mean that nothing has to be planned anew. Rules: contract 1.11, 1.12, 4.2 and 4.3.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

from ipvsproxy.base.address import (
    Cidr,
    family,
    format_ip,
    is_loopback,
    is_node_address,
    is_unspecified,
    parse_cidr,
)
from ipvsproxy.config import PRIMARY, Config, DetectLocalMode
from ipvsproxy.plan.model import Node

LONGEST_LINK_NAME = 15
"""IFNAMSIZ without the zero at the end."""


THIS_NODE = "this node"
"""Role of an address that is the node's own, and not one that programs move from node to node."""

NAMES_SHOWN = 10


class Missing(NamedTuple):
    """A Node that is not there: the names of those that are, and which of them this host may be."""

    name: str
    others: tuple[str, ...] = ()
    likely: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"Node {self.name} not found"

    @property
    def effect(self) -> str:
        """What follows; endpoints that are on a node of this name show that the name is right."""
        if self.name in self.others:
            return "its zone, addresses and pod ranges are unknown"
        return "Local policies and topology hints find no endpoint on this node"

    @property
    def shown(self) -> list[str]:
        """The first few of the names, those that may be meant before others."""
        return list(dict.fromkeys((*self.likely, *self.others)))[:NAMES_SHOWN]

    def summary(self) -> dict[str, object]:
        """Return what there is, for a log line."""
        more = len(self.others) - len(self.shown)
        found = {"nodes": self.shown, "more": more, "likely": list(self.likely[:NAMES_SHOWN])}
        return {"node": self.name, **{name: value for name, value in found.items() if value}}


class Reserved(NamedTuple):
    """An address that the node depends on: what it is, and its port there (0: any)."""

    address: bytes
    role: str
    port: int = 0


@dataclass(frozen=True)
class NodeFacts:
    """What the planner knows of its node.

    `link_addresses` are on links other than kube-ipvs0; a VIP among them is not ours to bind.
    `nodeport_addresses` is the part of them on which NodePorts answer. `addresses` are the node IPs, one a family,
    the primary one first.
    `senders` are the links with IPv4 addresses, each with its first one.
    `reported` are the addresses of its Node object; `own_addresses` are these and the first ones of its links'
    subnets: not what keepalived and the like put beside them.
    `ports_in_use` are (protocol, port) on which programs of the host listen.
    `reserved` are addresses that no Service may take from the node (`plan.safety`).
    `pod_cidrs` and `pod_interfaces` detect local pods; `detects` names the families they work for.
    """

    name: str
    zone: str = ""
    addresses: tuple[bytes, ...] = ()
    link_addresses: frozenset[bytes] = frozenset()
    nodeport_addresses: tuple[bytes, ...] = ()
    pod_cidrs: tuple[Cidr, ...] = ()
    pod_interfaces: tuple[str, ...] = ()
    reported: frozenset[bytes] = frozenset()
    own_addresses: frozenset[bytes] = frozenset()
    ports_in_use: frozenset[tuple[int, int]] = frozenset()
    reserved: tuple[Reserved, ...] = ()
    senders: Mapping[str, bytes] = field(default_factory=dict)

    @cached_property
    def reserved_at(self) -> Mapping[bytes, Sequence[Reserved]]:
        """`reserved` by address."""
        found: dict[bytes, list[Reserved]] = {}
        for known in self.reserved:
            found.setdefault(known.address, []).append(known)
        return found

    @cached_property
    def detects(self) -> frozenset[int]:
        """Families in which a local pod can be distinguished from other clients."""
        if self.pod_interfaces:
            return frozenset((4, 6))
        return frozenset(family(cidr.network) for cidr in self.pod_cidrs)

    def basic(self) -> "NodeFacts":
        """Return the facts without those on which ClusterIPs and NodePorts do not depend."""
        nothing: frozenset[bytes] = frozenset()
        kept = replace(self, reserved=(), senders={}, reported=nothing, own_addresses=nothing)
        return replace(kept, ports_in_use=frozenset())

    def summary(self) -> dict[str, object]:
        """Return the facts as text, for a log line."""
        return {
            "node": self.name,
            "zone": self.zone or None,
            "addresses": list(map(format_ip, self.addresses)),
            "nodePortAddresses": list(map(format_ip, self.nodeport_addresses)),
            "podCIDRs": list(map(str, self.pod_cidrs)),
            "podInterfaces": list(self.pod_interfaces),
            "ownAddresses": len(self.own_addresses),
            "reserved": len(self.reserved),
        }


def facts(
    config: Config,
    node: Node | None,
    link_addresses: Iterable[bytes],
    reserved: Iterable[Reserved] = (),
    senders: Mapping[str, bytes] | None = None,
    ports_in_use: Iterable[tuple[int, int]] = (),
) -> NodeFacts:
    """Combine what is known; without a Node object the host's own links stand in for its addresses.

    Of `reserved`, those with the role THIS_NODE become `own_addresses`.
    """
    reserved = frozenset(reserved)
    own = {known.address for known in reserved if known.role == THIS_NODE}
    links = frozenset(address for address in link_addresses if is_node_address(address))
    known = _one_a_family(node.addresses) if node else []
    addresses = _bound(config.bind_address, known or sorted(links))
    pod_cidrs = node.pod_cidrs if node else ()
    return NodeFacts(
        name=config.node_name,
        zone=node.zone if node else "",
        addresses=addresses,
        link_addresses=links,
        nodeport_addresses=tuple(sorted(_nodeport_addresses(config, _bound(config.bind_address, known), links))),
        pod_cidrs=tuple(_detector_cidrs(config, pod_cidrs)),
        pod_interfaces=_detector_interfaces(config),
        reported=frozenset(node.addresses if node else ()),
        own_addresses=frozenset(own.union(node.addresses if node else ())),
        ports_in_use=frozenset(ports_in_use),
        reserved=tuple(sorted(known for known in reserved if known.role != THIS_NODE)),
        senders=senders or {},
    )


def missing(name: str, nodes: Iterable[Node], named: Iterable[str], links: Iterable[bytes]) -> Missing:
    """Return what there is in place of a Node: other `nodes`, and those that endpoints are `named` to be on.

    A Node may be meant that differs in case or in its domain, or has the name, or an address of this host's
    `links`, among its addresses.
    """
    known = {node.name: {format_ip(address) for address in node.addresses} for node in nodes}
    here = {name, *map(format_ip, links)}
    others = sorted(known.keys() | set(named))
    likely = [o for o in others if o != name and (_host(o) == _host(name) or known.get(o, set()) & here)]
    return Missing(name, tuple(others), tuple(likely))


def _host(name: str) -> str:
    """Return the host's part of a name, in small letters; an address has no domain."""
    small = name.lower()
    return small if small.replace(".", "").isdecimal() else small.partition(".")[0]


def blindness(config: Config, found: NodeFacts) -> str:
    """Return why local pods cannot be distinguished from outside clients, empty if they can (contract 1.12).

    Only the node's primary family counts: clusters with one family run on hosts with two.
    """
    primary = family(found.addresses[0]) if found.addresses else min(config.families)
    if primary in found.detects:
        return ""
    if config.detect_local_mode is DetectLocalMode.NODE_CIDR:
        what = f"detectLocalMode NodeCIDR, but Node {found.name} has no spec.podCIDRs of IPv{primary} (yet)"
    else:
        what = f"detectLocalMode ClusterCIDR, but clusterCIDR has no IPv{primary} range"
    return f"{what}: local pods count as outside clients"


def _bound(bind: bytes, addresses: Iterable[bytes]) -> tuple[bytes, ...]:
    """A bind address that is one replaces the node's addresses of its family and comes first (contract 1.11)."""
    if is_unspecified(bind):
        return tuple(addresses)
    return (bind, *(address for address in addresses if len(address) != len(bind)))


def _nodeport_addresses(config: Config, addresses: Iterable[bytes], links: frozenset[bytes]) -> Iterator[bytes]:
    """A family that no CIDR was given for means all addresses of it (contract 4.3, E-9)."""
    ranges = [parse_cidr(text) for text in config.nodeport_addresses if text != PRIMARY]
    if PRIMARY in config.nodeport_addresses:
        ranges += [Cidr(address, len(address) * 8) for address in _one_a_family(addresses)]
    for number in (4, 6):
        mine = [cidr for cidr in ranges if family(cidr.network) == number]
        everything = not mine or any(cidr.prefix == 0 for cidr in mine)
        for address in links:
            if family(address) == number and (everything or any(address in cidr for cidr in mine)):
                yield address


def _one_a_family(addresses: Iterable[bytes]) -> list[bytes]:
    first: dict[int, bytes] = {}
    for address in addresses:
        if not is_loopback(address):
            first.setdefault(family(address), address)
    return list(first.values())


def _detector_cidrs(config: Config, pod_cidrs: Iterable[Cidr]) -> Iterator[Cidr]:
    """The first CIDR of each family counts (contract 1.12)."""
    if config.detect_local_mode is DetectLocalMode.CLUSTER_CIDR:
        ranges: Iterable[Cidr] = [parse_cidr(text) for text in config.cluster_cidrs]
    elif config.detect_local_mode is DetectLocalMode.NODE_CIDR:
        ranges = pod_cidrs
    else:
        ranges = ()
    seen: set[int] = set()
    for cidr in ranges:
        if family(cidr.network) not in seen:
            seen.add(family(cidr.network))
            yield cidr


def _detector_interfaces(config: Config) -> tuple[str, ...]:
    if config.detect_local_mode is DetectLocalMode.BRIDGE_INTERFACE:
        return (config.pod_bridge_interface,)
    if config.detect_local_mode is DetectLocalMode.INTERFACE_NAME_PREFIX:
        prefix = config.pod_interface_name_prefix
        # One as long as names can be is a name, and nftables has no room for the star.
        return (prefix if len(prefix) == LONGEST_LINK_NAME else f"{prefix}*",)
    return ()
