"""What one port of a Service looks like on this node in one family: everything that its frontends share.

In: a Service and its endpoints, the facts of the node, the settings. Out: `PortPlan` values, from which
`plan.planner` makes a frontend for each address. Deterministic, no I/O. Rules: contract 3.3, 4.4, 4.9.
"""

import hashlib
from collections.abc import Sequence
from functools import lru_cache

import msgspec

from ipvsproxy.config import Config
from ipvsproxy.config.annotation_values import UNTIL_POD_IS_GONE
from ipvsproxy.plan.balance import Destinations
from ipvsproxy.plan.direct_return import DirectReturn, direct_return_of_port
from ipvsproxy.plan.endpoints import EndpointsByPort
from ipvsproxy.plan.model import Protocol, Service, ServicePort
from ipvsproxy.plan.node import NodeFacts
from ipvsproxy.plan.path import PathChoice, path_of_port, path_of_service
from ipvsproxy.plan.server import server_of
from ipvsproxy.plan.state import SHORT_PATH, Destination, ServerAttributes
from ipvsproxy.plan.topology import Choice, PortEndpoints, choose
from ipvsproxy.ruleset.elements import Masquerade

HASHING = ("sh", "mh", "dh")
"""Schedulers that choose by a hash of addresses, and whose tables depend on the order of destinations."""
# Looked up once: reading a member from its class takes Python 3.11 some 600 instructions.
UDP = Protocol.UDP
NEVER, UNLESS_LOCAL_POD, ALWAYS = Masquerade.NEVER, Masquerade.UNLESS_LOCAL_POD, Masquerade.ALWAYS


class PortPlan(msgspec.Struct, frozen=True, gc=False):
    """What one port of a Service looks like in one family: everything its frontends share."""

    service: Service
    port: ServicePort
    cluster_ip: bytes
    inside_port: int
    server: ServerAttributes
    cluster: Destinations
    local: Destinations
    exists: bool
    hairpins: tuple[bytes, ...]
    masquerade: Masquerade
    quiet: bool
    drain_seconds: float
    serving: tuple[Destination, ...]
    remaining: tuple[Destination, ...]
    path: PathChoice
    direct: DirectReturn


class PortPlanner:
    """Plans the ports of one Service: what they have in common is found once."""

    def __init__(self, service: Service, backends: EndpointsByPort, node: NodeFacts, config: Config) -> None:
        self._service = service
        self._backends = backends
        self._node = node
        self._config = config
        self._scheduler = service.scheduler or config.scheduler
        self._turn = _turn(self._scheduler, node.name)
        self._local = service.external_local or service.internal_local
        self._drain_seconds = config.drain_timeout if service.drain_seconds is None else service.drain_seconds
        self._drains_with_pod = self._drain_seconds == UNTIL_POD_IS_GONE
        self._path = path_of_service(
            service,
            config.data_path,
            self._scheduler,
            config.detect_local_mode,
        )

    def plan(self, port: ServicePort, cluster_ip: bytes, number: int, inside_port: int) -> PortPlan:
        """Return the plan of a port in the family `number` (4 or 6), which is that of the ClusterIP."""
        node, config = self._node, self._config
        found = self._backends.of(port, number)
        choice = choose(found, node.name, node.zone)
        cluster = self._destinations(choice.cluster, found)
        local = self._destinations(choice.local, found) if self._local else {}
        path = path_of_port(self._path, self._scheduler, cluster, local)
        # A call with more than 15 keywords costs Python four times as much: it makes a dictionary of them.
        return PortPlan(
            self._service,
            port,
            cluster_ip,
            inside_port,
            server=server_of(self._service, self._scheduler, port.protocol, number),
            cluster=cluster,
            local=local,
            exists=choice.exists,
            # Every endpoint of this node that is used at all is among the local ones.
            hairpins=tuple(sorted({d.address for d in choice.local})) if choice.local else (),
            masquerade=self._masquerade(number),
            quiet=config.suppress_vip_arp and number == 4,
            drain_seconds=self._drain_seconds,
            serving=_serving(found) if port.protocol is UDP else (),
            remaining=tuple(sorted(found)) if self._needs_remaining(path, found, choice) else (),
            path=path,
            direct=direct_return_of_port(self._service, port, found, node),
        )

    def _masquerade(self, number: int) -> Masquerade:
        """Return who is masqueraded at the ClusterIP."""
        if self._config.masquerade_all:
            return ALWAYS
        return UNLESS_LOCAL_POD if number in self._node.detects else NEVER

    def _needs_remaining(self, path: PathChoice, found: PortEndpoints, choice: Choice) -> bool:
        """Whether more has to be known than the endpoints in use; on the short path, those that are not."""
        if self._drains_with_pod or path.path is not SHORT_PATH:
            return self._drains_with_pod
        return len(found) > len(choice.cluster) or self._service.internal_local

    def _destinations(self, chosen: Sequence[Destination], endpoints: PortEndpoints) -> Destinations:
        """Sorted, then rotated, with the attributes of each."""
        ordered = sorted(chosen)
        if len(ordered) > 1:
            start = self._turn % len(ordered)
            ordered = ordered[start:] + ordered[:start]
        return self._backends.balance.destinations(ordered, endpoints)


def _serving(endpoints: PortEndpoints) -> tuple[Destination, ...]:
    """Every endpoint that a tracked UDP connection may lead to, wherever it is (contract 4.16)."""
    return tuple(sorted(d for d, e in endpoints.items() if e.ready or e.serving))


@lru_cache(maxsize=8)
def _turn(scheduler: str, node: str) -> int:
    """Return by how much destinations are turned, so that not all nodes start at one endpoint (a hash, no chance).

    With a scheduler that hashes, all nodes have one order: who comes through another node finds the same endpoint.
    A checksum would not do: those of names that are alike are alike.
    """
    if scheduler in HASHING:
        return 0
    return int.from_bytes(hashlib.blake2b(node.encode(), digest_size=8).digest(), "big")
