"""Which endpoints this node uses, for each traffic policy.

One pure function, `choose`, that follows contract 3.3 (upstream's topology rules, KEP-1669 for terminating
endpoints). In: every endpoint of one Service port, the node's name and zone. Out: the endpoints for Cluster
policy, those for Local policy, and whether a usable endpoint exists anywhere.
"""

from collections.abc import Callable, Iterable
from typing import NamedTuple

from ipvsproxy.plan.model import Endpoint


class Backend(NamedTuple):
    """An endpoint together with the port number that one Service port has on it."""

    endpoint: Endpoint
    port: int


class Choice(NamedTuple):
    """What `choose` decided; each tuple keeps the order of its input."""

    cluster: tuple[Backend, ...]
    local: tuple[Backend, ...]
    exists: bool


def choose(backends: Iterable[Backend], node: str, zone: str) -> Choice:
    """Pick the backends for Cluster and for Local policy; `zone` is empty when unknown."""
    candidates = tuple(backends)
    ready = tuple(b for b in candidates if b.endpoint.ready)
    leaving = tuple(b for b in candidates if _serves_while_leaving(b.endpoint))
    near = _hint_filter(ready, node, zone)
    return Choice(
        cluster=tuple(b for b in ready if near(b.endpoint)) or leaving,
        local=_on(node, ready) or _on(node, leaving),
        exists=bool(ready or leaving),
    )


def _serves_while_leaving(endpoint: Endpoint) -> bool:
    return endpoint.serving and endpoint.terminating


def _on(node: str, backends: tuple[Backend, ...]) -> tuple[Backend, ...]:
    return tuple(b for b in backends if node and b.endpoint.node == node)


def _hint_filter(ready: tuple[Backend, ...], node: str, zone: str) -> Callable[[Endpoint], bool]:
    """Node hints before zone hints; a kind counts only if every ready endpoint has it and one is for us."""
    endpoints = [b.endpoint for b in ready]
    if all(e.node_hints for e in endpoints) and any(node in e.node_hints for e in endpoints):
        return lambda endpoint: node in endpoint.node_hints
    if zone and all(e.zone_hints for e in endpoints) and any(zone in e.zone_hints for e in endpoints):
        return lambda endpoint: zone in endpoint.zone_hints
    return lambda _: True
