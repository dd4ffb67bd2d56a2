"""Which endpoints this node uses, for each traffic policy.

One function, `choose`, that follows contract 3.3 (upstream's topology rules, KEP-1669 for terminating
endpoints). In: every endpoint of one Service port, the node's name and zone. Out: the endpoints for Cluster
policy, those for Local policy, and whether a usable endpoint exists anywhere.
"""

from collections.abc import Sequence

import msgspec

from ipvsproxy.plan.model import Endpoint
from ipvsproxy.plan.state import Destination


class PortEndpoint(msgspec.Struct, frozen=True, gc=False):
    """An endpoint together with what it is to IPVS: its address and the number one Service port has on it."""

    endpoint: Endpoint
    destination: Destination


class Choice(msgspec.Struct, frozen=True, gc=False):
    """What `choose` decided; each list keeps the order of its input."""

    cluster: Sequence[PortEndpoint]
    local: Sequence[PortEndpoint]
    exists: bool


def choose(backends: Sequence[PortEndpoint], node: str, zone: str) -> Choice:
    """Pick the backends for Cluster and for Local policy; `zone` is empty when unknown."""
    ready = [b for b in backends if b.endpoint.ready]
    here = [b for b in backends if b.endpoint.node == node] if node else []
    local = [b for b in here if b.endpoint.ready] or _leaving(here) if here else here
    if ready:
        return Choice(_near(ready, node, zone), local, True)
    leaving = _leaving(backends)
    return Choice(leaving, local, bool(leaving))


def _leaving(backends: Sequence[PortEndpoint]) -> list[PortEndpoint]:
    return [b for b in backends if b.endpoint.terminating and b.endpoint.serving]


def _near(ready: Sequence[PortEndpoint], node: str, zone: str) -> Sequence[PortEndpoint]:
    """Node hints before zone hints; a kind counts only if every ready endpoint has it and one is for us."""
    if not ready or not (ready[0].endpoint.node_hints or ready[0].endpoint.zone_hints):
        return ready
    if all(b.endpoint.node_hints for b in ready):
        mine = [b for b in ready if node in b.endpoint.node_hints]
        if mine:
            return mine
    if zone and all(b.endpoint.zone_hints for b in ready):
        return [b for b in ready if zone in b.endpoint.zone_hints] or ready
    return ready
