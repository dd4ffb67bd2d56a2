"""The loss of a node that connections came in through: a router moves them, and how many go on is counted.

    users ── router ─┬─ node1 (lost)
                     ├─ node2 ── p21, p22
                     └─ node3 ── p31, p32

The router is the lab's client. It sends connections to nodes by their source port, as one that hashes would do,
and moves only those of the lost node, half of them to each of the others.
"""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Iterator, Sequence

import pytest

from ipvsproxy.base import messages
from tests.lab import netns
from tests.lab.direct import prepare
from tests.lab.lab import Lab
from tests.lab.manifests import ManifestFolder, dual_slices, port
from tests.lab.probe import Conversation, ProbeQuestion, spread
from tests.lab.published import balancer, published
from tests.lab.waiting import eventually
from tests.support.api_object import ApiObject

pytestmark = pytest.mark.needs("ip_vs", "nf_tables")

NUMBER = 94
NUMBERS = {"tcp": 80, "udp": 81}
PORTS = [port(number, number, proto.upper(), proto) for proto, number in NUMBERS.items()]
PODS = ("p21", "p22", "p31", "p32")
VIPS = {family: balancer(NUMBER, family) for family in (4, 6)}
USERS = {4: "198.18.0.2", 6: "2001:db8:18::2"}
FIRST_PORT, EACH = 21000, 20  # ports that the kernel gives to no other connection
STEP = 100
"""Each trial has source ports of its own: IPVS remembers UDP clients for minutes."""
KINDS = [(proto, family) for proto in NUMBERS for family in (4, 6)]
MAGLEV = {"ipvsproxy.io/forwarding": "ipip", "ipvsproxy.io/scheduler": "mh"}


class EcmpRouter:
    """The lab's client, with the users behind it."""

    def __init__(self, lab: Lab) -> None:
        self.lab, self.users = lab, f"{lab.prefix}-users"
        self.first_port = FIRST_PORT

    def build(self) -> None:
        client = self.lab.client.netns
        netns.ip(
            None,
            f"netns add {self.users}",
            f"link add users netns {client} type veth peer eth0 netns {self.users}",
        )
        netns.set_sysctls(client, {"net/ipv4/ip_forward": 1, "net/ipv6/conf/all/forwarding": 1})
        netns.ip(
            client,
            "link set users up",
            "address add 198.18.0.1/24 dev users",
            "address add 2001:db8:18::1/64 dev users nodad",
        )
        netns.ip(self.users, "link set lo up", "link set eth0 up", f"address add {USERS[4]}/24 dev eth0",
           f"address add {USERS[6]}/64 dev eth0 nodad", "route add default via 198.18.0.1",
           "route add default via 2001:db8:18::1")  # fmt: skip
        for number, node in enumerate(self.lab.nodes, 1):
            netns.ip(client, *(f"route add default via {node.address(f)} table {number}" for f in (4, 6)))
        self.all_nodes()

    def remove(self) -> None:
        netns.ip(None, f"netns del {self.users}")

    def all_nodes(self) -> None:
        self._spread([(1, 0, EACH), (2, EACH, 2 * EACH), (3, 2 * EACH, 3 * EACH)])

    def lose_the_first(self) -> None:
        self._spread([(2, 0, EACH // 2), (3, EACH // 2, EACH), (2, EACH, 2 * EACH), (3, 2 * EACH, 3 * EACH)])

    def _spread(self, parts: Sequence[tuple[int, int, int]]) -> None:
        """Have tables, which are those of nodes, for source ports from a first to before a last one."""
        for version in ("-4", "-6"):
            forget = f"while ip {version} rule del pref 100 2>/dev/null; do :; done"
            netns.run(self.lab.client.netns, ["sh", "-c", forget])
            for table, first, end in parts:
                ports = f"{self.first_port + first}-{self.first_port + end - 1}"
                rule = f"rule add pref 100 iif users sport {ports} lookup {table}"
                netns.run(self.lab.client.netns, ["ip", version, *rule.split()])


class NodeLossTrial:
    """Three nodes with proxies, and the Service."""

    def __init__(self, lab: Lab, folder: ManifestFolder, router: EcmpRouter) -> None:
        self.lab, self.folder, self.router = lab, folder, router

    def put(self, annotations: dict[str, str]) -> None:
        made: ApiObject = published("ecmp", NUMBER, PORTS)
        made["metadata"]["annotations"] = annotations
        self.folder.write("ecmp", made, *dual_slices(self.lab, "ecmp", PORTS, map(self.lab.host, PODS)))
        for node in self.lab.nodes:
            eventually(lambda at=node: self._is_programmed(at.netns, annotations))
        for proto, family in KINDS:
            asking = ProbeQuestion(self.router.users, VIPS[family], NUMBERS[proto], proto)
            eventually(lambda question=asking: spread(question, 8).keys() <= {*PODS})

    def _is_programmed(self, where: str, annotations: dict[str, str]) -> bool:
        with netns.inside(where):
            table = pathlib.Path("/proc/thread-self/net/ip_vs").read_text()
        scheduler = annotations.get("ipvsproxy.io/scheduler", "rr")
        return table.count(f" {scheduler} ") >= len(KINDS) and ("Tunnel" in table) == (len(annotations) > 1)

    def survivors(self) -> dict[tuple[str, int], int]:
        """Of three times EACH connections of each kind, how many are answered by the same pod after the loss."""
        self.router.first_port += STEP
        self.router.all_nodes()
        with contextlib.ExitStack() as opened:
            flows = {
                kind: [opened.enter_context(self._flow(*kind, at)) for at in range(3 * EACH)] for kind in KINDS
            }
            names = {kind: [flow.ask().name for flow in found] for kind, found in flows.items()}
            assert {name for found in names.values() for name in found} == {*PODS}
            self.router.lose_the_first()
            netns.ip(f"{self.lab.prefix}-lan", "link set node1 down")
            try:
                return {kind: sum(map(_still, found, names[kind])) for kind, found in flows.items()}
            finally:
                netns.ip(f"{self.lab.prefix}-lan", "link set node1 up")

    def _flow(self, proto: str, family: int, at: int) -> Conversation:
        return Conversation(
            ProbeQuestion(
                self.router.users, VIPS[family], NUMBERS[proto], proto, src_port=self.router.first_port + at
            )
        )


def _still(flow: Conversation, name: str) -> bool:
    flow.socket.settimeout(2)
    return flow.ask().name == name


@pytest.fixture(scope="module")
def trial(lab_of_three: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeLossTrial]:
    lab, folder = lab_of_three, ManifestFolder(pathlib.Path(tmp_path_factory.mktemp("ecmp")))
    folder.write_nodes(lab)
    router = EcmpRouter(lab)
    router.build()
    for pod in PODS:
        prepare(lab, pod, [(VIPS[4], VIPS[6])], "ipip", NUMBERS)
    proxies = [lab.proxy(node, folder.path, wait=False) for node in lab.nodes]
    for proxy in proxies:
        proxy.wait_for(messages.SYNCED)
    yield NodeLossTrial(lab, folder, router)
    router.remove()


def test_by_default_tcp_connections_of_a_lost_node_end(trial: NodeLossTrial) -> None:
    """NAT and rr, as kube-proxy has them; UDP finds its endpoint by chance."""
    trial.put({})
    found = trial.survivors()
    assert {found["tcp", family] for family in (4, 6)} == {2 * EACH}
    assert all(2 * EACH <= found["udp", family] < 3 * EACH for family in (4, 6))


def test_with_maglev_and_direct_server_return_udp_goes_on(trial: NodeLossTrial) -> None:
    trial.put(MAGLEV)
    assert trial.survivors() == {kind: (3 if kind[0] == "udp" else 2) * EACH for kind in KINDS}


@pytest.mark.parametrize("loose", [1, 0])
def test_with_sloppy_tcp_all_connections_go_on(trial: NodeLossTrial, loose: int) -> None:
    trial.put(MAGLEV)
    for proxy in trial.lab.proxies:
        netns.set_sysctls(proxy.netns, {"net/netfilter/nf_conntrack_tcp_loose": loose})
        proxy.kill()
        proxy.argv.append("--ipvs-sloppy-tcp")
        proxy.start()
    for proxy in trial.lab.proxies:
        proxy.wait_for(messages.SYNCED)
        assert netns.get_sysctl(proxy.netns, "net/ipv4/vs/sloppy_tcp") == "1"
    assert trial.survivors() == dict.fromkeys(KINDS, 3 * EACH)
