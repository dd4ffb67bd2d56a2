"""Direct server return: packets go to a pod in a tunnel, and the pod answers past the node that balances."""

from __future__ import annotations

import contextlib
import json
import pathlib
import re
import socket
import sys
import threading
from collections.abc import Iterator, Sequence

import pytest

from ipvsproxy.base import messages
from ipvsproxy.base.address import format_endpoint, parse_ip
from tests.lab import netns
from tests.lab.direct import prepare, take_back
from tests.lab.lab import Lab
from tests.lab.manifests import ManifestFolder, dual_slices, port
from tests.lab.probe import Conversation, ProbeQuestion, Result, probe_many
from tests.lab.published import balancer, cluster_ip, external, published
from tests.lab.waiting import eventually
from tests.support.api_object import ApiObject

pytestmark = pytest.mark.needs("ip_vs", "nf_tables")

NUMBER = 93
PORTS = [
    port(80, 80, "TCP", "web"),
    port(81, 81, "UDP", "ask"),
    port(83, 83, "SCTP", "calls"),
    *(port(82, 82, p, f"long-{p.lower()}") for p in ("TCP", "UDP")),
]
NUMBERS = {"tcp": 80, "udp": 81, "sctp": 83}
LONG, FORGED_PORT = 82, 5555
PODS = ("p11", "p21")
SIZE = 300_000
OVERHEAD = {("ipip", 4): 20, ("gue", 4): 32, ("ipip", 6): 40, ("gue", 6): 52}
MTU_OPTION = {4: (socket.IPPROTO_IP, 14), 6: (socket.IPPROTO_IPV6, 24)}
VIPS = {family: (balancer(NUMBER, family), external(NUMBER, family)) for family in (4, 6)}


class DirectService:
    """A Service on both nodes, whose pods are prepared, and what clients of it see."""

    def __init__(self, lab: Lab, folder: ManifestFolder, tunnel: str) -> None:
        self.lab, self.folder, self.tunnel = lab, folder, tunnel
        self._listening: list[socket.socket] = []

    def put(self, forwarding: str | None = None, pods: Sequence[str] = PODS, **spec: object) -> None:
        made: ApiObject = published("direct", NUMBER, PORTS, **spec)
        made["metadata"]["annotations"] = {"ipvsproxy.io/forwarding": forwarding or self.tunnel}
        self.folder.write("direct", made, *dual_slices(self.lab, "direct", PORTS, map(self.lab.host, pods)))

    def prepare(self, pod: str) -> None:
        """What the init container of a pod does, and what the pod's program does then."""
        prepare(self.lab, pod, zip(*VIPS.values(), strict=True), self.tunnel, NUMBERS)
        for family in (4, 6):
            self._echo_at_length(self.lab.host(pod).netns, VIPS[family][0], "tcp")
            self._echo_at_length(self.lab.host(pod).netns, VIPS[family][0], "udp")

    def _echo_at_length(self, where: str, address: str, proto: str) -> None:
        """Take SIZE bytes of each connection and send as many back, or each datagram."""
        listening = netns.open_socket(where, address, proto)
        listening.setblocking(True)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((address, LONG))
        self._listening.append(listening)
        work = _echo_datagrams if proto == "udp" else _echo_streams
        if proto == "tcp":
            listening.listen()
        threading.Thread(target=work, args=(listening,), daemon=True).start()

    def question(self, asker: str, address: str, proto: str = "tcp") -> ProbeQuestion:
        return ProbeQuestion(self.lab.host(asker).netns, address, NUMBERS[proto], proto)

    def ask(self, asker: str, address: str, proto: str = "tcp", times: int = 8) -> list[Result]:
        return probe_many([self.question(asker, address, proto)] * times)

    def answers(self, asker: str, address: str, proto: str = "tcp") -> set[tuple[str, str]]:
        """Who answers, and which source they see; or what becomes of the question."""
        found = self.ask(asker, address, proto)
        return {(result.name or result.outcome, result.seen_source) for result in found}

    def is_direct(self, family: int) -> bool:
        """Whether endpoints on both nodes see the client itself."""
        client = self.lab.client.address(family)
        return self.answers("client", VIPS[family][0]) == {(pod, client) for pod in PODS}

    def remove(self) -> None:
        for listening in self._listening:
            with contextlib.suppress(OSError):
                listening.shutdown(socket.SHUT_RDWR)  # or the thread that waits keeps it
            listening.close()
        for pod in PODS:
            take_back(self.lab, pod)


def _echo_streams(listening: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while True:
            connection, _ = listening.accept()
            with connection, contextlib.suppress(OSError):
                connection.settimeout(20)
                if take(connection) == SIZE:
                    connection.sendall(bytes(SIZE))


def _echo_datagrams(listening: socket.socket) -> None:
    with contextlib.suppress(OSError):
        data, client = listening.recvfrom(1 << 16)
        while client:  # none once it is shut down
            listening.sendto(data, client)
            data, client = listening.recvfrom(1 << 16)


def take(connection: socket.socket) -> int:
    """Receive SIZE bytes, or fewer if the other end closes."""
    count = 0
    while count < SIZE and (data := connection.recv(1 << 16)):
        count += len(data)
    return count


@pytest.fixture(scope="module", params=["ipip", "gue"])
def direct(
    request: pytest.FixtureRequest, session_lab: Lab, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[DirectService]:
    lab, folder = session_lab, ManifestFolder(pathlib.Path(tmp_path_factory.mktemp("direct")))
    folder.write_nodes(lab)
    service = DirectService(lab, folder, request.param)
    for pod in PODS:
        service.prepare(pod)
    service.put()
    proxies = [lab.proxy(node, folder.path, wait=False) for node in lab.nodes]
    for proxy in proxies:
        proxy.wait_for(messages.SYNCED)
    yield service
    for proxy in proxies:
        proxy.kill()
    service.remove()
    lab.take_back()


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("proto", ["tcp", "udp", "sctp"])
@pytest.mark.parametrize("via", ["node1", "node2"])
def test_pods_of_all_nodes_answer_a_client_past_the_node_that_balances(
    direct: DirectService, via: str, proto: str, family: int
) -> None:
    lab, client = direct.lab, direct.lab.client.address(family)
    direct.put()
    for address in VIPS[family]:
        lab.route_client_via(lab.node(via), address)
        eventually(lambda to=address: direct.answers("client", to, proto) == {(pod, client) for pod in PODS})
    node, header = lab.node(via), "ip" if family == 4 else "ip6"
    local = next(pod for pod in PODS if lab.node_of(lab.host(pod)) is node)
    watch = f"""table inet watch {{ chain seen {{ type filter hook prerouting priority -400;
        iifname "eth0" {header} saddr {VIPS[family][0]} counter; }};
    }}"""
    lab.run(node, ["nft", "-f", "-"], watch)
    try:
        assert {name for name, _ in direct.answers("client", VIPS[family][0], proto)} - {local}
        assert re.findall(r"packets (\d+)", lab.run(node, ["nft", "list", "table", "inet", "watch"])) == ["0"]
    finally:
        lab.run(node, ["nft", "delete table inet watch"])
        lab.reset_client_routes()


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("proto", ["tcp", "udp"])
@pytest.mark.parametrize("asker", ["p12", "node1", "node2"])
def test_local_pods_and_nodes_reach_it_as_before(
    direct: DirectService, asker: str, proto: str, family: int
) -> None:
    direct.put()
    for address in (*VIPS[family], cluster_ip(NUMBER, family)):
        eventually(lambda to=address: {name for name, _ in direct.answers(asker, to, proto)} == {*PODS})


@pytest.mark.parametrize("family", [4, 6])
def test_a_pod_reaches_itself(direct: DirectService, family: int) -> None:
    """It has the VIP, so its packets to it do not leave it."""
    direct.put()
    assert {name for name, _ in direct.answers("p11", VIPS[family][0])} == {"p11"}
    assert {name for name, _ in direct.answers("p11", cluster_ip(NUMBER, family))} == {*PODS}


@pytest.mark.parametrize("family", [4, 6])
def test_long_streams_and_the_mtu_of_the_tunnel(direct: DirectService, family: int) -> None:
    direct.put()
    eventually(lambda: direct.is_direct(family))
    asking = netns.open_socket(direct.lab.client.netns, VIPS[family][0], "tcp")
    with asking:
        asking.settimeout(20)
        asking.connect((VIPS[family][0], LONG))
        asking.sendall(bytes(SIZE))
        assert take(asking) == SIZE
        assert asking.getsockopt(*MTU_OPTION[family]) == 1500 - OVERHEAD[direct.tunnel, family]


@pytest.mark.parametrize("family", [4, 6])
def test_long_datagrams_and_their_long_answers(direct: DirectService, family: int) -> None:
    """What is longer than the tunnel takes is refused at first, and then comes in fragments, as the answers do."""
    direct.put()
    eventually(lambda: direct.is_direct(family))
    asking = netns.open_socket(direct.lab.client.netns, VIPS[family][0], "udp")
    with asking:
        asking.settimeout(1)
        asking.connect((VIPS[family][0], LONG))
        for size in (100, 1500 - OVERHEAD[direct.tunnel, family] - 48, 1472, 4000):
            eventually(lambda sent=bytes(size): echoed(asking, sent))


def echoed(asking: socket.socket, sent: bytes) -> bool:
    with contextlib.suppress(OSError):
        asking.send(sent)
        return asking.recv(1 << 16) == sent
    return False


@pytest.mark.parametrize("family", [4, 6])
def test_a_live_service_changes_its_way(direct: DirectService, family: int) -> None:
    """Open connections go on as they began; back from direct server return they end, and new ones do not."""
    client = direct.lab.client.address(family)
    direct.put("masquerade")
    eventually(lambda: not {source for _, source in direct.answers("client", VIPS[family][0])} & {client, ""})
    with contextlib.ExitStack() as kept:
        question = direct.question("client", VIPS[family][0])
        old = [kept.enter_context(Conversation(question)) for _ in range(4)]
        assert {found.ask().outcome for found in old} == {"answered"}
        direct.put()
        eventually(lambda: direct.is_direct(family))
        assert {found.ask().outcome for found in old} == {"answered"}
        assert not {found.ask().seen_source for found in old} & {client}
    direct.put("masquerade")
    eventually(lambda: not {source for _, source in direct.answers("client", VIPS[family][0])} & {client, ""})
    assert direct.ask("client", VIPS[family][0])[0].outcome == "answered"


@pytest.mark.parametrize("family", [4, 6])
def test_source_ranges_count_and_connections_go_on(direct: DirectService, family: int) -> None:
    address, client = balancer(NUMBER, family), direct.lab.client.address(family)
    direct.put(loadBalancerSourceRanges=["192.0.2.100/32", "2001:db8:2::100/128"])
    eventually(lambda: direct.is_direct(family))
    with Conversation(direct.question("client", address)) as kept:
        assert kept.ask().seen_source == client
        direct.put(loadBalancerSourceRanges=["192.0.2.200/32", "2001:db8:2::200/128"])
        eventually(lambda: direct.answers("client", address) == {("timeout", "")})
        assert kept.ask().outcome == "timeout"
    assert direct.answers("client", external(NUMBER, family)) == {(pod, client) for pod in PODS}


DROP_INVALID = "table inet strict { chain input { type filter hook input priority 10; ct state invalid drop; }; }"


@pytest.mark.parametrize("family", [4, 6])
def test_a_firewall_that_drops_what_is_invalid_does_no_harm(direct: DirectService, family: int) -> None:
    """To conntrack of the node that balances all but the first packet of a client is invalid."""
    lab, address = direct.lab, VIPS[family][0]
    direct.put()
    eventually(lambda: direct.is_direct(family))
    lab.run(lab.nodes[0], ["nft", DROP_INVALID])
    try:
        assert direct.is_direct(family)
        with Conversation(direct.question("client", address)) as kept:
            assert {kept.ask().outcome for _ in range(3)} == {"answered"}
    finally:
        lab.run(lab.nodes[0], ["nft", "delete table inet strict"])


def test_strict_reverse_path_filters_and_closed_forward_chains_do_no_harm(direct: DirectService) -> None:
    lab = direct.lab
    direct.put()
    for node in lab.nodes:
        netns.set_sysctls(node.netns, {"net/ipv4/conf/cni0/rp_filter": 1, "net/ipv4/conf/all/rp_filter": 1})
    closed = "table inet closed { chain f { type filter hook forward priority 0; policy drop; }; }"
    try:
        for node in lab.nodes:
            lab.run(node, ["nft", closed])
        for family in (4, 6):
            eventually(lambda of=family: "p11" in {name for name, _ in direct.answers("client", VIPS[of][0])})
    finally:
        for node in lab.nodes:
            netns.set_sysctls(node.netns, {"net/ipv4/conf/cni0/rp_filter": 2, "net/ipv4/conf/all/rp_filter": 2})
            lab.run(node, ["nft", "delete table inet closed"])


@pytest.mark.parametrize("family", [4, 6])
def test_connections_outlive_a_restart_and_the_removal_of_their_endpoint(
    direct: DirectService, family: int
) -> None:
    lab, address = direct.lab, VIPS[family][0]
    direct.put()
    eventually(lambda: direct.is_direct(family))
    with contextlib.ExitStack() as kept:
        opened = [kept.enter_context(Conversation(direct.question("client", address))) for _ in range(4)]
        names = [found.ask().name for found in opened]
        assert {*names} == {*PODS}
        lab.proxies[0].kill()
        lab.proxies[0].start()
        lab.proxies[0].wait_for(messages.SYNCED)
        assert [found.ask().name for found in opened] == names
        direct.put(pods=["p21"])
        eventually(lambda: {name for name, _ in direct.answers("client", address)} == {"p21"})
        assert [found.ask().name for found in opened] == names


def test_commands_know_the_tunnel(direct: DirectService) -> None:
    lab, address = direct.lab, VIPS[4][0]
    direct.put()
    eventually(lambda: direct.is_direct(4))
    proxy = [sys.executable, "-m", "ipvsproxy"]
    shown = lab.run(
        lab.nodes[0], [*proxy, "show", "endpoints", "direct", "-o", "wide", f"--manifests={direct.folder.path}"]
    )
    assert {line.split()[-5] for line in shown.splitlines() if f"{address}:80/TCP" in line} == {direct.tunnel}
    told = lab.run(lab.nodes[0], [*proxy, "explain", "192.0.2.100", f"{address}:80"])
    assert f"in a tunnel ({direct.tunnel})" in told
    own = lab.run(lab.nodes[0], [*proxy, "explain", "node", f"{address}:80"])
    assert "internal view" in own
    assert "in a tunnel" not in own


@pytest.mark.parametrize("family", [4, 6])
def test_doctor_finds_pods_that_are_not_prepared(direct: DirectService, family: int) -> None:
    lab, address = direct.lab, VIPS[family][0]
    direct.put()
    eventually(lambda: direct.is_direct(family))
    assert doctor(direct)["verdict"] == "ok"
    direct.put(pods=[*PODS, "p12"])
    eventually(lambda: "" in {source for _, source in direct.answers("client", address)})
    found = doctor(direct)
    assert found["verdict"] == "problem"
    (line,) = [line for line in found["evidence"] if address in line]
    assert line.startswith(f"{format_endpoint(parse_ip(lab.host('p12').address(family)), 80)} for ")


def doctor(direct: DirectService) -> ApiObject:
    """What doctor makes of direct server return."""
    argv = [
        sys.executable,
        "-m",
        "ipvsproxy",
        "doctor",
        "default/direct",
        f"--manifests={direct.folder.path}",
        "-o",
        "json",
    ]
    findings = json.loads(direct.lab.run(direct.lab.nodes[0], argv, check=False))["findings"]
    (found,) = [finding for finding in findings if finding["check"] == "direct return"]
    return found


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize(("sender", "pod"), [("client", "p12"), ("client", "p22"), ("p12", "p22")])
def test_no_pod_gets_a_forged_answer(direct: DirectService, sender: str, pod: str, family: int) -> None:
    """Pods reach the address by their own node, which translates: no answer comes to them past it."""
    lab, address = direct.lab, VIPS[family][0]
    direct.put()
    eventually(lambda: direct.is_direct(family))
    target, forger = lab.host(pod), lab.host(sender)
    length = 32 if family == 4 else "128 nodad"
    netns.ip(forger.netns, f"address add {address}/{length} dev lo")
    any_address = "0.0.0.0" if family == 4 else "::"
    try:
        with (
            netns.open_socket(target.netns, any_address, "udp") as receiving,
            netns.open_socket(forger.netns, address, "udp") as forging,
            netns.open_socket(forger.netns, any_address, "udp") as honest,
        ):
            receiving.bind((any_address, FORGED_PORT))
            receiving.setblocking(True)
            receiving.settimeout(10)
            forging.bind((address, NUMBERS["udp"]))
            for _ in range(3):
                forging.sendto(b"forged", (target.address(family), FORGED_PORT))
            honest.sendto(b"honest", (target.address(family), FORGED_PORT))
            assert receiving.recv(100) == b"honest"
    finally:
        netns.ip(forger.netns, f"address del {address}/{32 if family == 4 else 128} dev lo")


def test_a_node_relays_nothing_for_hosts_of_its_lan(direct: DirectService) -> None:
    """Who sends with the VIP as source from outside is no pod; the kernel drops that, as without the rules."""
    lab, address = direct.lab, VIPS[4][0]
    near, far = lab.nodes
    direct.put()
    eventually(lambda: direct.is_direct(4))
    watch = f"""table inet watch {{ chain seen {{ type filter hook prerouting priority -400;
        ip saddr {address} udp sport 81 ip daddr 192.0.2.222 counter; }};
    }}"""
    lab.run(far, ["nft", "-f", "-"], watch)
    lab.run(near, ["ip", "route", "add", "192.0.2.222", "via", far.ipv4])
    for line in (f"address add {address}/32 dev lo", f"route add 192.0.2.222 via {near.ipv4}"):
        lab.run(lab.client, ["ip", *line.split()])
    try:
        with netns.open_socket(lab.client.netns, address, "udp") as forging:
            forging.bind((address, 81))
            forging.sendto(b"forged", ("192.0.2.222", 9))
        lab.run(near, ["ip", "neigh"])
        assert re.findall(r"packets (\d+)", lab.run(far, ["nft", "list", "table", "inet", "watch"])) == ["0"]
    finally:
        lab.run(lab.client, ["ip", "address", "del", f"{address}/32", "dev", "lo"])
        lab.run(lab.client, ["ip", "route", "del", "192.0.2.222"])
        lab.run(near, ["ip", "route", "del", "192.0.2.222"])
        lab.run(far, ["nft", "delete table inet watch"])
