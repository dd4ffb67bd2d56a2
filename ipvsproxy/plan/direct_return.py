"""Direct server return: endpoints answer clients from outside themselves, past the node that has balanced.

IPVS sends the client's packets to the pod as they are, in a tunnel. The pod has the VIP on the tunnel's end
(`ipvsproxy dsr-endpoint`) and answers from it. So nothing can be rewritten: the port stays, and the node cannot
masquerade. Local pods and the node reach endpoints the usual way, by the internal view: a process of the node has
the VIP as its own address. Deterministic, no I/O.
"""

from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

from msgspec.structs import replace

from ipvsproxy.base.frontend import EVERY_PORT
from ipvsproxy.base.names import GUE_PORT
from ipvsproxy.config import annotation_values as values
from ipvsproxy.plan.balance import Destinations
from ipvsproxy.plan.model import Service, ServicePort
from ipvsproxy.plan.node import NodeFacts
from ipvsproxy.plan.state import GUE, IPIP, TUNNEL, Destination, DestinationAttributes

TUNNELS = {values.IPIP: (IPIP, 0), values.GUE: (GUE, GUE_PORT)}
"""Type and port of the tunnels that annotations name."""


class DirectReturn(NamedTuple):
    """The kind of tunnel to the endpoints of a port, empty for none, and why it is none where one is asked for."""

    tunnel: str = ""
    reason: str = ""


NO_DIRECT_RETURN = DirectReturn()


def direct_return_of_port(
    service: Service, port: ServicePort, endpoints: Iterable[Destination], node: NodeFacts
) -> DirectReturn:
    """Decide for one port of a Service, with all its endpoints."""
    if not service.forwarding:
        return NO_DIRECT_RETURN
    if port.port == EVERY_PORT:
        return DirectReturn(reason="port ranges, and ports with one affinity, have no direct server return")
    problems = (_problem(port, to, node) for to in endpoints)
    problem = next(filter(None, problems), "")
    if problem:
        reason = f"port {port.port}/{port.protocol.name} has no direct server return: {problem}"
        return DirectReturn(reason=reason)
    return DirectReturn(service.forwarding)


def _problem(port: ServicePort, to: Destination, node: NodeFacts) -> str:
    """Return what keeps an endpoint from answering directly."""
    if to.port != port.port:
        return f"targetPort is another number, {to.port}"
    return f"endpoint {to} is the node itself" if to.address in node.link_addresses else ""


def tunnelled(destinations: Destinations, tunnel: str) -> Destinations:
    """Return destinations that are reached through a tunnel."""
    return {found: _through(attributes, tunnel) for found, attributes in destinations.items()}


@lru_cache(maxsize=256)
def _through(attributes: DestinationAttributes, tunnel: str) -> DestinationAttributes:
    kind, port = TUNNELS[tunnel]
    return replace(attributes, forwarding_method=TUNNEL, tunnel_type=kind, tunnel_port=port)
