"""Who answers ARP for a VIP on the LAN, and what a node's own questions announce; real ARP on a real bridge."""

from __future__ import annotations

import pathlib
import socket
import struct
from collections.abc import Iterator

import pytest

from ipvsproxy.base import messages
from tests.lab import netns
from tests.lab.lab import DEFAULT_PROXY_ARGS, Lab
from tests.lab.manifests import ManifestFolder, endpoint, endpoint_slice, port, service
from tests.lab.probe import probe
from tests.lab.proxy import LabProxy
from tests.lab.waiting import eventually

pytestmark = pytest.mark.needs("ip_vs", "nf_tables")

PORTS = (port(80, 8080),)
CLUSTER_IP, VIP, HELD, OTHER = "10.96.9.1", "192.0.2.200", "192.0.2.201", "192.0.2.202"
ETH_P_ARP = 0x0806
REQUEST, REPLY = 1, 2
ARP = struct.Struct(">HHBBH6s4s6s4s")
WAIT_SECONDS = 2.0


class LanEnd:
    """ARP on the client's end of the LAN."""

    def __init__(self, lab: Lab) -> None:
        self.address = socket.inet_aton(lab.client.ipv4)
        with netns.inside(lab.client.netns):
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ARP))
            self._socket.bind(("eth0", ETH_P_ARP))
        self._socket.settimeout(WAIT_SECONDS)
        self.mac: bytes = self._socket.getsockname()[4]

    def ask(self, address: str) -> list[bytes]:
        """Ask who has an address; return the MACs of those who say so, until nobody has for a while."""
        target = socket.inet_aton(address)
        body = ARP.pack(1, 0x0800, 6, 4, REQUEST, self.mac, self.address, bytes(6), target)
        self._socket.send(b"\xff" * 6 + self.mac + struct.pack(">H", ETH_P_ARP) + body)
        return [mac for operation, mac, sender, _ in self.heard() if (operation, sender) == (REPLY, target)]

    def heard(self) -> Iterator[tuple[int, bytes, bytes, bytes]]:
        """Yield (operation, sender's MAC, sender, target) until it is silent."""
        while True:
            try:
                frame = self._socket.recv(2048)
            except TimeoutError:
                return
            _, _, _, _, operation, mac, sender, _, target = ARP.unpack_from(frame, 14)
            yield operation, mac, sender, target

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def wire(session_lab: Lab) -> Iterator[LanEnd]:
    made = LanEnd(session_lab)
    yield made
    made.close()


@pytest.fixture(scope="module")
def proxies(session_lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[LabProxy]]:
    """Quiet on node1, as kube-proxy on node2."""
    lab, folder = session_lab, ManifestFolder(pathlib.Path(tmp_path_factory.mktemp("arp")))
    folder.write_nodes(lab)
    ends = [endpoint(lab, lab.host(pod)) for pod in ("p11", "p21")]
    web = service("web", PORTS, [CLUSTER_IP], type_="LoadBalancer", ingress=[VIP, HELD])
    folder.write("web", web, endpoint_slice("web", PORTS, ends))
    for pod in ("p11", "p21"):
        lab.responder.listen(lab.host(pod), 8080)
    lab.run(lab.nodes[0], ["ip", "address", "add", f"{HELD}/32", "dev", "eth0"])
    lab.run(lab.nodes[0], ["ip", "address", "add", f"{OTHER}/32", "dev", "cni0"])
    started = [
        lab.proxy(node, folder.path, [*DEFAULT_PROXY_ARGS, *more], wait=False)
        for node, more in zip(lab.nodes, ([], ["--suppress-vip-arp=false"]), strict=True)
    ]
    for proxy in started:
        proxy.wait_for(messages.SYNCED)
    yield started
    for proxy in started:
        proxy.kill()
    lab.run(lab.nodes[0], ["ip", "address", "del", f"{HELD}/32", "dev", "eth0"])
    lab.run(lab.nodes[0], ["ip", "address", "del", f"{OTHER}/32", "dev", "cni0"])
    lab.clean_nodes()
    lab.responder.clear()


def mac_of(lab: Lab, node: int) -> bytes:
    with netns.inside(lab.nodes[node].netns), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as link:
        link.bind(("eth0", 0))
        return bytes(link.getsockname()[4])


def test_the_quiet_node_answers_for_its_own_addresses_and_not_for_vips(
    session_lab: Lab, proxies: list[LabProxy], wire: LanEnd
) -> None:
    quiet, loud = mac_of(session_lab, 0), mac_of(session_lab, 1)
    assert wire.ask(session_lab.nodes[0].ipv4) == [quiet]
    for vip in (CLUSTER_IP, VIP):
        assert wire.ask(vip) == [loud]
    # An address that a link of the node holds is answered, though it is a VIP, and so is one of no Service.
    assert quiet in wire.ask(HELD)
    assert quiet in wire.ask(OTHER)


def test_a_question_of_the_quiet_node_does_not_announce_a_vip(
    session_lab: Lab, proxies: list[LabProxy], wire: LanEnd
) -> None:
    lab, node = session_lab, session_lab.nodes[0]
    lab.route_client_via(node, f"{VIP}/32")
    for asked in (80, 81):  # served by an endpoint; refused by the node itself, with the VIP as source
        lab.run(node, ["ip", "neigh", "flush", "to", lab.client.ipv4])
        eventually(lambda number=asked: probe(lab.client.netns, VIP, number).outcome in ("answered", "refused"))
    lab.reset_client_routes()
    heard = [(mac, socket.inet_ntoa(sender)) for operation, mac, sender, _ in wire.heard() if operation == REQUEST]
    senders = {sender for mac, sender in heard if mac == mac_of(lab, 0)}
    assert senders == {node.ipv4}
