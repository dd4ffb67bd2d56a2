"""VIPs cannot hurt the node or its neighbours, and nobody slips through while a Service changes."""

from __future__ import annotations

import collections
import contextlib
import pathlib
import threading
from collections.abc import Iterator

import pytest
import yaml

from ipvsproxy.base import messages
from tests.lab import netns
from tests.lab.lab import DEFAULT_PROXY_ARGS, Lab
from tests.lab.manifests import ManifestFolder, endpoint, endpoint_slice, port, service
from tests.lab.probe import ProbeQuestion, probe, probe_many
from tests.lab.proxy import LabProxy
from tests.lab.waiting import eventually

HOST_PORT = 2222
pytestmark = pytest.mark.needs("ip_vs", "nf_tables")

PORTS = (port(80, 8080, name="http"), port(22, 8080, name="ssh"))
VIP, NEW_VIP, SPARE = "203.0.113.70", "203.0.113.71", "203.0.113.72"
OTHER, OTHERS_VIP, BROADCAST = "203.0.113.73", "203.0.113.74", "192.0.2.255"
CASES = pathlib.Path(__file__).parent.parent / "field" / "cases"
DENIED = "198.51.100.77"
RANGES = (["192.0.2.100/32"], ["192.0.2.96/27", "198.18.0.0/15"], ["192.0.2.100/32", "10.96.0.0/12"])


def write(lab: Lab, folder: ManifestFolder, name: str = "web", number: int = 1, **spec: object) -> None:
    made = service(name, PORTS, [f"10.96.7.{number}"], **spec)
    folder.write(name, made, endpoint_slice(name, PORTS, [endpoint(lab, lab.host("p11"))]))


@pytest.fixture(scope="module")
def proxy(session_lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabProxy]:
    lab, path = session_lab, pathlib.Path(tmp_path_factory.mktemp("safety"))
    ManifestFolder(path).write_nodes(lab)
    lab.responder.listen(lab.host("p11"), 8080)
    for host, number in ((lab.nodes[0], HOST_PORT), (lab.nodes[0], 22), (lab.nodes[1], HOST_PORT)):
        lab.responder.listen(host, number, everywhere=True)
    arguments = [*DEFAULT_PROXY_ARGS, "--denied-ip-ranges=198.51.100.64/26"]
    started = lab.proxy(lab.nodes[0], path, arguments)
    yield started
    lab.take_back()


@pytest.fixture
def folder(proxy: LabProxy) -> ManifestFolder:
    return ManifestFolder(
        pathlib.Path(next(a for a in proxy.argv if a.startswith("--manifests=")).partition("=")[2])
    )


def refusals(proxy: LabProxy) -> list[tuple[str, int, list[str]]]:
    lines = proxy.events(messages.ADDRESSES_REFUSED)
    return [(line["service"], line["count"], line["addresses"]) for line in lines]


def bound(lab: Lab) -> str:
    return lab.run(lab.nodes[0], ["ip", "-o", "address", "show", "kube-ipvs0"])


def test_addresses_that_belong_to_others_stay_where_they_are(
    session_lab: Lab, proxy: LabProxy, folder: ManifestFolder
) -> None:
    """node2 is the next hop to its pods, the client that to the rest of the world."""
    lab, (node, neighbour) = session_lab, session_lab.nodes
    mine = [SPARE, OTHER]
    wanted = [neighbour.ipv4, lab.client.ipv4, node.ipv4, BROADCAST, lab.host("p21").ipv4, OTHERS_VIP, DENIED]
    write(lab, folder, "owner", 3, type_="LoadBalancer", ingress=[OTHERS_VIP])
    write(lab, folder, externalIPs=[*wanted, "127.0.0.1", "169.254.169.254", "168.63.129.16", *mine])
    eventually(lambda: probe(lab.client.netns, SPARE, 80).name == "p11")
    assert refusals(proxy)[-1:] == [
        ("default/web", 10, [
            f"{neighbour.ipv4}: an address of another node",
            f"{lab.client.ipv4}: the address of a gateway, which this node could not reach any more",
            f"{node.ipv4}: an address of this node",
            f"{BROADCAST}: the address of a network's broadcast, which this node could not reach any more",
            f"{lab.host('p21').ipv4}: in the range of pods",
        ])
    ]  # fmt: skip
    assert not [address for address in wanted if f" {address}/" in bound(lab) and address != OTHERS_VIP]
    # The neighbour and the node itself are reached, also on the port of the Service.
    assert [probe(node.netns, neighbour.ipv4, number).name for number in (HOST_PORT, 22)] == ["node2", ""]
    assert [probe(lab.client.netns, node.ipv4, number).name for number in (22, HOST_PORT, 80)] == [
        "node1",
        "node1",
        "",
    ]
    # What is refused here may be another host's: it is not answered by this node.
    lab.route_client_via(node, DENIED)
    assert probe(lab.client.netns, DENIED, 80, timeout=2).outcome != "answered"
    lab.reset_client_routes()
    folder.remove("owner")


def test_of_the_nodes_that_a_load_balancer_lists_this_one_serves_itself(
    session_lab: Lab, proxy: LabProxy, folder: ManifestFolder
) -> None:
    """ServiceLB of k3s, on a network where no route names node2 as a next hop."""
    lab, (node, neighbour) = session_lab, session_lab.nodes
    lab.run(node, ["ip", "route", "replace", "10.244.2.0/24", "dev", "eth0"])
    try:
        case = (CASES / "09-servicelb-other-nodes.yaml").read_text()
        folder.write("traefik", *yaml.safe_load_all(case))
        eventually(lambda: probe(lab.client.netns, node.ipv4, 80).name == "p11")
        assert probe(node.netns, node.ipv4, 80).name == "p11"
        for asking in (node, lab.host("p11"), lab.host("p12")):
            assert probe(asking.netns, neighbour.ipv4, HOST_PORT).name == "node2"
        assert f" {neighbour.ipv4}/" not in bound(lab)
        # The ports of the node's own programs stay theirs.
        assert [probe(lab.client.netns, node.ipv4, number).name for number in (22, HOST_PORT)] == ["node1"] * 2
        assert "default/traefik" not in {name for name, *_ in refusals(proxy)}
        assert len(proxy.events(messages.NODE_ADDRESSES_IGNORED)) == 1
    finally:
        lab.run(node, ["ip", "route", "replace", "10.244.2.0/24", "via", neighbour.ipv4])
        folder.remove("traefik")
    eventually(lambda: probe(lab.client.netns, node.ipv4, 80).name == "")


def test_ports_on_which_programs_of_the_node_listen_stay_theirs(
    session_lab: Lab, proxy: LabProxy, folder: ManifestFolder
) -> None:
    lab, node, client = session_lab, session_lab.nodes[0], session_lab.client.netns
    ports = [port(2380, 8080, name="etcd", node_port=31380), port(8472, 8080, "UDP", "overlay", 31472)]
    kinds = [("tcp", 2380, 31380), ("udp", 8472, 31472)]
    listening = [lab.responder.listen(node, number, proto) for proto, *numbers in kinds for number in numbers]
    made = service("greedy", ports, ["10.96.7.9"], type_="LoadBalancer", ingress=[node.ipv4])
    folder.write("greedy", made, endpoint_slice("greedy", ports, [endpoint(lab, lab.host("p11"))]))
    lab.responder.listen(lab.host("p11"), 8080, "udp")
    eventually(lambda: probe(lab.host("p12").netns, "10.96.7.9", 2380).name == "p11")
    asked = [ProbeQuestion(client, node.ipv4, number, proto) for proto, *numbers in kinds for number in numbers]
    assert {result.name for result in probe_many(asked)} == {"node1"}
    assert probe(node.netns, node.ipv4, 2380).name == "node1"
    for one in listening:
        one.stop()
    # Followed with each verification, or when a Service asks for another port.
    more = [*ports, port(2381, 8080, name="more", node_port=31381)]
    made = service("greedy", more, ["10.96.7.9"], type_="LoadBalancer", ingress=[node.ipv4])
    folder.write("greedy", made, endpoint_slice("greedy", more, [endpoint(lab, lab.host("p11"))]))
    eventually(lambda: {result.name for result in probe_many(asked)} == {"p11"})
    folder.remove("greedy")


def test_the_port_of_ssh_stays_the_nodes_where_a_load_balancer_gives_its_address(
    session_lab: Lab, proxy: LabProxy, folder: ManifestFolder
) -> None:
    lab, node = session_lab, session_lab.nodes[0]
    write(lab, folder, "here", 4, type_="LoadBalancer", ingress=[node.ipv4])
    eventually(lambda: probe(lab.client.netns, node.ipv4, 80).name == "p11")
    assert probe(lab.client.netns, node.ipv4, 22).name == "node1"
    assert (
        "default/here",
        1,
        [f"{node.ipv4}, port 22: the node's own address, where this port is ssh"],
    ) in refusals(proxy)
    folder.remove("here")


class Hammer(threading.Thread):
    """Asks the same questions again and again, and counts what becomes of each."""

    def __init__(self, *questions: ProbeQuestion) -> None:
        super().__init__(daemon=True)
        self.questions = questions
        self.seen = [collections.Counter[str]() for _ in questions]
        self._ended = threading.Event()

    def run(self) -> None:
        while not self._ended.is_set():
            for counter, result in zip(self.seen, probe_many(self.questions, 1.5), strict=True):
                counter[result.outcome] += 1

    def rounds(self) -> int:
        return sum(self.seen[0].values())

    def wait(self, rounds: int) -> None:
        until = self.rounds() + rounds
        eventually(lambda: self.rounds() >= until)

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        self.start()
        try:
            yield
        finally:
            self._ended.set()
            self.join()


def test_source_ranges_never_open_nor_close_while_they_change(
    session_lab: Lab, proxy: LabProxy, folder: ManifestFolder
) -> None:
    lab = session_lab
    balanced = {"type_": "LoadBalancer", "ingress": [VIP]}
    write(lab, folder, loadBalancerSourceRanges=RANGES[0], **balanced)
    inside, outside = lab.client.netns, lab.host("p12").netns
    eventually(lambda: probe(inside, VIP, 80).name == "p11")
    # The one that is allowed asks twice as often as the other, whose question takes its whole time.
    allowed, denied = Hammer(ProbeQuestion(inside, VIP, 80)), Hammer(*[ProbeQuestion(outside, VIP, 80)] * 4)
    with allowed.at_work(), denied.at_work():
        for turn in range(4):
            write(lab, folder, loadBalancerSourceRanges=RANGES[(turn + 1) % 3], **balanced)
            allowed.wait(6)
            denied.wait(1)
    assert set(allowed.seen[0]) == {"answered"}
    assert {outcome for counter in denied.seen for outcome in counter} == {"timeout"}
    assert len(proxy.events(messages.NFTABLES_REFUSED)) == 0


def test_a_vip_never_answers_before_its_guard_is_there(
    session_lab: Lab, proxy: LabProxy, folder: ManifestFolder
) -> None:
    """A port of the host is asked on a VIP that comes and goes: unreachable or refused, and never answered."""
    lab, node = session_lab, session_lab.nodes[0]
    asked = ProbeQuestion(lab.client.netns, NEW_VIP, HOST_PORT)
    with netns.inside(node.netns):
        hammer = Hammer(asked, ProbeQuestion(node.netns, NEW_VIP, HOST_PORT))
    with hammer.at_work():
        for _ in range(2):
            write(lab, folder, "new", 2, type_="LoadBalancer", ingress=[NEW_VIP])
            eventually(lambda: probe(lab.client.netns, NEW_VIP, 80).name == "p11")
            hammer.wait(2)  # the first of which may have begun before
            folder.remove("new")
            eventually(lambda: probe(lab.client.netns, NEW_VIP, 80, timeout=1).outcome != "answered")
            hammer.wait(1)
    assert all("answered" not in counter for counter in hammer.seen)
    assert hammer.seen[0]["refused"]


def test_without_a_range_of_pods_the_pods_of_services_are_known(
    session_lab: Lab, proxy: LabProxy, tmp_path: pathlib.Path
) -> None:
    lab, node = session_lab, session_lab.nodes[1]
    folder, pod = ManifestFolder(tmp_path), lab.host("p12")
    lab.responder.listen(pod, 22)
    victim = service("victim", PORTS, ["10.96.7.8"])
    folder.write("victim", victim, endpoint_slice("victim", PORTS, [endpoint(lab, pod)]))
    write(lab, folder, "thief", 9, externalIPs=[pod.ipv4, VIP])
    started = lab.proxy(node, tmp_path, [])
    eventually(lambda: probe(node.netns, VIP, 80).name == "p11")
    assert refusals(started) == [("default/thief", 1, [f"{pod.ipv4}: the address of a pod"])]
    assert probe(node.netns, pod.ipv4, 22).name == "p12"
    started.stop()
