"""Path MTU discovery through a Service: each router's "fragmentation needed" finds the sender behind the NAT.

    far ──(1350)── client ── node1, node2 ── p22 ──(1300)── deep

`far` asks, and `client` is the router before it; `deep` is the endpoint, and `p22` is the router before it. Each
router takes only short packets towards what is behind it, and says so to whom it holds for their sender: the VIP
in one direction, and in the other one the client or, where a connection is masqueraded, the node.
"""

from __future__ import annotations

import contextlib
import pathlib
import socket
import threading
from collections.abc import Iterator

import pytest

from ipvsproxy.base import messages
from tests.lab import netns
from tests.lab.lab import Lab
from tests.lab.manifests import ManifestFolder, endpoint_slice, port, service
from tests.lab.published import balancer, cluster_ip
from tests.lab.waiting import eventually

pytestmark = pytest.mark.needs("ip_vs", "nf_tables")

SIZE = 100_000
FAR = {4: "198.18.0.2", 6: "2001:db8:18::2"}
DEEP = {4: "10.244.2.77", 6: "fd00:10:244:2::77"}
FAR_MTU, DEEP_MTU = 1350, 1300
MTU_OPTION = {4: (socket.IPPROTO_IP, 14), 6: (socket.IPPROTO_IPV6, 24)}
CLUSTER, LOCAL = 81, 82


class Places:
    """The two networks behind routers, and a server in the deeper one."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.far, self.deep = f"{lab.prefix}-far", f"{lab.prefix}-deep"
        self.server_mtu: dict[int, int] = {}
        self._listening: list[socket.socket] = []

    def build(self) -> None:
        client, router, node = self.lab.client.netns, self.lab.host("p22"), self.lab.nodes[1]
        netns.ip(None, f"netns add {self.far}", f"netns add {self.deep}")
        netns.ip(
            None,
            f"link add far netns {client} type veth peer eth0 netns {self.far}",
            f"link add deep netns {router.netns} type veth peer eth0 netns {self.deep}",
        )
        for where in (client, router.netns):
            netns.set_sysctls(where, {"net/ipv4/ip_forward": 1, "net/ipv6/conf/all/forwarding": 1})
        behind = "link set eth0 up", "link set lo up", "route replace default via fe80::1 dev eth0"
        self._router(client, "far", FAR, FAR_MTU)
        netns.ip(client, "address add 198.18.0.1/32 dev far")
        netns.ip(self.far, *behind, f"address add {FAR[4]}/24 dev eth0", f"address add {FAR[6]}/64 dev eth0 nodad",
              "route replace default via 198.18.0.1 dev eth0 onlink")  # fmt: skip
        self._router(router.netns, "deep", DEEP, DEEP_MTU)
        netns.ip(self.deep, *behind,
              f"address add {DEEP[4]}/32 dev eth0", f"address add {DEEP[6]}/128 dev eth0 nodad",
              f"route replace default via {router.ipv4} dev eth0 onlink")  # fmt: skip
        netns.ip(node.netns, *(f"route replace {DEEP[f]} via {router.address(f)}" for f in (4, 6)))

    def _router(self, where: str, link: str, behind: dict[int, str], mtu: int) -> None:
        """A router minds the MTU of a route only if it is locked."""
        netns.ip(where, f"link set {link} up", f"address add fe80::1/64 dev {link} nodad",
              *(f"route replace {address} dev {link} mtu lock {mtu}" for address in behind.values()))  # fmt: skip

    def remove(self) -> None:
        for listening in self._listening:
            listening.close()
        node, client = self.lab.nodes[1].netns, self.lab.client.netns
        netns.ip(node, *(f"route del {address}" for address in DEEP.values()))
        netns.set_sysctls(client, {"net/ipv4/ip_forward": 0, "net/ipv6/conf/all/forwarding": 0})
        netns.ip(None, f"netns del {self.far}", f"netns del {self.deep}")

    def serve(self) -> None:
        """Have `deep` take SIZE bytes of each connection and send as many back."""
        for family, address in DEEP.items():
            listening = netns.open_socket(self.deep, address, "tcp")
            listening.setblocking(True)
            listening.bind((address, 8080))
            listening.listen()
            self._listening.append(listening)
            threading.Thread(target=self._answer, args=(listening, family), daemon=True).start()

    def _answer(self, listening: socket.socket, family: int) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listening.accept()
                with connection, contextlib.suppress(OSError):
                    connection.settimeout(20)
                    if take(connection) == SIZE:
                        connection.sendall(bytes(SIZE))
                        connection.recv(1)  # until the other end has it all
                        self.server_mtu[family] = path_mtu(connection, family)


def take(connection: socket.socket) -> int:
    """Receive SIZE bytes, or fewer if the other end closes."""
    count = 0
    while count < SIZE and (data := connection.recv(1 << 16)):
        count += len(data)
    return count


def path_mtu(connection: socket.socket, family: int) -> int:
    return connection.getsockopt(*MTU_OPTION[family])


@pytest.fixture(scope="module")
def places(session_lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Places]:
    lab, folder = session_lab, ManifestFolder(pathlib.Path(tmp_path_factory.mktemp("mtu")))
    folder.write_nodes(lab)
    ports = [port(80, 8080)]
    pods = {f: {"addresses": [DEEP[f]], "conditions": {"ready": True}, "nodeName": "node2"} for f in (4, 6)}
    for number, name, policy in ((CLUSTER, "cluster", "Cluster"), (LOCAL, "local", "Local")):
        addresses = [[make(number, f) for f in (4, 6)] for make in (cluster_ip, balancer)]
        folder.write(
            name,
            service(
                name, ports, addresses[0], type_="LoadBalancer", ingress=addresses[1], externalTrafficPolicy=policy
            ),
            *(endpoint_slice(name, ports, [pods[f]], family=f) for f in (4, 6)),
        )
    places = Places(lab)
    places.build()
    places.serve()
    proxies = [lab.proxy(node, folder.path, wait=False) for node in lab.nodes]
    for proxy in proxies:
        proxy.wait_for(messages.SYNCED)
    yield places
    for proxy in proxies:
        proxy.kill()
    lab.clean_nodes()
    places.remove()
    lab.reset_client_routes()


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("way", ["masqueraded", "with its own source", "from a pod"])
def test_long_packets_are_made_short_in_both_directions(places: Places, way: str, family: int) -> None:
    lab = places.lab
    if way == "from a pod":
        asker, address = lab.host("p12").netns, cluster_ip(CLUSTER, family)
    else:
        asker, address = places.far, balancer(CLUSTER if way == "masqueraded" else LOCAL, family)
    if way == "with its own source":
        lab.route_client_via(lab.nodes[1], address)
    places.server_mtu.clear()
    with netns.open_socket(asker, address, "tcp") as asking:
        asking.settimeout(20)
        asking.connect((address, 80))
        asking.sendall(bytes(SIZE))
        assert take(asking) == SIZE
        assert path_mtu(asking, family) == DEEP_MTU
        asking.send(b"!")
        eventually(lambda: family in places.server_mtu, 10)
    assert places.server_mtu[family] == (1500 if way == "from a pod" else FAR_MTU)
