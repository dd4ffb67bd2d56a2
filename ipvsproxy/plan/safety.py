"""Which addresses a Service may have on this node, and which would cut the node off or take what is another's.

Deterministic, no I/O. A VIP becomes a local address of the node: whatever else was reached there is not reached
any more. The API server gives ClusterIPs from a range of its own, so they are not checked; external IPs are
written by anyone who may write a Service (CVE-2020-8554), load balancer IPs by a controller. What is refused costs
the Service that address and no more.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import msgspec

from ipvsproxy.base.address import (
    Ranges,
    family,
    format_ip,
    is_link_local,
    is_loopback,
    is_multicast,
    is_unspecified,
    parse_cidr,
)
from ipvsproxy.base.frontend import EVERY_PORT
from ipvsproxy.config import Config
from ipvsproxy.plan.addresses import Addresses
from ipvsproxy.plan.metadata import METADATA_SERVICES
from ipvsproxy.plan.model import Service
from ipvsproxy.plan.node import NodeFacts
from ipvsproxy.plan.state import Claim, FrontendKey
from ipvsproxy.plan.waiting import RankedService

HOST_PORTS = {22: "ssh", 10250: "the kubelet"}
"""Ports of a node's own addresses without which it is lost; no Service gets them there."""
SPECIAL = {
    "an unspecified address": is_unspecified,
    "a loopback address": is_loopback,
    "a link-local address": is_link_local,
    "a multicast or broadcast address": is_multicast,
}


NOTHING_KNOWN = Addresses()
LISTS_NODES = "another node's, listed by a load balancer"
NOT_LOOKED_UP = "not yet known whether it belongs to a node"


class AddressRefusal(NamedTuple):
    """An address of a Service that is not served, or one port of it (0: all of them), and why.

    `protocol` is the one of the port (0: all of them). `quiet`: no mistake of the Service, so no Event reports it.
    """

    address: bytes
    port: int
    reason: str
    protocol: int = 0
    quiet: bool = False

    def __str__(self) -> str:
        port = f", port {self.port}" if self.port else ""
        return f"{format_ip(self.address)}{port}: {self.reason}"


def has_external_ips(service: Service) -> bool:
    """Whether a Service asks for addresses that are judged."""
    return bool(service.external_ips or service.load_balancer_ips)


def judge(
    service: Service, node: NodeFacts, config: Config, known: Addresses = NOTHING_KNOWN
) -> tuple[AddressRefusal, ...]:
    """Return what a Service does not get of the addresses it asks for, in the families that are served.

    An external IP that a load balancer has given it as well is judged as the load balancer's.
    """
    if not has_external_ips(service):
        return ()
    return tuple(_Judge(service, node, config, known).refusals())


def without(service: Service, refusals: Sequence[AddressRefusal]) -> Service:
    """Return a Service without the addresses that are refused as a whole."""
    gone = {refusal.address for refusal in refusals if not refusal.port}
    return msgspec.structs.replace(
        service,
        external_ips=tuple(address for address in service.external_ips if address not in gone),
        load_balancer_ips=tuple(address for address in service.load_balancer_ips if address not in gone),
    )


def refused_ports(refusals: Iterable[AddressRefusal]) -> frozenset[tuple[bytes, int, int]]:
    """Return what is refused of single ports, as `is_refused` takes it: address, port, protocol (0: all)."""
    return frozenset((refusal.address, refusal.port, refusal.protocol) for refusal in refusals if refusal.port)


def is_refused(key: FrontendKey, refused: Collection[tuple[bytes, int, int]]) -> bool:
    """Whether one of the refused ports is a frontend's; with ranges of ports a frontend has all of its address."""
    of_key = (0, key.protocol)
    if key.port == EVERY_PORT:
        return any(key.address == address and protocol in of_key for address, _, protocol in refused)
    return any((key.address, key.port, protocol) in refused for protocol in of_key)


class _Judge:
    """Judges the addresses of one Service. `given` are those that a controller chose, not the Service's author."""

    def __init__(self, service: Service, node: NodeFacts, config: Config, known: Addresses) -> None:
        self._service, self._node, self._config, self._known = service, node, config, known
        self._given = frozenset(service.load_balancer_ips)
        self._ports = frozenset(port.port for port in service.ports)
        self._in_use = sorted({(port.protocol.value, port.port) for port in service.ports} & node.ports_in_use)
        # What names a node names nothing but nodes, as ServiceLB of k3s does: it has no addresses of its own.
        self._lists_nodes = any(a in node.reported or known.is_node(a) for a in self._given)

    def refusals(self) -> Iterator[AddressRefusal]:
        asked = self._service.external_ips if self._config.allow_external_ips else ()
        for address in dict.fromkeys((*asked, *self._service.load_balancer_ips)):
            if family(address) in self._config.families:
                yield from self._judge(address)

    def _judge(self, address: bytes) -> Iterator[AddressRefusal]:
        given = address in self._given
        if reason := _special(address) or _out_of_range(address, self._config, given=given):
            yield AddressRefusal(address, 0, reason)
        elif refusal := self._of_others(address, given=given):
            yield refusal
        elif address in self._node.link_addresses:
            yield from self._taken_ports(address)
        else:
            yield from self._ports_of_others(address, Claim.LOAD_BALANCER if given else Claim.EXTERNAL)

    def _ports_of_others(self, address: bytes, claim: Claim) -> Iterator[AddressRefusal]:
        """What a Service has by one server for many ports is not taken from it by a server for one of them."""
        owner = RankedService(self._service.created, self._service.key)
        for port in self._service.ports:
            if self._known.ports.is_taken(address, port, claim, owner):
                yield AddressRefusal(address, port.port, "another Service has this port", port.protocol)

    def _of_others(self, address: bytes, *, given: bool) -> AddressRefusal | None:
        """What belongs to others stays theirs, unless the operator specifies otherwise."""
        node, refusal = self._node, None
        is_here = address in node.own_addresses or address in node.link_addresses
        if address not in _ranges(self._config.trusted_ip_ranges):
            refusal = (
                self._of_this_node(address, given=given) if is_here else self._of_objects(address, given=given)
            )
        return refusal or (None if is_here else self._reserved(address, given=given))

    def _of_this_node(self, address: bytes, *, given: bool) -> AddressRefusal | None:
        if address in self._node.own_addresses and not given:
            return AddressRefusal(address, 0, "an address of this node")
        return None

    def _taken_ports(self, address: bytes) -> Iterator[AddressRefusal]:
        """An own address of the node is served beside the node's programs, but for ports that these have."""
        node = self._node
        taken = HOST_PORTS | {known.port: known.role for known in node.reserved_at.get(address, ())}
        for number in sorted(self._ports & taken.keys()):
            yield AddressRefusal(address, number, f"the node's own address, where this port is {taken[number]}")
        for protocol, number in self._in_use:
            if number not in taken:
                yield AddressRefusal(
                    address, number, "the node's own address, where this port is in use", protocol
                )

    def _of_objects(self, address: bytes, *, given: bool) -> AddressRefusal | None:
        known = self._known
        if given and (self._lists_nodes or known.is_node(address)):
            return AddressRefusal(address, 0, LISTS_NODES, quiet=True)
        if reason := self._whose(address, given=given):
            return AddressRefusal(address, 0, reason)
        if known.is_unknown(address) and address not in self._node.reserved_at:
            return AddressRefusal(address, 0, NOT_LOOKED_UP, quiet=True)
        return None

    def _whose(self, address: bytes, *, given: bool) -> str:
        known = self._known
        if known.is_node(address):
            return "an address of another node"
        if address in METADATA_SERVICES:
            return f"the address of a service that {METADATA_SERVICES[address]} has for its machines"
        if known.in_pod_range(address) or any(address in cidr for cidr in self._node.pod_cidrs):
            return "in the range of pods"
        if not given and known.is_pod(address):
            return "the address of a pod"
        if not given and known.is_given(address):
            return "the load balancer address of another Service"
        return ""

    def _reserved(self, address: bytes, *, given: bool) -> AddressRefusal | None:
        """What the node depends on stays where it is, unless a load balancer has this Service be just that."""
        for known in self._node.reserved_at.get(address, ()):
            if not (given and known.port in self._ports):
                return AddressRefusal(
                    address, 0, f"the address of {known.role}, which this node could not reach any more"
                )
        return None


def _special(address: bytes) -> str:
    return next((words for words, is_one in SPECIAL.items() if is_one(address)), "")


def _out_of_range(address: bytes, config: Config, *, given: bool) -> str:
    if address in _ranges(config.denied_ip_ranges):
        return "in --denied-ip-ranges"
    allowed = _ranges(config.external_ip_ranges)
    if given or not allowed or address in allowed:
        return ""
    return "not in --external-ip-ranges"


@lru_cache(maxsize=8)
def _ranges(texts: tuple[str, ...]) -> Ranges:
    return Ranges(map(parse_cidr, texts))
