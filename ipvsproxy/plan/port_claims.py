"""Ports that a Service has behind one virtual server for a whole address, which no external address may take.

IPVS asks a server of one port before the one for all others, so that a Service that claims such a port later, or
by a weaker claim, would take it from the one that has it. In: Services as they change. Out: whether a port of an
address is another's, at constant cost. Deterministic, no I/O.
"""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from ipvsproxy.config.annotation_values import ONE_FOR_ALL_PORTS
from ipvsproxy.plan.model import Protocol, Service, ServicePort
from ipvsproxy.plan.port_ranges import FTP, PortRanges, together
from ipvsproxy.plan.state import Claim
from ipvsproxy.plan.waiting import RankedService

LAST = 1 << 16
ClaimedPlace = tuple[bytes, Protocol]


class PortClaim(NamedTuple):
    """By what a Service has ports of one protocol at an address; the least of several is the strongest."""

    claim: Claim
    owner: RankedService
    ports: PortRanges

    def has(self, protocol: Protocol, port: int) -> bool:
        """Whether a port is among them."""
        place = bisect_right(self.ports, (protocol, port, LAST))
        return place > 0 and self.ports[place - 1][0] == protocol and port <= self.ports[place - 1][2]


class PortClaims:
    """The claims of all Services. With `one_affinity` those have one for all ports that do not choose."""

    def __init__(self, *, one_affinity: bool = False) -> None:
        self._one_affinity = one_affinity
        self._claims: dict[ClaimedPlace, list[PortClaim]] = {}

    def change(self, old: Service | None, new: Service | None) -> set[bytes]:
        """Record a Service; return the addresses of which another one has ports now, or has others."""
        before, after = self._of(old), self._of(new)
        changed: set[bytes] = set()
        if before == after:  # most have none
            return changed
        for place in before.keys() | after.keys():
            was, is_ = before.get(place), after.get(place)
            if was == is_:
                continue
            found = self._claims.setdefault(place, [])
            first = found[:1]
            if was is not None:
                del found[bisect_left(found, was)]
            if is_ is not None:
                insort(found, is_)
            if found[:1] != first:
                changed.add(place[0])
            if not found:
                del self._claims[place]
        return changed

    def is_taken(self, address: bytes, port: ServicePort, claim: Claim, owner: RankedService) -> bool:
        """Whether a port that a Service claims at an address is another's: the one server has one Service."""
        found = self._claims.get((address, port.protocol))
        if not found or found[0].owner.service == owner.service:
            return False
        return found[0][:2] < (claim, owner) and found[0].has(port.protocol, port.port)

    def _of(self, service: Service | None) -> Mapping[ClaimedPlace, PortClaim]:
        ports = self._ports(service) if service is not None else ()
        if service is None or not ports:
            return {}
        owner = RankedService(service.created, service.key)
        claims: dict[ClaimedPlace, PortClaim] = {}
        protocols = dict.fromkeys(protocol for protocol, _, _ in ports)
        for address, claim in _addresses(service):
            for protocol in protocols:
                claims.setdefault((address, protocol), PortClaim(claim, owner, ports))
        return claims

    def _ports(self, service: Service) -> PortRanges:
        """Return the ports of the server for all others; the port of FTP would take those of TCP from it."""
        chosen = "affinity_scope" in service.annotated
        is_one = service.affinity_scope == ONE_FOR_ALL_PORTS if chosen else self._one_affinity
        single = service.ports if is_one and service.affinity_seconds and len(service.ports) > 1 else ()
        if not single and not service.port_ranges:
            return ()
        ports = together(service.port_ranges, tuple((port.protocol, port.port, port.port) for port in single))
        return together(ports, (FTP,)) if any(protocol is Protocol.TCP for protocol, _, _ in ports) else ports


def _addresses(service: Service) -> Iterator[tuple[bytes, Claim]]:
    """Yield the addresses where such a server may be, the strongest claim to each first."""
    for address in service.cluster_ips:
        yield address, Claim.ALLOCATED
    for address in () if service.source_ranges else service.load_balancer_ips:
        yield address, Claim.LOAD_BALANCER
    for address in service.external_ips:
        yield address, Claim.EXTERNAL
