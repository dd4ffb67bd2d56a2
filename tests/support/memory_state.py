"""What a kernel would answer to `inspect.walk`, made from a ledger: everything wanted is there."""

from ipvsproxy.base.address import family, format_ip
from ipvsproxy.base.frontend import every_port
from ipvsproxy.plan.records import Counters, DestinationRecord, ElementMatch, Route, ServerRecord
from ipvsproxy.plan.state import DestinationAttributes, Path
from ipvsproxy.ruleset.elements import ElementKey, PortRange


class MemoryState:
    """`here` are the addresses of links; pods of `pods` are reached by the link pods0, all others by eth0."""

    def __init__(self, ledger, here=(), pods=()):
        self.elements = dict(ledger.elements)
        by_ipvs = {key: f for key, f in ledger.frontends.items() if f.path is Path.IPVS}
        self.servers = {key: list(f.destinations) for key, f in by_ipvs.items()}
        self.attributes = {key: f.server for key, f in by_ipvs.items()}
        self.here, self.pods = list(here), set(pods)
        self.vips = {key.address for key in ledger.frontends if ledger.vip(key.address)}
        self.weights, self.limits = {}, {}
        self.active = {}
        self.counters = Counters()
        self.connections = []

    def find(self, kind, owner, rest=None):
        if not kind.interval:
            slot = ElementKey(kind, owner, rest)
            return ElementMatch(slot, self.elements[slot]) if slot in self.elements else None
        if kind.port_interval:
            owner, rest = every_port(owner), owner.port
        for slot in self.elements:
            if slot.set is kind and slot.owner == owner and _holds(slot.rest, rest):
                return ElementMatch(slot, self.elements[slot])
        return None

    def route(self, address):
        if address in self.vips or address in self.here or format_ip(address).startswith("127."):
            return Route(True, "lo", address, None)
        link = "pods0" if address in self.pods else "eth0"
        return Route(False, link, next(a for a in self.here if family(a) == family(address)), None)

    def masquerade_source(self, route, _):
        return route.source

    def server(self, key):
        return ServerRecord(key, self.attributes[key], self.counters) if key in self.servers else None

    def destinations(self, key):
        busy = self.active.get(key, 0)
        return [DestinationRecord(d, self._attributes(d), busy, 0, 0, self.counters) for d in self.servers[key]]

    def _attributes(self, destination):
        return DestinationAttributes(self.weights.get(destination, 1), *self.limits.get(destination, (0, 0)))


def _holds(interval, point):
    if isinstance(point, str):
        return point.startswith(interval[:-1]) if interval.endswith("*") else point == interval
    if isinstance(interval, PortRange):
        return interval.first <= point <= interval.last
    return point in interval
