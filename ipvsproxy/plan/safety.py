"""Which addresses a Service may have on this node, and which would cut the node off or take what is another's.

Pure. A VIP becomes a local address of the node: whatever else was reached there is not reached any more. The API
server gives ClusterIPs from a range of its own, so they are not judged; external IPs are written by whoever may
write a Service (CVE-2020-8554), load balancer IPs by a controller. What is refused costs the Service that address
and no more.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import msgspec

from ipvsproxy.address import (
    Cidr,
    family,
    format_ip,
    is_link_local,
    is_loopback,
    is_multicast,
    is_unspecified,
    parse_cidr,
)
from ipvsproxy.config import Config
from ipvsproxy.plan.model import Service
from ipvsproxy.plan.node import NodeFacts

HOST_PORTS = {22: "ssh", 10250: "the kubelet"}
"""Ports of a node's own addresses without which it is lost; no Service gets them there."""
SPECIAL = {
    "an unspecified address": is_unspecified,
    "a loopback address": is_loopback,
    "a link-local address": is_link_local,
    "a multicast or broadcast address": is_multicast,
}


class Refusal(NamedTuple):
    """An address of a Service that is not served, or one port of it (0: all of them), and why."""

    address: bytes
    port: int
    reason: str

    def __str__(self) -> str:
        port = f", port {self.port}" if self.port else ""
        return f"{format_ip(self.address)}{port}: {self.reason}"


def has_external_ips(service: Service) -> bool:
    """Whether a Service asks for addresses that are judged."""
    return bool(service.external_ips or service.load_balancer_ips)


def judge(service: Service, node: NodeFacts, config: Config) -> tuple[Refusal, ...]:
    """Return what a Service does not get of the addresses it asks for, in the families that are served.

    An external IP that a load balancer has given it as well is judged as the load balancer's.
    """
    if not has_external_ips(service):
        return ()
    given = service.load_balancer_ips
    asked = [address for address in service.external_ips if address not in given]
    return tuple(
        refusal
        for addresses, trusted in ((asked if config.allow_external_ips else (), False), (given, True))
        for address in addresses
        if family(address) in config.families
        for refusal in _judge(address, service, node, config, trusted=trusted)
    )


def without(service: Service, refusals: Sequence[Refusal]) -> Service:
    """Return a Service without the addresses that are refused as a whole."""
    gone = {refusal.address for refusal in refusals if not refusal.port}
    return msgspec.structs.replace(
        service,
        external_ips=tuple(address for address in service.external_ips if address not in gone),
        load_balancer_ips=tuple(address for address in service.load_balancer_ips if address not in gone),
    )


def _judge(
    address: bytes, service: Service, node: NodeFacts, config: Config, *, trusted: bool
) -> Iterator[Refusal]:
    """`trusted`: a controller chose the address, and not whoever wrote the Service."""
    reason = _special(address) or _out_of_range(address, config, trusted=trusted)
    if reason:
        yield Refusal(address, 0, reason)
    elif address in node.link_addresses:
        yield from _own_ports(address, service, node)
    else:
        yield from _of_others(address, service, node, trusted=trusted)


def _special(address: bytes) -> str:
    return next((words for words, is_one in SPECIAL.items() if is_one(address)), "")


def _out_of_range(address: bytes, config: Config, *, trusted: bool) -> str:
    allowed, denied = _ranges(config.external_ip_ranges), _ranges(config.denied_ip_ranges)
    if any(address in cidr for cidr in denied):
        return "in --denied-ip-ranges"
    mine = [cidr for cidr in allowed if family(cidr.network) == family(address)]
    if trusted or not allowed or any(address in cidr for cidr in mine):
        return ""
    return "not in --external-ip-ranges"


@lru_cache(maxsize=8)
def _ranges(texts: tuple[str, ...]) -> tuple[Cidr, ...]:
    return tuple(map(parse_cidr, texts))


def _own_ports(address: bytes, service: Service, node: NodeFacts) -> Iterator[Refusal]:
    """An own address of the node is served beside the node's programs, but for ports it cannot do without."""
    taken = HOST_PORTS | {known.port: known.role for known in node.reserved if known.address == address}
    for number in sorted({port.port for port in service.ports} & taken.keys()):
        yield Refusal(address, number, f"the node's own address, where this port is {taken[number]}")


def _of_others(address: bytes, service: Service, node: NodeFacts, *, trusted: bool) -> Iterator[Refusal]:
    """What the node depends on stays where it is, unless a load balancer says that this Service is just that."""
    if any(address in cidr for cidr in node.pod_cidrs):
        yield Refusal(address, 0, "in the range of pods")
        return
    for known in node.reserved:
        if known.address == address and not (trusted and any(port.port == known.port for port in service.ports)):
            yield Refusal(address, 0, f"the address of {known.role}, which this node could not reach any more")
            return
