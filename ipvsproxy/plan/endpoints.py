"""The endpoints of a Service by its ports: what the slices contain, found without a search for each port.

Deterministic, no I/O. A slice lists numbers of ports, and endpoints that have all of them; the endpoints of one
Service port are those of all slices that name the port (contract 3.2).
"""

from collections.abc import Iterable

from ipvsproxy.plan.balance import NOTHING_SPECIAL, Balance
from ipvsproxy.plan.model import EndpointSlice, ServicePort
from ipvsproxy.plan.state import Destination
from ipvsproxy.plan.topology import PortEndpoint

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

    def of(self, port: ServicePort, number: int) -> list[PortEndpoint]:
        """Return the endpoints of a port in a family (4 or 6); of two with one address the more useful counts."""
        backends = [
            PortEndpoint(endpoint, Destination(endpoint.address, target))
            for piece, target in self._pieces.get((number, port.protocol, port.name), ())
            for endpoint in piece.endpoints
        ]
        if len({backend.endpoint.address for backend in backends}) == len(backends):
            return backends
        merged = {backend.destination: backend for backend in backends}
        for backend in backends:
            if _usefulness(merged[backend.destination]) < _usefulness(backend):
                merged[backend.destination] = backend
        return list(merged.values())


def _usefulness(backend: PortEndpoint) -> tuple[bool, bool, bool]:
    endpoint = backend.endpoint
    return (not endpoint.terminating, endpoint.ready, endpoint.serving)
