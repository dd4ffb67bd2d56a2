"""Ports on which programs of this node listen, and the Services that ask for the same ports.

A Service gets no NodePort, and no port of an address of this node, on which something listens. Deterministic, no
I/O. A change costs its own size: the Services for which something may be different now are looked up by port.
"""

from collections.abc import Iterator

from ipvsproxy.plan.model import Service

Port = tuple[int, int]
"""Protocol number and port."""


class HostPorts:
    """The ports that Services ask for on addresses of this node, and those on which something listens."""

    def __init__(self) -> None:
        self.in_use: frozenset[Port] = frozenset()
        self.has_news = False
        self._askers: dict[Port, set[str]] = {}

    def service(self, key: str, old: Service | None, new: Service | None) -> None:
        """Record which ports a Service asks for now."""
        before, after = frozenset(_asked(old)), frozenset(_asked(new))
        for port in before - after:
            self._askers[port].discard(key)
            if not self._askers[port]:
                del self._askers[port]
        for port in after - before:
            self._askers.setdefault(port, set()).add(key)
            self.has_news = True

    def listening(self, ports: frozenset[Port]) -> set[str]:
        """Record on which ports something listens and return the Services for which that makes a difference."""
        changed, self.in_use, self.has_news = ports ^ self.in_use, ports, False
        return {key for port in changed for key in self._askers.get(port, ())}


def _asked(service: Service | None) -> Iterator[Port]:
    """Yield NodePorts and, for any of its external addresses may be one of this node, ports."""
    if service is None:
        return
    has_addresses = bool(service.external_ips or service.load_balancer_ips)
    for port in service.ports:
        if port.node_port:
            yield port.protocol, port.node_port
        if has_addresses:
            yield port.protocol, port.port
