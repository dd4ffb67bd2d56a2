"""Ports that a Service has behind one virtual server for a whole address, which no external address may take.

IPVS asks a server of one port before the one for all others, so that a Service that claims such a port later, or
by a weaker claim, would take it from the one that has it. In: frontends as Services are planned, so that what a
Service does not get is no claim. Out: whether a port of an address is another's, at constant cost. Deterministic,
no I/O.
"""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable
from typing import NamedTuple

from ipvsproxy.base.frontend import FTP_PORT
from ipvsproxy.plan.model import Protocol, ServicePort
from ipvsproxy.plan.state import Claim, Frontend
from ipvsproxy.plan.waiting import RankedService
from ipvsproxy.ruleset.elements import PortRange

FTP = PortRange(FTP_PORT, FTP_PORT)
LAST = 1 << 16
ClaimedPlace = tuple[bytes, int]
"""Address and protocol."""


class PortClaim(NamedTuple):
    """By what a Service has ports of one protocol at an address; the least of several is the strongest."""

    claim: Claim
    owner: RankedService
    ports: tuple[PortRange, ...]

    def has(self, port: int) -> bool:
        """Whether a port is among them."""
        place = bisect_right(self.ports, (port, LAST))
        return place > 0 and port <= self.ports[place - 1].last


class PortClaims:
    """The claims of all Services."""

    def __init__(self) -> None:
        self._claims: dict[ClaimedPlace, list[PortClaim]] = {}
        self.by_service: dict[str, dict[ClaimedPlace, PortClaim]] = {}

    def replace(self, owner: RankedService, frontends: Iterable[Frontend]) -> set[bytes]:
        """Record what a Service has now; return the addresses where another one has ports now, or has others."""
        before = self.by_service.pop(owner.service, {})
        after = {(f.key.address, f.key.protocol): _claim(owner, f) for f in frontends if f.port_ranges}
        if after:
            self.by_service[owner.service] = after
        places = (place for place in before.keys() | after.keys() if before.get(place) != after.get(place))
        return {place[0] for place in places if self._change(place, before.get(place), after.get(place))}

    def _change(self, place: ClaimedPlace, was: PortClaim | None, is_: PortClaim | None) -> bool:
        """Put one claim in the place of another; tell whether the strongest one is another now."""
        found = self._claims.setdefault(place, [])
        first = found[:1]
        if was is not None:
            del found[bisect_left(found, was)]
        if is_ is not None:
            insort(found, is_)
        changed = found[:1] != first
        if not found:
            del self._claims[place]
        return changed

    def is_taken(self, address: bytes, port: ServicePort, claim: Claim, owner: RankedService) -> bool:
        """Whether a port that a Service claims at an address is another's: the one server has one Service."""
        found = self._claims.get((address, port.protocol))
        if not found or found[0].owner.service == owner.service:
            return False
        return found[0][:2] < (claim, owner) and found[0].has(port.port)


def _claim(owner: RankedService, frontend: Frontend) -> PortClaim:
    """Return the ports of the server for all others; the port of FTP would take those of TCP from it."""
    ports = frontend.port_ranges
    if frontend.key.protocol == Protocol.TCP and not any(ends.first <= FTP_PORT <= ends.last for ends in ports):
        ports = tuple(sorted((*ports, FTP)))
    return PortClaim(frontend.claim, owner, ports)
