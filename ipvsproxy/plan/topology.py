"""Which endpoints this node uses, for each traffic policy.

One function, `choose`, that follows contract 3.3 (upstream's topology rules, KEP-1669 for terminating
endpoints). In: every endpoint of one Service port, the node's name and zone. Out: the endpoints for Cluster
policy, those for Local policy, and whether a usable endpoint exists anywhere.
"""

from collections.abc import Mapping, Sequence

import msgspec

from ipvsproxy.plan.model import Endpoint
from ipvsproxy.plan.state import Destination

PortEndpoints = Mapping[Destination, Endpoint]
"""The endpoints of one Service port by what they are to IPVS: an address, and the number of the port on it."""


class Choice(msgspec.Struct, frozen=True, gc=False):
    """What `choose` decided; each list keeps the order of its input."""

    cluster: Sequence[Destination]
    local: Sequence[Destination]
    exists: bool


def choose(endpoints: PortEndpoints, node: str, zone: str) -> Choice:
    """Pick the endpoints for Cluster and for Local policy; `zone` is empty when unknown."""
    ready = [d for d, e in endpoints.items() if e.ready]
    here = {d: e for d, e in endpoints.items() if e.node == node} if node else {}
    local = [d for d, e in here.items() if e.ready] or _leaving(here) if here else []
    if ready:
        return Choice(_near(ready, endpoints, node, zone), local, True)
    leaving = _leaving(endpoints)
    return Choice(leaving, local, bool(leaving))


def _leaving(endpoints: PortEndpoints) -> list[Destination]:
    return [d for d, e in endpoints.items() if e.terminating and e.serving]


def _near(ready: Sequence[Destination], endpoints: PortEndpoints, node: str, zone: str) -> Sequence[Destination]:
    """Node hints before zone hints; a kind counts only if every ready endpoint has it and one is for us."""
    first = endpoints[ready[0]]
    if first.node_hints and all(endpoints[d].node_hints for d in ready):
        mine = [d for d in ready if node in endpoints[d].node_hints]
        if mine:
            return mine
    if zone and first.zone_hints and all(endpoints[d].zone_hints for d in ready):
        return [d for d in ready if zone in endpoints[d].zone_hints] or ready
    return ready
