"""What is reported about the Local policies of a Service: its endpoints on this node, and the lack of them.

Deterministic, no I/O. In: a Service, its slices, the frontends planned for it. Out: a `LocalView`, or None for a
Service without a Local policy. The healthCheckNodePort listeners (contract 5.2) and a metric (5.4) are fed from
it.
"""

from collections.abc import Iterable, Mapping

import msgspec

from ipvsproxy.base.address import Cidr, family, parse_cidr
from ipvsproxy.config import PRIMARY, Config
from ipvsproxy.plan.model import EndpointSlice, Service
from ipvsproxy.plan.node import NodeFacts
from ipvsproxy.plan.state import Frontend, FrontendKey
from ipvsproxy.ruleset.elements import PacketVerdict

INTERNAL, EXTERNAL = "internal", "external"


class LocalView(msgspec.Struct, frozen=True):
    """A Service with a Local policy, seen from this node.

    `health_check_port` 0 means none. `endpoints` has the number of ready endpoints here for each family of the
    Service. `lacking` names (policy, family) where endpoints exist, but none that this node may use.
    """

    service: str
    uid: str
    health_check_port: int
    endpoints: Mapping[int, int]
    lacking: frozenset[tuple[str, int]]


def local_view(
    service: Service, slices: Iterable[EndpointSlice], frontends: Mapping[FrontendKey, Frontend], node: str
) -> LocalView | None:
    """Return the view of a Service, None if no policy of it is Local."""
    if not (service.external_local or service.internal_local):
        return None
    pieces = tuple(slices)
    families = sorted(family(address) for address in service.cluster_ips)
    return LocalView(
        service=service.key,
        uid=service.uid,
        health_check_port=service.health_check_port,
        endpoints={number: _ready_here(pieces, number, node) for number in families},
        lacking=frozenset(_lacking(service, frontends)),
    )


def listen_addresses(config: Config, node: NodeFacts) -> dict[int, tuple[bytes, ...]]:
    """Return where health-check ports are listened on, by family: everywhere, or on the NodePort addresses.

    Families that the host does not have are left out.
    """
    everywhere = {4: (bytes(4),), 6: (bytes(16),)}
    ranges = [parse_cidr(text) for text in config.nodeport_addresses if text != PRIMARY]
    if PRIMARY in config.nodeport_addresses and not any(cidr.prefix == 0 for cidr in ranges):
        limited = {4, 6}
    else:
        limited = {number for number in (4, 6) if _limits([c for c in ranges if family(c.network) == number])}
    return {
        number: tuple(a for a in node.nodeport_addresses if family(a) == number)
        if number in limited
        else everywhere[number]
        for number in sorted(config.families)
    }


def _limits(ranges: list[Cidr]) -> bool:
    return bool(ranges) and all(cidr.prefix for cidr in ranges)


def _ready_here(slices: Iterable[EndpointSlice], number: int, node: str) -> int:
    """Count distinct addresses of ready endpoints: two ports of a pod are one, terminating ones none."""
    return len(
        {
            endpoint.address
            for piece in slices
            if piece.family == number and piece.ports
            for endpoint in piece.endpoints
            if endpoint.ready and endpoint.node == node
        }
    )


def _lacking(service: Service, frontends: Mapping[FrontendKey, Frontend]) -> Iterable[tuple[str, int]]:
    """A frontend drops connections exactly when a Local policy forbids all endpoints there are."""
    for key, frontend in frontends.items():
        if frontend.verdict is PacketVerdict.DROP:
            policy = INTERNAL if key.address in service.cluster_ips else EXTERNAL
            yield policy, family(key.address)
