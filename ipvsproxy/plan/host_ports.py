"""Ports on which programs of this node listen, and the Services that ask for the same ports.

A Service gets no NodePort, and no port of an address of this node, on which something listens. Health-check ports
of Services count from the moment at which their Service is there: the proxy begins to listen a little later.
Deterministic, no I/O. A change costs its own size: the Services for which something may be different now are
looked up by port.
"""

from collections import Counter

from ipvsproxy.plan.model import Protocol, Service

Port = tuple[int, int]
"""Protocol number and port."""


class HostPorts:
    """The ports that Services ask for on addresses of this node, and those on which something listens."""

    def __init__(self) -> None:
        self.has_news = False
        self._askers: dict[Port, set[str]] = {}
        self._listening: frozenset[Port] = frozenset()
        self._health_checks: Counter[Port] = Counter()
        self._in_use: frozenset[Port] | None = frozenset()

    @property
    def in_use(self) -> frozenset[Port]:
        """The ports that no Service gets on addresses of this node; the same object while nothing changes."""
        if self._in_use is None:
            self._in_use = self._listening | self._health_checks.keys()
        return self._in_use

    def service(self, key: str, old: Service | None, new: Service | None) -> set[str]:
        """Record which ports a Service asks for now; return others for which that makes a difference."""
        before, after = _asked(old), _asked(new)
        for port in before - after:
            self._askers[port].discard(key)
            if not self._askers[port]:
                del self._askers[port]
        for port in after - before:
            self._askers.setdefault(port, set()).add(key)
            self.has_news = True
        affected: set[str] = set()
        for service, count in ((old, -1), (new, 1)):
            if service is not None and service.health_check_port:
                affected |= self._health_check(service.health_check_port, count)
        return affected

    def _health_check(self, number: int, count: int) -> set[str]:
        """Count a health-check port that comes or goes; return the Services that ask for it."""
        port = Protocol.TCP.value, number
        self._health_checks[port] += count
        if not self._health_checks[port]:
            del self._health_checks[port]
        self._in_use = None
        return self._askers.get(port, set()).copy()

    def listening(self, ports: frozenset[Port]) -> set[str]:
        """Record on which ports something listens and return the Services for which that makes a difference."""
        changed, self._listening, self.has_news = ports ^ self._listening, ports, False
        if changed:
            self._in_use = None
        return {key for port in changed for key in self._askers.get(port, ())}


def _asked(service: Service | None) -> set[Port]:
    """Return NodePorts and, for any of its external addresses may be one of this node, ports."""
    if service is None:
        return set()
    ports: set[Port] = {(port.protocol, port.node_port) for port in service.ports if port.node_port}
    if service.external_ips or service.load_balancer_ips:
        ports.update((port.protocol, port.port) for port in service.ports)
    return ports
