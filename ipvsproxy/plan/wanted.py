"""One Service and its endpoints into the frontends it should have on this node.

In: a Service, its slices, the facts of the node, the settings. Out: `Frontend` values, one for each address
and port on which the Service answers. Pure and independent of all other Services; what happens when two of
them claim one frontend is decided in `plan.ledger`, and which addresses it may not have in
`plan.safety`. Rules: contract 3.1, 4.3, 4.4, 4.9 to 4.12.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache

import msgspec

from ipvsproxy.address import Cidr, family
from ipvsproxy.config import Config
from ipvsproxy.plan.model import EndpointSlice, Protocol, Service, ServicePort
from ipvsproxy.plan.node import NodeFacts
from ipvsproxy.plan.safety import has_external_ips, judge, without
from ipvsproxy.plan.state import (
    ONE_PACKET,
    PERSISTENT,
    SCHED_1,
    SCHED_2,
    Claim,
    Destination,
    Frontend,
    FrontendKey,
    Masquerade,
    Server,
    Verdict,
)
from ipvsproxy.plan.topology import Backend, Choice, choose

SCHEDULER_FLAGS = {"mh": SCHED_1 | SCHED_2, "sh": SCHED_1}
"""A removed or draining destination must not refuse new connections, hence the fallback; mh
counts the client's port too, as in kube-proxy; sh does not, since one place per client is what it is for."""

HASHING = ("sh", "mh", "dh")
"""Schedulers that choose by a hash of addresses, and whose tables depend on the order of destinations."""

MADE_UP_BIT = 0x8000
"""What the made-up port of an inside view differs in from the real one, where that number is free."""


class View(msgspec.Struct, frozen=True, gc=False):
    """What one port of a Service looks like in one family: everything its frontends share."""

    service: Service
    port: ServicePort
    cluster_ip: bytes
    inside_port: int
    server: Server
    cluster: tuple[Destination, ...]
    local: tuple[Destination, ...]
    exists: bool
    hairpins: tuple[bytes, ...]
    detects: bool
    masquerade_all: bool
    quiet: bool
    drain_seconds: float
    serving: tuple[Destination, ...]


def plan_service(
    service: Service, slices: Iterable[EndpointSlice], node: NodeFacts, config: Config
) -> dict[FrontendKey, Frontend]:
    """Return the frontends of a Service by key, for both families."""
    frontends: dict[FrontendKey, Frontend] = {}
    slices = tuple(slices)
    inside_ports = _inside_ports(service)
    refused: frozenset[tuple[bytes, int]] = frozenset()
    if has_external_ips(service):
        service, refused = _permitted(service, node, config)
    for cluster_ip in service.cluster_ips:
        number = family(cluster_ip)
        if number not in config.families:
            continue
        for port, inside_port in zip(service.ports, inside_ports, strict=True):
            backends = backends_of(slices, port, number)
            choice = choose(backends, node.name, node.zone)
            view = _view(service, port, cluster_ip, inside_port, choice, node, config)
            if port.protocol is Protocol.UDP:
                view = msgspec.structs.replace(view, serving=_serving(backends))
            for frontend in _frontends(view, node):
                if (frontend.key.address, frontend.key.port) not in refused:
                    _add(frontend, frontends)
    return frontends


def _permitted(service: Service, node: NodeFacts, config: Config) -> tuple[Service, frozenset[tuple[bytes, int]]]:
    """Return the Service without addresses that it may not have, and the (address, port) of single ports."""
    refusals = judge(service, node, config)
    if refusals:
        service = without(service, refusals)
    if not config.allow_external_ips:
        service = msgspec.structs.replace(service, external_ips=())
    return service, frozenset((refusal.address, refusal.port) for refusal in refusals)


def _add(frontend: Frontend, frontends: dict[FrontendKey, Frontend]) -> None:
    """Where an address is of several kinds, the allocated or first one counts, with the ranges of the last."""
    known = frontends.get(frontend.key)
    if known is not None:
        stronger = frontend if frontend.claim < known.claim else known
        frontend = msgspec.structs.replace(stronger, ranges=frontend.ranges)
    frontends[frontend.key] = frontend


def backends_of(slices: Iterable[EndpointSlice], port: ServicePort, number: int) -> list[Backend]:
    """Merge the slices of one port; of two endpoints with one address the more useful counts (contract 3.2)."""
    backends = [
        Backend(endpoint, Destination(endpoint.address, entry.port))
        for piece in slices
        if piece.family == number
        for entry in piece.ports
        if entry.name == port.name and entry.protocol == port.protocol
        for endpoint in piece.endpoints
    ]
    merged = {backend.destination: backend for backend in backends}
    if len(merged) == len(backends):
        return backends
    for backend in backends:
        if _usefulness(merged[backend.destination]) < _usefulness(backend):
            merged[backend.destination] = backend
    return list(merged.values())


def _usefulness(backend: Backend) -> tuple[bool, bool, bool]:
    endpoint = backend.endpoint
    return (not endpoint.terminating, endpoint.ready, endpoint.serving)


def _view(  # noqa: PLR0913 - one place where everything about a port comes together
    service: Service,
    port: ServicePort,
    cluster_ip: bytes,
    inside_port: int,
    choice: Choice,
    node: NodeFacts,
    config: Config,
) -> View:
    scheduler = service.scheduler or config.scheduler
    turn = _turn(scheduler, node.name)
    return View(
        service=service,
        port=port,
        cluster_ip=cluster_ip,
        inside_port=inside_port,
        server=_server(scheduler, service.affinity_seconds, service.one_packet and port.protocol is Protocol.UDP),
        cluster=_destinations(choice.cluster, turn),
        local=_destinations(choice.local, turn) if service.external_local or service.internal_local else (),
        exists=choice.exists,
        # Every endpoint of this node that is used at all is among the local ones.
        hairpins=tuple(sorted({b.endpoint.address for b in choice.local})) if choice.local else (),
        detects=family(cluster_ip) in node.detects,
        masquerade_all=config.masquerade_all,
        quiet=config.quiet_arp and family(cluster_ip) == 4,
        drain_seconds=config.drain_timeout if service.drain_seconds is None else service.drain_seconds,
        serving=(),
    )


def _serving(backends: Iterable[Backend]) -> tuple[Destination, ...]:
    """Every endpoint that a tracked UDP connection may lead to, wherever it is (contract 4.16)."""
    return tuple(sorted(b.destination for b in backends if b.endpoint.ready or b.endpoint.serving))


@lru_cache(maxsize=1024)  # one value for all Services that want the same
def _server(scheduler: str, affinity_seconds: int, one_packet: bool) -> Server:
    flags = SCHEDULER_FLAGS.get(scheduler, 0)
    flags |= (PERSISTENT if affinity_seconds else 0) | (ONE_PACKET if one_packet else 0)
    return Server(scheduler, flags, affinity_seconds)


@lru_cache(maxsize=8)
def _turn(scheduler: str, node: str) -> int:
    """Return by how much destinations are turned, so that not all nodes start at one endpoint (pure: no chance).

    With a scheduler that hashes, all nodes have one order: who comes through another node finds the same endpoint.
    A checksum would not do: those of names that are alike are alike.
    """
    if scheduler in HASHING:
        return 0
    return int.from_bytes(hashlib.blake2b(node.encode(), digest_size=8).digest(), "big")


def _destinations(backends: Sequence[Backend], turn: int) -> tuple[Destination, ...]:
    """Sorted, then turned round."""
    ordered = sorted(b.destination for b in backends)
    if len(ordered) > 1:
        start = turn % len(ordered)
        ordered = ordered[start:] + ordered[:start]
    return tuple(ordered)


def _inside_ports(service: Service) -> list[int]:
    """Port numbers on the ClusterIP where the cluster-wide view is found, one for each Service port.

    Where both policies are Local, that is a server which only our own DNAT reaches, on a made-up port. These must
    be stable across restarts and clash with no real port of the Service: the real number with its top bit turned
    over, then the next free one.
    """
    ports = service.ports
    if not (service.external_local and service.internal_local):
        return [port.port for port in ports]
    taken = {(p.protocol, p.port) for p in ports}
    chosen = []
    for port in ports:
        number = port.port ^ MADE_UP_BIT
        while number == 0 or (port.protocol, number) in taken:
            number = number % 65535 + 1
        taken.add((port.protocol, number))
        chosen.append(number)
    return chosen


def _frontends(view: View, node: NodeFacts) -> Iterator[Frontend]:
    """Yield the frontends of a port, kind by kind.

    An external address may be the Service's own ClusterIP, which then stays one: an inside view of it would lead
    to itself. Source ranges come last, so that they win where one address is an external IP and a load balancer's.
    """
    service = view.service
    yield _cluster_ip_frontend(view, node)
    if not _externally_accessible(service, view.port):
        return
    number = family(view.cluster_ip)
    if service.external_local and service.internal_local:
        yield _inside_frontend(view)
    if view.port.node_port:
        for address in node.nodeport_addresses:
            if family(address) == number:
                yield _external_frontend(view, node, address, view.port.node_port, is_node_port=True)
    for address in service.external_ips:
        if family(address) == number:
            yield _external_frontend(view, node, address, view.port.port)
    for address in service.load_balancer_ips:
        if family(address) == number:
            ranges = _allowed(service.source_ranges, address, node)
            yield _external_frontend(view, node, address, view.port.port, ranges)


def _externally_accessible(service: Service, port: ServicePort) -> bool:
    return bool(port.node_port or service.external_ips or service.load_balancer_ips)


def _cluster_ip_frontend(view: View, node: NodeFacts) -> Frontend:
    destinations = view.local if view.service.internal_local else view.cluster
    if view.masquerade_all:
        masquerade = Masquerade.ALWAYS
    else:
        masquerade = Masquerade.UNLESS_LOCAL_POD if view.detects else Masquerade.NEVER
    return Frontend(
        key=FrontendKey(view.cluster_ip, view.port.protocol, view.port.port),
        server=view.server,
        destinations=destinations,
        verdict=_verdict(view, destinations),
        masquerade=masquerade,
        bind=view.cluster_ip not in node.link_addresses,
        quiet=view.quiet and view.cluster_ip not in node.link_addresses,
        hairpins=view.hairpins,
        health_check_port=view.service.health_check_port,
        drain_seconds=view.drain_seconds,
        serving=view.serving,
    )


def _inside_frontend(view: View) -> Frontend:
    """The second view when both policies are Local: cluster-wide endpoints, for the node and local pods."""
    return Frontend(
        key=FrontendKey(view.cluster_ip, view.port.protocol, view.inside_port),
        server=view.server,
        destinations=view.cluster,
        verdict=Verdict.INSIDE_ONLY if view.cluster else Verdict.REFUSE,
        drain_seconds=view.drain_seconds,
    )


def _external_frontend(
    view: View,
    node: NodeFacts,
    address: bytes,
    port: int,
    ranges: tuple[Cidr, ...] = (),
    *,
    is_node_port: bool = False,
) -> Frontend:
    local = view.service.external_local
    destinations = view.local if local else view.cluster
    return Frontend(
        key=FrontendKey(address, view.port.protocol, port),
        server=view.server,
        destinations=destinations,
        verdict=_verdict(view, destinations),
        masquerade=Masquerade.NEVER if local else Masquerade.ALWAYS,
        inside=Destination(view.cluster_ip, view.inside_port) if local and view.cluster else None,
        ranges=ranges,
        bind=address not in node.link_addresses,
        quiet=view.quiet and address not in node.link_addresses,
        hairpins=view.hairpins,
        drain_seconds=view.drain_seconds,
        claim=Claim.ALLOCATED if is_node_port else Claim.EXTERNAL,
        serving=view.serving,
    )


def _verdict(view: View, destinations: tuple[Destination, ...]) -> Verdict:
    """No endpoint anywhere is refused; endpoints elsewhere that a policy forbids are dropped (contract 4.12)."""
    if destinations:
        return Verdict.ACCEPT
    return Verdict.DROP if view.exists else Verdict.REFUSE


def _allowed(ranges: Iterable[Cidr], address: bytes, node: NodeFacts) -> tuple[Cidr, ...]:
    """Ranges of the address's family, none within another, plus the VIP itself where the node may connect.

    A node process that connects to a VIP has the VIP as its source (contract 4.10.2, 4.10.3).
    """
    mine = [cidr for cidr in ranges if family(cidr.network) == family(address)]
    if any(own in cidr for own in node.addresses for cidr in mine):
        mine.append(Cidr(address, len(address) * 8))
    mine.sort(key=lambda cidr: cidr.prefix)
    kept: list[Cidr] = []
    for cidr in mine:
        # nft refuses overlapping intervals, and CIDRs either nest or are disjoint.
        if not any(cidr.network in wider for wider in kept):
            kept.append(cidr)
    return tuple(sorted(kept))
