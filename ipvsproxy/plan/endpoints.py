"""The endpoints of a Service by its ports: what the slices contain, found without a search for each port.

Deterministic, no I/O. A slice lists numbers of ports, and endpoints that have all of them; the endpoints of one
Service port are those of all slices that name the port (contract 3.2).
"""

from collections.abc import Iterable

from ipvsproxy.plan.balance import NOTHING_SPECIAL, Balance
from ipvsproxy.plan.model import Endpoint, EndpointSlice, ServicePort
from ipvsproxy.plan.state import Destination
from ipvsproxy.plan.topology import PortEndpoints

PortKey = tuple[int, int, str]


class EndpointsByPort:
    """All endpoints of one Service, and how its connections are spread over them."""

    def __init__(self, slices: Iterable[EndpointSlice], balance: Balance = NOTHING_SPECIAL) -> None:
        self.balance = balance
        self._pieces: dict[PortKey, list[tuple[EndpointSlice, int]]] = {}
        for piece in slices:
            for port in piece.ports:
                name = (piece.family, port.protocol, port.name)
                known = self._pieces.get(name)
                if known is None:
                    self._pieces[name] = [(piece, port.port)]
                else:
                    known.append((piece, port.port))

    def count(self, port: ServicePort, number: int) -> int:
        """Return how many endpoints `of` has to look at."""
        count = 0
        for piece, _ in self._pieces.get((number, port.protocol, port.name), ()):
            count += len(piece.endpoints)
        return count

    def of(self, port: ServicePort, number: int) -> PortEndpoints:
        """Return the endpoints of a port in a family (4 or 6); of two with one address the more useful counts."""
        pieces = self._pieces.get((number, port.protocol, port.name), ())
        found = {
            Destination(endpoint.address, target): endpoint
            for piece, target in pieces
            for endpoint in piece.endpoints
        }
        if len(found) < self.count(port, number):
            for piece, target in pieces:
                for endpoint in piece.endpoints:
                    destination = Destination(endpoint.address, target)
                    found[destination] = max(found[destination], endpoint, key=_usefulness)
        return found


def _usefulness(endpoint: Endpoint) -> tuple[bool, bool, bool]:
    return (not endpoint.terminating, endpoint.ready, endpoint.serving)
