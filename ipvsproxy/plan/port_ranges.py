"""Virtual servers for several ports of a VIP: ranges of ports, and one affinity for all ports of a Service.

IPVS takes port 0 of an address and protocol for all its ports that have no server of their own, if the server has
affinity: what a client asks for at several ports goes to one endpoint, with the port that it has asked for. The
ruleset lets in only what is in a range. Deterministic, no I/O.
"""

from collections.abc import Iterable, Iterator, Sequence
from operator import itemgetter

from msgspec.structs import replace

from ipvsproxy.base.frontend import EVERY_PORT, FTP_PORT, FrontendKey
from ipvsproxy.plan.model import EndpointSlice, Protocol, Service, ServicePort, SlicePort
from ipvsproxy.plan.state import Frontend
from ipvsproxy.plan.tally import EXTERNAL_IP, Tier
from ipvsproxy.ruleset.elements import PortRange

AFFINITY_SECONDS = 10800
"""Where a Service has no affinity of its own: what the API has by default."""
ONLY_WITH_IPVS = "ranges of ports: only with IPVS"
PortRanges = tuple[tuple[Protocol, int, int], ...]
"""Protocol, first and last port of each; those of a protocol are in order and do not overlap."""
FTP = (Protocol.TCP, FTP_PORT, FTP_PORT)
Planned = Sequence[tuple[Tier, Frontend]]


def ports_of_one_affinity(service: Service, slices: Sequence[EndpointSlice]) -> tuple[PortRanges, list[str]]:
    """Return the ports of a Service that have one affinity, and why others have one each."""
    if not service.affinity_seconds:
        return (), ["affinity-scope has no effect without sessionAffinity ClientIP"]
    if service.external_local or service.internal_local:
        return (), ["each port has an affinity of its own: a traffic policy is Local"]
    found, complaints = list[tuple[Protocol, int, int]](), list[str]()
    for protocol in dict.fromkeys(port.protocol for port in service.ports):
        ports = [port for port in service.ports if port.protocol == protocol]
        if len(ports) < 2 or (service.affinity_engine and protocol is Protocol.UDP):
            continue
        if all(_has_same_numbers(piece, ports) for piece in slices if piece.endpoints):
            found += [(protocol, port.port, port.port) for port in ports]
        else:
            complaints.append(
                f"each {protocol.name} port has an affinity of its own: endpoints do not have all ports, by the"
                " numbers that the Service has"
            )
    return tuple(sorted(found)), complaints


def _has_same_numbers(piece: EndpointSlice, ports: Iterable[ServicePort]) -> bool:
    numbers = {(port.name, port.protocol): port.port for port in piece.ports}
    return all(numbers.get((port.name, port.protocol)) == port.port for port in ports)


def with_ftp(
    service: Service, slices: Sequence[EndpointSlice], ranges: PortRanges
) -> tuple[PortRanges, PortRanges, list[str]]:
    """Return ranges that can be served, the port of FTP where it must be one of them, and complaints.

    IPVS takes TCP ports from 1024 on for data connections of a server with port 21 at the same address before it
    looks for one with port 0, and remembers clients of both as if they were one (__ip_vs_service_find,
    ip_vs_sched_persist). So there must be no such server beside the one for ranges.
    """
    ftp = [port for port in service.ports if (port.protocol, port.port) == FTP[:2]]
    if not ftp or all(protocol != Protocol.TCP for protocol, _, _ in ranges):
        return ranges, (), []
    if all(_has_same_numbers(piece, ftp) for piece in slices if piece.endpoints):
        return ranges, (FTP,), []
    rest = tuple(item for item in ranges if item[0] != Protocol.TCP)
    return rest, (), [f"ranges of TCP ports are not served: endpoints do not have port {FTP_PORT} by this number"]


def together(ranges: PortRanges, ports: PortRanges) -> PortRanges:
    """Return ranges with single ports that are in none of them."""
    outside = [port for port in ports if not any(port[0] == proto and a <= port[1] <= b for proto, a, b in ranges)]
    return tuple(sorted([*ranges, *outside]))


def served_ranges(service: Service, ranges: PortRanges) -> tuple[Service | None, list[str]]:
    """Return a Service whose ports are all ranges of one protocol, None for nothing, and what it does not get."""
    complaints = []
    if service.external_local and service.internal_local:
        return None, ["port ranges are not served: both traffic policies are Local"]
    if service.source_ranges and service.load_balancer_ips:
        if service.port_ranges:
            complaints.append(
                "port ranges are not served at load balancer addresses, since these have source ranges"
            )
        service = replace(service, load_balancer_ips=())
    protocols = dict.fromkeys(protocol for protocol, _, _ in ranges)
    return replace(
        service,
        ports=tuple(ServicePort(protocol.name, protocol, EVERY_PORT) for protocol in protocols),
        source_ranges=(),
        affinity_seconds=service.affinity_seconds or AFFINITY_SECONDS,
        affinity_engine="",
        health_check_port=0,
    ), complaints


def slices_of(slices: Iterable[EndpointSlice], ranged: Service) -> list[EndpointSlice]:
    """Return slices whose endpoints have every port."""
    ports = tuple(SlicePort(port.name, port.protocol, EVERY_PORT) for port in ranged.ports)
    return [replace(piece, ports=ports) for piece in slices if piece.ports]


def with_ranges(planned: Iterable[tuple[Tier, Frontend]], ranges: PortRanges) -> Iterator[tuple[Tier, Frontend]]:
    """Yield frontends with their ranges, but none at an address of the node: all its ports are its own."""
    for tier, frontend in planned:
        own = tuple(PortRange(first, last) for proto, first, last in ranges if proto == frontend.key.protocol)
        if frontend.bind:
            reason = frontend.path_reason and ONLY_WITH_IPVS
            yield tier, replace(frontend, port_ranges=own, views=(), path_reason=reason)


def merged(single: Planned, ranged: Planned, shared: PortRanges) -> Planned:
    """Return frontends in the order of tiers; those with ranges take the place of `shared` ports at their address.

    Where they take the place of none, they are what a limit spares last.
    """
    replaced = {
        FrontendKey(key.address, protocol, port)
        for key in (found.key for _, found in ranged)
        for protocol, port, _ in shared
        if protocol == key.protocol
    }
    kept = [(tier, found) for tier, found in single if found.key not in replaced]
    sharing = {protocol for protocol, _, _ in shared}
    extra = [(tier if found.key.protocol in sharing else EXTERNAL_IP, found) for tier, found in ranged]
    return sorted([*kept, *extra], key=itemgetter(0))
