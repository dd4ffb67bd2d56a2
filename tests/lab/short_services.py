"""Services with ClusterIPs on the short path, and the proxy of a node that serves them."""

from __future__ import annotations

import contextlib
import json
import pathlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from ipvsproxy.base.address import format_endpoint, parse_ip
from ipvsproxy.kernel.ipvs import Ipvs
from ipvsproxy.plan.state import FrontendKey
from tests.lab import netns
from tests.lab.capabilities import missing
from tests.lab.lab import DEFAULT_PROXY_ARGS, Lab
from tests.lab.manifests import ManifestFolder, endpoint, endpoint_slice, port, service
from tests.lab.packets import Tap, send_ahead
from tests.lab.probe import Conversation, ProbeQuestion, spread
from tests.lab.proxy import LabProxy
from tests.lab.published import cluster_ip
from tests.lab.waiting import eventually
from tests.support.api_object import ApiObject

WEB, OTHER = 90, 91
PORTS = [port(80, 8080, "TCP", "web"), port(80, 8081, "UDP", "dns"), port(80, 8082, "SCTP", "sig")]
ARGS = [*DEFAULT_PROXY_ARGS, "--data-path=auto", "--ipvs-sync-period=2s"]


class ShortServices:
    """Services with ClusterIPs on the short path, and the proxy of node1."""

    def __init__(self, lab: Lab, folder: ManifestFolder, args: Sequence[str]) -> None:
        self.lab, self.folder = lab, folder
        self.proxy: LabProxy = lab.proxy(lab.nodes[0], folder.path, args)

    def put(
        self, number: int, pods: str, leaving: str = "", annotations: dict[str, str] | None = None, **spec: object
    ) -> None:
        """Write a Service with ready pods, and others that end and serve no more."""
        name = f"short{number}"
        made = service(name, PORTS, [cluster_ip(number, family) for family in (4, 6)], **spec)
        made["metadata"]["annotations"] = {
            f"ipvsproxy.io/{what}": value for what, value in (annotations or {}).items()
        }
        slices = [self._slice(name, family, pods.split(), leaving.split()) for family in (4, 6)]
        self.folder.write(name, made, *slices)

    def _slice(self, name: str, family: int, pods: list[str], leaving: list[str]) -> ApiObject:
        ready = [endpoint(self.lab, self.lab.host(pod), family=family) for pod in pods]
        ending = [
            endpoint(self.lab, self.lab.host(pod), family=family, ready=False, serving=False, terminating=True)
            for pod in leaving
        ]
        return endpoint_slice(name, PORTS, [*ready, *ending], family=family)

    def remove(self, number: int) -> None:
        self.folder.remove(f"short{number}")

    def wait_for_all(self, family: int) -> None:
        """Return once all that was put before is in effect: a Service that is put afterwards answers."""
        self.put(OTHER, "p12")
        eventually(lambda: self.names("p11", family, number=OTHER) == {"p12"})
        self.remove(OTHER)
        eventually(lambda: self.names("p11", family, number=OTHER) != {"p12"})

    def question(self, asker: str, family: int, proto: str = "tcp", number: int = WEB) -> ProbeQuestion:
        return ProbeQuestion(self.lab.host(asker).netns, cluster_ip(number, family), 80, proto)

    def names(self, asker: str, family: int = 4, proto: str = "tcp", number: int = WEB) -> set[str]:
        return set(spread(self.question(asker, family, proto, number), 16))

    def endpoints(self, family: int) -> list[tuple[str, str, int]]:
        """Return name, state and open connections of each endpoint, as `show` has them."""
        return [(self._name(row, family), row["state"], row["active"]) for row in self._shown("endpoints", family)]

    def weights(self, family: int) -> list[tuple[str, int]]:
        """Return name and weight of each endpoint, as `show` has them."""
        return [(self._name(row, family), row["weight"]) for row in self._shown("endpoints", family)]

    def connections(self, family: int) -> list[tuple[str, str]]:
        """Return the endpoint's name and the state of each connection, as `show` has them."""
        return [(self._name(row, family), row["state"]) for row in self._shown("connections", family)]

    def _shown(self, topic: str, family: int) -> list[dict[str, Any]]:
        argv = [sys.executable, "-m", "ipvsproxy", "show", topic, "-o", "json", "--limit=0"]
        items = json.loads(netns.run(self.lab.nodes[0].netns, argv))["items"]
        frontend = str(FrontendKey(parse_ip(cluster_ip(WEB, family)), 6, 80))
        return [row for row in items if row["frontend"] == frontend]

    def _name(self, row: dict[str, Any], family: int) -> str:
        names = {format_endpoint(parse_ip(pod.address(family)), 8080): pod.name for pod in self.lab.pods}
        return names.get(row["endpoint"], row["endpoint"])

    def has_server(self, family: int, proto: int = 6, number: int = WEB) -> bool:
        with netns.inside(self.lab.nodes[0].netns):
            opened = Ipvs()
        with contextlib.closing(opened):
            return FrontendKey(parse_ip(cluster_ip(number, family)), proto, 80) in opened.servers()


@contextlib.contextmanager
def short_services(lab: Lab, path: pathlib.Path, *args: str) -> Iterator[ShortServices]:
    """Have a proxy for such Services, with more arguments, whose pods listen; then leave the lab as it was."""
    folder = ManifestFolder(path)
    folder.write_nodes(lab)
    for host in (*lab.pods, lab.nodes[0]):
        lab.responder.listen(host, 8080)
        lab.responder.listen(host, 8081, "udp")
        if not missing("sctp"):
            lab.responder.listen(host, 8082, "sctp")
    services = ShortServices(lab, folder, [*ARGS, *args])
    try:
        yield services
    finally:
        services.proxy.kill()
        lab.take_back()


class TappedConversation:
    """A connection of p12 with an endpoint on the short path, and what arrives at both ends."""

    def __init__(
        self, short: ShortServices, family: int, endpoint: str, address: str, stack: contextlib.ExitStack
    ) -> None:
        self._client, self._pod = short.lab.host("p12"), short.lab.host(endpoint)
        self._family = family
        question = replace(short.question("p12", family), address=address)
        self.talk = stack.enter_context(Conversation(question, 4))
        tap = lambda host: stack.enter_context(contextlib.closing(Tap(host.netns, family)))  # noqa: E731
        self._of_client, self._of_pod = tap(self._client), tap(self._pod)
        self._mine = self.talk.socket.getsockname()[:2]
        self._vip = self.talk.socket.getpeername()[:2]

    def answers(self) -> bool:
        """Whether the pod still answers a request."""
        return self.talk.ask().name == self._pod.name

    def send_far_ahead(self) -> list[bytes]:
        """Send from both ends what conntrack calls invalid; return what the client gets."""
        assert self.answers()
        to_client = [found for found in self._of_client.arrived() if found.port == self._mine[1]][-1]
        to_pod = [found for found in self._of_pod.arrived() if found.source_port == self._mine[1]][-1]
        endpoint_of = (self._pod.address(self._family), 8080)
        send_ahead(self._client.netns, self._mine, self._vip, to_pod, b"far ahead")
        send_ahead(self._pod.netns, endpoint_of, self._mine, to_client, b"far ahead")
        return [found.payload for found in self._of_client.arrived(2.0) if found.port == self._mine[1]]


@contextlib.contextmanager
def tapped(short: ShortServices, family: int, endpoint: str, address: str = "") -> Iterator[TappedConversation]:
    """Have such a connection to the ClusterIP, or to another address."""
    with contextlib.ExitStack() as stack:
        yield TappedConversation(short, family, endpoint, address or cluster_ip(WEB, family), stack)
