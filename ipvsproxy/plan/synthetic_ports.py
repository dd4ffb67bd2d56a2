"""Port numbers for the internal views of a Service whose ClusterIP has local endpoints only.

That is where both traffic policies are Local, or the internal one and answers go directly to clients from outside.

Such a Service needs a second server on its ClusterIP, with the endpoints of the whole cluster, that only our own
DNAT reaches. Its number must be stable across restarts and clash with no port of the Service.
"""

from collections.abc import Sequence

from ipvsproxy.plan.model import Service, ServicePort

TOP_BIT = 0x8000
"""What the number of an internal view differs in from the real one, where that number is free."""
HIGHEST = 65535


def synthetic_ports(service: Service) -> dict[ServicePort, int]:
    """Return for each Service port the number of its cluster-wide view on the ClusterIP, 0 where none is free.

    Nothing where the ClusterIP has all endpoints, or nothing has a view: the number is that of the port itself.
    Otherwise it is the real one with its top bit turned over, or the next free one after it, in the order of the
    Service's ports.
    """
    ports = service.ports
    if not (service.internal_local and (service.external_local or service.forwarding)):
        return {}
    numbers = {protocol: Numbers(ports, protocol) for protocol in {port.protocol for port in ports}}
    return {port: numbers[port.protocol].take(port.port ^ TOP_BIT) for port in ports}


class Numbers:
    """The numbers of one protocol, of which those of real ports are taken.

    `_next` leads from a taken number to one that may be free; paths are shortened on the way, so that all
    choices together cost hardly more than one look for each.
    """

    def __init__(self, ports: Sequence[ServicePort], protocol: int) -> None:
        taken = {port.port for port in ports if port.protocol == protocol}
        self._next = {number: _following(number) for number in taken}

    def take(self, wanted: int) -> int:
        """Return `wanted` or the next free number after it, which is taken from now on; 0 when none is free."""
        if len(self._next) >= HIGHEST:
            return 0
        path, number = [], wanted or 1
        while number in self._next:
            path.append(number)
            number = self._next[number]
        self._next.update(dict.fromkeys((*path, number), _following(number)))
        return number


def _following(number: int) -> int:
    return number % HIGHEST + 1
