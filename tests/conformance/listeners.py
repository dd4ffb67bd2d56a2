"""Who listens in a scenario's network: every endpoint, and the hosts themselves on every address that is dialled.

The host's own listeners stand where a packet ends up that the proxy left alone. They answer for what must be
passed through, and give away what went past the guard: without them a missing guard would look like a
refusal, since nothing listens on most ports of a node anyway.
"""

from __future__ import annotations

import contextlib
import errno
import socket

from tests.conformance.network import Network
from tests.conformance.places import places
from tests.conformance.scenario_file import Scenario, endpoint_name
from tests.lab import netns
from tests.lab.lab import LabHost
from tests.lab.responder import EndpointListener, Responder

IPV6_FREEBIND, IP_FREEBIND = 78, 15
HOST = "the host itself"
OUTSIDE = "the world outside"


class FlowListener(EndpointListener):
    """Listens on one address, which need not be there yet, next to others on the same port."""

    def start(self) -> None:
        text = self.host.ipv6 or self.host.ipv4
        server = netns.open_socket(self.host.netns, text, self.proto)
        try:
            self._prepare(server)
            server.bind((text, self.port))
            if self.proto != "udp":
                server.listen(256)
        except OSError:
            server.close()
            raise
        self._watch(server, self._answer_datagram if self.proto == "udp" else self._accept)

    def _prepare(self, server: socket.socket) -> None:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        level, option = (
            (socket.IPPROTO_IPV6, IPV6_FREEBIND) if self.host.ipv6 else (socket.IPPROTO_IP, IP_FREEBIND)
        )
        server.setsockopt(level, option, 1)


def listen(responder: Responder, network: Network, scenario: Scenario, *, sctp: bool) -> None:
    """Open all listeners of a scenario. The proxy must have programmed it, so that its own ports are taken."""
    where = places(scenario)
    taken: set[tuple[str, str, int, str]] = set()

    def once(space: str, text: str, port: int, proto: str, name: str) -> None:
        key = (space, text, port, proto)
        if key in taken or (proto == "sctp" and not sctp):
            return
        taken.add(key)
        _listen(responder, key, name)

    for endpoint in scenario.endpoints:
        space = network.namespace(where[endpoint.address], endpoint.address)
        for _, port, proto in endpoint.ports:
            once(space, endpoint.address, port, proto, endpoint_name(endpoint.address, port))
    for flow in scenario.flows:
        place = where.get(flow.address, "node")
        name = HOST if place == "node" else OUTSIDE
        once(network.namespace(place, flow.address), flow.address, flow.port, flow.proto, name)


def _listen(responder: Responder, key: tuple[str, str, int, str], name: str) -> None:
    space, text, port, proto = key
    host = LabHost(name, space, "", text) if ":" in text else LabHost(name, space, text, "")
    listener = FlowListener(responder, host, port, proto, name)
    with _taken_is_fine():
        listener.start()
        responder.listeners.append(listener)


@contextlib.contextmanager
def _taken_is_fine() -> contextlib.AbstractContextManager[None]:
    """A port in use is one that the proxy itself serves: the health check of a Service."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
