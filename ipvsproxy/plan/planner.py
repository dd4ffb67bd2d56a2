"""One Service and its endpoints into the frontends it should have on this node.

In: a Service, its slices, the facts of the node, the settings. Out: `Frontend` values, one for each address
and port on which the Service answers. Deterministic, no I/O, and independent of all other Services; what its
frontends share is in `plan.port_plan`, what happens when two Services claim one frontend is decided in
`plan.ledger`, and which addresses it may not have in `plan.safety`. Rules: contract 3.1, 4.3, 4.9 to 4.12.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import msgspec

from ipvsproxy.base.address import Cidr, family
from ipvsproxy.config import Config
from ipvsproxy.config.annotation_values import ONE_FOR_ALL_PORTS
from ipvsproxy.plan.balance import NOTHING_SPECIAL, Destinations, balance_of, complaints
from ipvsproxy.plan.direct_return import tunnelled
from ipvsproxy.plan.endpoints import EndpointsByPort
from ipvsproxy.plan.model import EndpointSlice, Service, ServicePort
from ipvsproxy.plan.node import NodeFacts
from ipvsproxy.plan.port_plan import ALWAYS, NEVER, PortPlan, PortPlanner
from ipvsproxy.plan.port_ranges import (
    PortRanges,
    merged,
    ports_of_one_affinity,
    served_ranges,
    slices_of,
    together,
    with_ftp,
    with_ranges,
)
from ipvsproxy.plan.safety import AddressRefusal, is_refused, refused_ports, without
from ipvsproxy.plan.server import unused_server_wishes
from ipvsproxy.plan.source_ranges import AdmittedSources, admissions_of, allowed
from ipvsproxy.plan.state import (
    NO_DESTINATIONS,
    SHORT_PATH,
    Claim,
    Frontend,
    FrontendKey,
    View,
)
from ipvsproxy.plan.synthetic_ports import synthetic_ports
from ipvsproxy.plan.tally import (
    CLUSTER_IP,
    EXTERNAL_IP,
    LOAD_BALANCER,
    NODE_PORT,
    RANGE_SIZE,
    SERVER_SIZE,
    Tally,
    Tier,
)
from ipvsproxy.ruleset.elements import PacketVerdict
from ipvsproxy.ruleset.schema import LOCAL

# Looked up once: reading a member from its class takes Python 3.11 some 600 instructions.
ACCEPT = PacketVerdict.ACCEPT
LISTENED = "a program of this node listens on this port"
CLAIMS = {
    NODE_PORT: Claim.ALLOCATED,
    LOAD_BALANCER: Claim.LOAD_BALANCER,
    EXTERNAL_IP: Claim.EXTERNAL,
}
"""By what the frontends of a tier are claimed."""


def plan_service(  # noqa: PLR0913
    service: Service,
    slices: Iterable[EndpointSlice],
    node: NodeFacts,
    config: Config,
    tally: Tally | None = None,
    refusals: Sequence[AddressRefusal] = (),
    steps: Mapping[bytes, int] | None = None,
) -> dict[FrontendKey, Frontend]:
    """Return the frontends of a Service by key, for both families, in the order of their tiers.

    What `plan.safety.judge` has refused is left out, and what is above the limit of a Service. `tally` is given
    the size, and complaints. `steps` are those of endpoints with a slow start (`plan.slow_start`).
    """
    frontends: dict[FrontendKey, Frontend] = {}
    tally = tally or Tally(config.service_limit)
    asked, numbers = service, synthetic_ports(service)
    if refusals or service.external_ips:
        service = _permitted(service, refusals, config)
    slices = tuple(slices)
    backends = EndpointsByPort(slices, balance_of(service, slices, node.zone, steps))
    scheduler = service.scheduler or config.scheduler
    if service.annotated:
        tally.complaints += unused_server_wishes(service, scheduler)
    if backends.balance is not NOTHING_SPECIAL or service.slow_start_seconds:
        tally.complaints += complaints(service, slices, backends.balance, scheduler)
    planned: Iterable[tuple[Tier, Frontend]] = _frontends(service, numbers, backends, node, config, tally)
    if service.port_ranges or service.affinity_scope == ONE_FOR_ALL_PORTS:

        def plan(ranged: Service, pieces: Sequence[EndpointSlice]) -> Iterator[tuple[Tier, Frontend]]:
            balanced = EndpointsByPort(pieces, balance_of(ranged, pieces, node.zone, steps))
            return _frontends(ranged, dict.fromkeys(ranged.ports, 0), balanced, node, config, tally)

        planned = _with_ranged(service, slices, tuple(planned), plan, tally)
    refused = refused_ports(refusals) if refusals else ()
    for tier, frontend in planned:
        if not (refused and is_refused(frontend.key, refused)):
            _add(frontend, frontends)
            tally.ends[tier] = len(frontends)
    if tally.is_cut:
        tally.complaints.append(
            f"{len(frontends)} of {_asked_for(asked, node, config)} virtual servers are served:"
            f" the Service is larger than --service-limit {config.service_limit}"
        )
    if numbers and (lacking := [*numbers.values()].count(0)):
        tally.complaints.append(
            f"{lacking} ports are served to local pods by local endpoints only:"
            " all port numbers of the ClusterIP are in use"
        )
    return frontends


def _permitted(service: Service, refusals: Sequence[AddressRefusal], config: Config) -> Service:
    """Return the Service without addresses that it may not have."""
    if refusals:
        service = without(service, refusals)
    if service.external_ips and not config.allow_external_ips:
        service = msgspec.structs.replace(service, external_ips=())
    return service


def _add(frontend: Frontend, frontends: dict[FrontendKey, Frontend]) -> None:
    """Where an address is of several kinds, the strongest or first one counts, with the ranges of either.

    Only the load balancer's addresses have ranges. An external address may be the Service's own ClusterIP, which
    then stays one: an internal view of it would lead to itself.
    """
    known = frontends.get(frontend.key)
    if known is not None:
        stronger = frontend if frontend.claim < known.claim else known
        frontend = msgspec.structs.replace(stronger, ranges=known.ranges or frontend.ranges)
    frontends[frontend.key] = frontend


def _frontends(
    service: Service,
    numbers: Mapping[ServicePort, int],
    backends: EndpointsByPort,
    node: NodeFacts,
    config: Config,
    tally: Tally,
) -> Iterator[tuple[Tier, Frontend]]:
    """Yield all frontends, tier by tier, up to the limit."""
    planner = PortPlanner(service, backends, node, config)
    outside: list[PortPlan] = []
    has_addresses = bool(service.external_ips or service.load_balancer_ips)
    for cluster_ip in service.cluster_ips:
        number = family(cluster_ip)
        if number not in config.families:
            continue
        for port in service.ports:
            inside_port = numbers[port] if numbers else port.port
            # Before the endpoints are looked at: that is what the limit is to save.
            if not tally.spend(CLUSTER_IP, SERVER_SIZE + backends.count(port, number)):
                return
            view = planner.plan(port, cluster_ip, number, inside_port)
            if has_addresses or port.node_port:
                outside.append(view)
            yield CLUSTER_IP, _cluster_ip_frontend(view, node)
    if outside:
        yield from _outside_frontends(service, outside, node, tally)


def _with_ranged(
    service: Service,
    slices: Sequence[EndpointSlice],
    single: Sequence[tuple[Tier, Frontend]],
    plan: Callable[[Service, Sequence[EndpointSlice]], Iterable[tuple[Tier, Frontend]]],
    tally: Tally,
) -> Sequence[tuple[Tier, Frontend]]:
    """Return frontends of single ports with one for several ports of a protocol at each VIP."""
    shared: PortRanges = ()
    if service.affinity_scope == ONE_FOR_ALL_PORTS:
        shared, complaints = ports_of_one_affinity(service, slices)
        tally.complaints += complaints if "affinity_scope" in service.annotated else ()
    given, ftp, complaints = with_ftp(service, slices, service.port_ranges)
    tally.complaints += complaints
    shared = together(shared, ftp)
    ranges = together(given, shared)
    if not ranges or tally.is_cut:
        return single
    ranged, complaints = served_ranges(service, ranges)
    tally.complaints += complaints
    if ranged is None:
        return single
    return merged(single, list(with_ranges(plan(ranged, slices_of(slices, ranged)), ranges)), shared)


def _outside_frontends(
    service: Service, views: Sequence[PortPlan], node: NodeFacts, tally: Tally
) -> Iterator[tuple[Tier, Frontend]]:
    """Yield what is reached from outside, after the internal views that it leads to."""
    tally.complaints += dict.fromkeys(view.direct.reason for view in views if view.direct.reason)
    for view in views:
        if _needs_inside_frontend(view):
            if not tally.spend(NODE_PORT, SERVER_SIZE + len(view.cluster)):
                return
            yield NODE_PORT, _inside_frontend(view)
    no_ranges: dict[int, AdmittedSources] = {}
    ranges = admissions_of(service, node) if service.source_ranges else no_ranges
    for tier, addresses, admissions in (
        (NODE_PORT, _by_family(node.nodeport_addresses), no_ranges),
        (LOAD_BALANCER, _by_family(service.load_balancer_ips), ranges),
        (EXTERNAL_IP, _by_family(service.external_ips), no_ranges),
    ):
        for view in views if addresses else ():
            port = view.port.node_port if tier is NODE_PORT else view.port.port
            if tier is NODE_PORT and (view.port.protocol, port) in node.ports_in_use:
                tally.complaints.append(f"NodePort {port}/{view.port.protocol.name}: {LISTENED}")
                continue
            size = _size_outside(view)
            for address in addresses.get(family(view.cluster_ip), ()) if port or tier is not NODE_PORT else ():
                sources = allowed(admissions, address)
                if not tally.spend(tier, size + RANGE_SIZE * len(sources)):
                    return
                yield tier, _external_frontend(view, node, address, port, sources, claim=CLAIMS[tier])


def _needs_inside_frontend(view: PortPlan) -> bool:
    """Whether local pods and the node need a virtual server of their own: that of the ClusterIP is Local, too."""
    service, by_ipvs = view.service, view.path.path is not SHORT_PATH
    has_view = service.external_local or bool(view.direct.tunnel)
    return has_view and service.internal_local and by_ipvs and bool(view.inside_port)


def _size_outside(view: PortPlan) -> int:
    """Return how much one frontend costs that is reached from outside."""
    if not view.service.external_local:
        return SERVER_SIZE + len(view.cluster)
    return SERVER_SIZE + len(view.local) + (len(view.cluster) if view.path.path is SHORT_PATH else 0)


def _by_family(addresses: Sequence[bytes]) -> dict[int, list[bytes]]:
    found: dict[int, list[bytes]] = {}
    for address in addresses:
        found.setdefault(family(address), []).append(address)
    return found


def _asked_for(service: Service, node: NodeFacts, config: Config) -> int:
    """Return how many virtual servers there would be without a limit, not counting internal views."""
    numbers = [number for number in map(family, service.cluster_ips) if number in config.families]
    node_ports = sum(1 for port in service.ports if port.node_port)
    addresses = Counter(map(family, (*service.external_ips, *service.load_balancer_ips)))
    nodes = Counter(map(family, node.nodeport_addresses))
    return sum(len(service.ports) * (1 + addresses[n]) + node_ports * nodes[n] for n in numbers)


def _cluster_ip_frontend(view: PortPlan, node: NodeFacts) -> Frontend:
    destinations = view.local if view.service.internal_local else view.cluster
    bind = view.cluster_ip not in node.link_addresses
    return Frontend(
        key=FrontendKey(view.cluster_ip, view.port.protocol, view.port.port),
        server=view.server,
        destinations=destinations,
        verdict=_verdict(view, destinations),
        masquerade=view.masquerade,
        bind=bind,
        quiet=view.quiet and bind,
        hairpins=view.hairpins,
        health_check_port=view.service.health_check_port,
        drain_seconds=view.drain_seconds,
        remaining=view.remaining,
        serving=view.serving,
        path=view.path.path,
        path_reason=view.path.reason,
        ping=view.service.ping,
    )


def _inside_frontend(view: PortPlan) -> Frontend:
    """The second view when both policies are Local: cluster-wide endpoints, for the node and local pods."""
    return Frontend(
        key=FrontendKey(view.cluster_ip, view.port.protocol, view.inside_port),
        server=view.server,
        destinations=view.cluster,
        verdict=PacketVerdict.INSIDE_ONLY if view.cluster else PacketVerdict.REFUSE,
        drain_seconds=view.drain_seconds,
        remaining=view.remaining,
    )


def _external_frontend(
    view: PortPlan,
    node: NodeFacts,
    address: bytes,
    port: int,
    ranges: tuple[Cidr, ...] = (),
    *,
    claim: Claim = Claim.EXTERNAL,
) -> Frontend:
    local = view.service.external_local
    destinations = view.local if local else view.cluster
    bind = address not in node.link_addresses
    is_short = view.path.path is SHORT_PATH
    direct = bool(view.direct.tunnel and destinations) and bind and claim is not Claim.ALLOCATED
    if direct:
        destinations = tunnelled(destinations, view.direct.tunnel)
    return Frontend(
        key=FrontendKey(address, view.port.protocol, port),
        server=view.server,
        destinations=destinations,
        verdict=_verdict(view, destinations),
        masquerade=NEVER if local or direct else ALWAYS,
        views=_internal_view(view) if (local or direct) and not is_short else (),
        ranges=ranges,
        bind=bind,
        quiet=view.quiet and bind,
        hairpins=view.hairpins,
        drain_seconds=view.drain_seconds,
        remaining=view.remaining,
        claim=claim,
        serving=view.serving,
        path=view.path.path,
        path_reason=view.path.reason,
        internal=view.cluster if local and is_short else NO_DESTINATIONS,
        ping=view.service.ping,
        direct_return=direct,
    )


def _internal_view(view: PortPlan) -> tuple[View, ...]:
    """Local pods and the node reach endpoints cluster-wide and by NAT, whatever clients from outside get."""
    if not (view.cluster and view.inside_port):
        return ()
    return (View(LOCAL, FrontendKey(view.cluster_ip, view.port.protocol, view.inside_port)),)


def _verdict(view: PortPlan, destinations: Destinations) -> PacketVerdict:
    """No endpoint anywhere is refused; endpoints elsewhere that a policy forbids are dropped (contract 4.12).

    Where all endpoints are in maintenance, IPVS refuses what it gets.
    """
    if destinations:
        takes = view.path.path is not SHORT_PATH or any(a.weight for a in destinations.values())
        return ACCEPT if takes else PacketVerdict.REFUSE
    return PacketVerdict.DROP if view.exists else PacketVerdict.REFUSE
