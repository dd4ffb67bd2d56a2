"""What conntrack remembers must not outlive what it was true for: UDP clients follow their Service at once.

A client that keeps sending from one port is one connection to conntrack for as long as it sends. Each test has
such clients everywhere, changes something under them, and asks where their next packets go.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import select
import socket
import time
from collections.abc import Iterator

import pytest

from tests.lab import netns
from tests.lab.lab import DEFAULT_PROXY_ARGS, Lab, LabHost
from tests.lab.manifests import ManifestFolder, endpoint, endpoint_slice, port
from tests.lab.packets import Tap, send_ahead
from tests.lab.probe import DEFAULT_TIMEOUT, QUESTION, Conversation, ProbeQuestion, failure, probe_many
from tests.lab.published import balancer, cluster_ip, external, published
from tests.lab.waiting import Patience, eventually, receive

pytestmark = pytest.mark.needs("ip_vs", "nf_tables")

TARGET, OTHER_TARGET, NODE_PORT = 8081, 8091, 31999
SHORT = 1.0


class UdpServices:
    """One dual-stack Service of UDP (and TCP) at a time, each test with a number of its own."""

    def __init__(self, lab: Lab, folder: ManifestFolder) -> None:
        self.lab, self.folder = lab, folder
        self.open = contextlib.ExitStack()

    def put(
        self, number: int, pods: str, target: int = TARGET, away: str = "", drain: str = "", **spec: object
    ) -> None:
        """Write Service `udp<number>`; pods in `away` are neither ready nor serving."""
        ports = [port(81, target, "UDP", "u", 31000 + number), port(81, 8080, "TCP", "t", 31000 + number)]
        name = f"udp{number}"
        made = published(name, number, ports, **spec)
        if drain:
            made["metadata"]["annotations"] = {"ipvsproxy.io/drain-timeout": drain}
        slices = [endpoint_slice(name, ports, self._endpoints(pods, away, f), family=f) for f in (4, 6)]
        self.folder.write(name, made, *slices)

    def _endpoints(self, pods: str, away: str, family: int) -> list[dict[str, object]]:
        present = [endpoint(self.lab, self.lab.host(pod), family=family) for pod in pods.split()]
        absent = [
            endpoint(self.lab, self.lab.host(pod), family=family, ready=False, serving=False)
            for pod in away.split()
        ]
        return present + absent

    def ways(self, number: int, family: int) -> dict[str, tuple[str, int]]:
        return {
            "ClusterIP": (cluster_ip(number, family), 81),
            "NodePort": (self.lab.nodes[0].address(family), 31000 + number),
            "LoadBalancer": (balancer(number, family), 81),
            "externalIP": (external(number, family), 81),
        }

    def flows(self, number: int, askers: str, names: str, proto: str = "udp") -> dict[str, Conversation]:
        """Start clients that go on using one source port, in both families."""
        found = {}
        for family in (4, 6):
            for asker in askers.split():
                for name in names.split():
                    question = ProbeQuestion(self.lab.host(asker).netns, *self.ways(number, family)[name], proto)
                    talk = self.open.enter_context(Conversation(question, SHORT))
                    found[f"{asker} {name} IPv{family}"] = talk
        return found

    def served_by(self, number: int, name: str) -> bool:
        """Whether new clients get answers of this endpoint only, in both families and by every way in."""
        asked = [
            ProbeQuestion(self.lab.client.netns, *way, "udp")
            for f in (4, 6)
            for way in self.ways(number, f).values()
        ]
        return {result.name for result in probe_many(asked, 2)} == {name}


@pytest.fixture(scope="module")
def services(session_lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[UdpServices]:
    lab = session_lab
    services = UdpServices(lab, ManifestFolder(pathlib.Path(tmp_path_factory.mktemp("conntrack"))))
    services.folder.write_nodes(lab)
    for pod in (*lab.pods, lab.nodes[0]):
        lab.responder.listen(pod, TARGET, "udp")
        lab.responder.listen(pod, 8080, "tcp")
    lab.responder.listen(lab.host("p21"), OTHER_TARGET, "udp", "p21-other")
    lab.proxy(lab.nodes[0], services.folder.path, [*DEFAULT_PROXY_ARGS, "--ipvs-sync-period=300s"])
    yield services
    lab.take_back()


@pytest.fixture(autouse=True)
def _closed(services: UdpServices) -> Iterator[None]:
    yield
    services.open.close()


def ask_all(flows: dict[str, Conversation]) -> dict[str, str]:
    """Send on all of them, then wait for the answers together: who answered, or what else became of it."""
    sent = {name: send(flow.socket) for name, flow in flows.items()}
    patience = Patience(SHORT)
    return {name: sent[name] or answer_of(flow.socket, patience) for name, flow in flows.items()}


def send(asking: socket.socket) -> str:
    asking.setblocking(False)
    with contextlib.suppress(OSError):
        while asking.recv(65536):
            pass  # an answer that came too late for the last question
    try:
        asking.send(QUESTION)
    except OSError as error:
        return failure(error, 0).outcome
    return ""


def answer_of(asking: socket.socket, patience: Patience) -> str:
    try:
        answer = receive(asking, patience)
    except OSError as error:
        return failure(error, 0).outcome
    return str(json.loads(answer)["name"]) if answer else "closed"


def followed(flows: dict[str, Conversation], name: str) -> dict[str, str]:
    """Ask twice: one packet may be on its way during the change. Return who has not followed."""
    ask_all(flows)
    return {flow: answer for flow, answer in ask_all(flows).items() if answer != name}


EVERY_WAY = "ClusterIP NodePort LoadBalancer externalIP"


def test_clients_follow_an_endpoint_that_is_replaced(services: UdpServices) -> None:
    services.put(61, "p21")
    eventually(lambda: services.served_by(61, "p21"))
    flows = services.flows(61, "client node1 p12", EVERY_WAY)
    tcp = services.flows(61, "client", "LoadBalancer", "tcp")
    assert set(ask_all(flows | tcp).values()) == {"p21"}
    services.put(61, "p22")
    eventually(lambda: services.served_by(61, "p22"))
    assert followed(flows, "p22") == {}
    assert set(ask_all(tcp).values()) == {"p21"}  # it drains


def test_clients_follow_when_an_endpoint_becomes_unready_or_moves_to_another_port(services: UdpServices) -> None:
    services.put(62, "p21")
    eventually(lambda: services.served_by(62, "p21"))
    flows = services.flows(62, "client node1 p12", "ClusterIP NodePort")
    assert set(ask_all(flows).values()) == {"p21"}
    services.put(62, "p21", target=OTHER_TARGET)
    eventually(lambda: services.served_by(62, "p21-other"))
    assert followed(flows, "p21-other") == {}
    services.put(62, "p11", away="p21")
    eventually(lambda: services.served_by(62, "p11"))
    assert followed(flows, "p11") == {}


def test_inside_clients_of_a_local_policy_follow(services: UdpServices) -> None:
    """Their connections have been rewritten twice: by our DNAT to the ClusterIP, and by IPVS."""
    services.put(63, "p11 p21", externalTrafficPolicy="Local")
    asked = [
        ProbeQuestion(services.lab.host("p12").netns, *services.ways(63, f)["LoadBalancer"], "udp") for f in (4, 6)
    ]
    eventually(lambda: {result.name for result in probe_many(asked * 4, 2)} == {"p11", "p21"})
    flows = {}
    for n in range(4):
        more = services.flows(63, "node1 p12", "NodePort LoadBalancer")
        flows |= {f"{n} {name}": flow for name, flow in more.items()}
    assert set(ask_all(flows).values()) == {"p11", "p21"}
    services.put(63, "p11", externalTrafficPolicy="Local")
    eventually(lambda: services.served_by(63, "p11"))
    assert followed(flows, "p11") == {}
    tcp = services.flows(63, "node1 p12", "NodePort LoadBalancer", "tcp")
    assert set(ask_all(tcp).values()) == {"p11"}
    services.folder.remove("udp63")
    eventually(lambda: not services.served_by(63, "p11"))
    assert "p11" not in ask_all(flows | tcp).values()


def test_a_drain_timeout_cuts_inside_clients_too(services: UdpServices) -> None:
    services.put(70, "p11 p21", externalTrafficPolicy="Local")
    question = ProbeQuestion(services.lab.host("p12").netns, *services.ways(70, 4)["LoadBalancer"])
    eventually(lambda: {result.name for result in probe_many([question] * 4, 2)} == {"p11", "p21"})
    flows = {}
    for n in range(2):
        more = services.flows(70, "node1 p12", "NodePort LoadBalancer", "tcp")
        flows |= {f"{n} {name}": flow for name, flow in more.items()}
    before = ask_all(flows)
    assert set(before.values()) == {"p11", "p21"}
    services.put(70, "p11", drain="1s", externalTrafficPolicy="Local")
    eventually(lambda: "p21" not in ask_all(flows).values())
    held = {name for name, answer in before.items() if answer == "p11"}
    assert {name: answer for name, answer in ask_all(flows).items() if name in held} == dict.fromkeys(held, "p11")


def test_a_client_that_was_there_before_the_service_is_picked_up(services: UdpServices) -> None:
    flows = services.flows(64, "client node1 p12", EVERY_WAY)
    for _ in range(2):
        assert set(ask_all(flows).values()) <= {"timeout", "refused", "unreachable"}
    services.put(64, "p21")
    deadline = time.monotonic() + 60
    while not services.served_by(64, "p21"):
        assert time.monotonic() < deadline
        ask_all(flows)  # they keep sending, so that no entry is forgotten for idleness
    assert followed(flows, "p21") == {}


def begin(question: ProbeQuestion) -> socket.socket:
    """Send a first SYN (or INIT), from a port that no other question has; the kernel repeats it."""
    asking = netns.open_socket(question.netns, question.address, question.proto)
    asking.bind(("::" if ":" in question.address else "0.0.0.0", 0))
    asking.connect_ex((question.address, question.port))
    return asking


def finish(asking: socket.socket, deadline: float) -> str:
    """Who answers, once the connection is established."""
    writable = select.select([], [asking], [], max(0.0, deadline - time.monotonic()))[1]
    if not writable:
        return "timeout"
    if error := asking.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
        return os.strerror(error)
    asking.send(QUESTION)
    return answer_of(asking, Patience(DEFAULT_TIMEOUT))


NEW_VIP = "ClusterIP LoadBalancer externalIP"


@pytest.mark.parametrize(("number", "policy"), [(71, "Cluster"), (72, "Local")])
def test_a_connection_begun_before_its_vip_was_there_is_answered(
    services: UdpServices, number: int, policy: str
) -> None:
    """The first SYN leaves the node by its default route, and its entry has no NAT: neither for its repeats."""
    lab = services.lab
    askers = [lab.host(name) for name in ("client", "node1", "p12")]
    waiting = {
        f"{asker.name} {name} IPv{family}": services.open.enter_context(
            begin(ProbeQuestion(asker.netns, *services.ways(number, family)[name]))
        )
        for asker in askers
        for family in (4, 6)
        for name in NEW_VIP.split()
    }
    time.sleep(1.5)  # another one by each of them
    services.put(number, "p11 p21" if policy == "Local" else "p21", externalTrafficPolicy=policy)
    deadline = time.monotonic() + 30
    answers = {name: finish(asking, deadline) for name, asking in waiting.items()}
    assert {name: who for name, who in answers.items() if who not in ("p11", "p21")} == {}


# --- Source ranges


def only(*names: str) -> dict[str, object]:
    ranges = {
        "client": ("192.0.2.100/32", "2001:db8:2::100/128"),
        "pods": ("10.244.0.0/16", "fd00:10:244::/48"),
        "far": ("198.18.0.0/15", "2001:db8:18::/48"),
    }
    return {"loadBalancerSourceRanges": [text for name in names for text in ranges[name]]}


def push(host: LabHost, family: int, to: tuple[str, int]) -> None:
    """Have an endpoint speak first: a datagram from the port on which it serves."""
    with netns.open_socket(host.netns, host.address(family), "udp") as sending:
        sending.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sending.bind((host.address(family), TARGET))
        sending.sendto(json.dumps({"name": "pushed"}).encode(), to)


def heard(flow: Conversation) -> str:
    return answer_of(flow.socket, Patience(SHORT))


@pytest.mark.parametrize(("number", "policy", "loose"), [(65, "Cluster", 1), (66, "Local", 1), (67, "Local", 0)])
def test_connections_of_sources_that_are_no_longer_allowed_are_cut(
    services: UdpServices, number: int, policy: str, loose: int
) -> None:
    lab = services.lab
    services.put(number, "p11", externalTrafficPolicy=policy, **only("client", "pods"))
    ways = [(host, f, p) for host in ("client", "p12") for f in (4, 6) for p in ("tcp", "udp")]
    asked = [
        ProbeQuestion(lab.host(host).netns, *services.ways(number, f)["LoadBalancer"], p) for host, f, p in ways
    ]
    eventually(lambda: {result.name for result in probe_many(asked, 2)} == {"p11"})
    flows = {
        f"{name} {proto}": flow
        for proto in ("tcp", "udp")
        for name, flow in services.flows(number, "client p12", "LoadBalancer", proto).items()
    }
    assert set(ask_all(flows).values()) == {"p11"}
    four, six = (flows[f"client LoadBalancer IPv{f} udp"] for f in (4, 6))
    source = four.socket.getsockname()
    if policy == "Local":
        push(lab.host("p11"), 4, source)
        assert heard(four) == "pushed"
    netns.set_sysctls(lab.nodes[0].netns, {"net/netfilter/nf_conntrack_tcp_loose": loose})
    services.put(number, "p11", externalTrafficPolicy=policy, **only("pods"))
    excluded = [question for question in asked if question.netns == lab.client.netns]
    eventually(lambda: {result.outcome for result in probe_many(excluded, 1)} == {"timeout"})
    if policy == "Local":  # otherwise the endpoint knows the node only
        push(lab.host("p11"), 4, source)
        push(lab.host("p11"), 6, six.socket.getsockname()[:2])
        assert {heard(four), heard(six)} == {"timeout"}
    answers = ask_all(flows)
    netns.set_sysctls(lab.nodes[0].netns, {"net/netfilter/nf_conntrack_tcp_loose": 1})
    assert answers == {name: "timeout" if name.startswith("client") else "p11" for name in flows}


def test_changing_ranges_admits_no_other_client_and_excludes_none(services: UdpServices) -> None:
    lab, number = services.lab, 68
    services.put(number, "p11", **only("pods"))
    wanted, stranger = (
        [ProbeQuestion(lab.host(name).netns, *services.ways(number, f)["LoadBalancer"], "udp") for f in (4, 6)]
        for name in ("p12", "client")
    )
    eventually(lambda: {result.name for result in probe_many(wanted, 2)} == {"p11"})
    flows = services.flows(number, "p12", "LoadBalancer") | services.flows(number, "p12", "LoadBalancer", "tcp")
    assert set(ask_all(flows).values()) == {"p11"}
    for turn in range(4):
        services.put(number, "p11", **only("pods", *(["far"] if turn % 2 else [])))
        for _ in range(2):
            results = probe_many([*wanted * 3, *stranger * 3], 0.5)
            assert {result.name for result in results[:6]} == {"p11"}
            assert {result.outcome for result in results[6:]} == {"timeout"}
    assert set(ask_all(flows).values()) == {"p11"}


# --- Packets that conntrack calls invalid


INVALID = b"out of any window"


def sources_of_an_invalid_packet(pod: LabHost, talk: Conversation, tap: Tap) -> set[str]:
    """Have a connection's endpoint send a packet outside the window; return the sources with which it arrives."""
    family = 6 if ":" in talk.ask().seen_source else 4
    answer = talk.ask()
    port = talk.socket.getsockname()[1]
    last = [segment for segment in tap.arrived() if segment.port == port and segment.payload][-1]
    send_ahead(pod.netns, (pod.address(family), 8080), (answer.seen_source, answer.seen_port), last, INVALID)
    return {segment.source for segment in tap.arrived() if segment.payload == INVALID}


@pytest.mark.parametrize("family", [4, 6])
def test_an_invalid_packet_of_an_endpoint_ends_no_connection(services: UdpServices, family: int) -> None:
    """By a view it comes from the ClusterIP, and the client's reset goes no further than the node."""
    lab = services.lab
    services.put(69, "p11 p21 node1", externalTrafficPolicy="Local")
    services.put(71, "p11 p21 node1")
    by_view = [("p12", 69, "LoadBalancer"), ("p12", 69, "NodePort")]
    others = [("p12", 71, "ClusterIP"), ("client", 69, "LoadBalancer")]
    ways = (by_view + others) * 3
    asked = [
        ProbeQuestion(lab.host(host).netns, *services.ways(number, family)[way]) for host, number, way in ways
    ]
    eventually(lambda: all(result.name for result in probe_many(asked, 2)))
    for way, question in zip(ways, asked, strict=True):
        tap = Tap(question.netns, family)
        talk = services.open.enter_context(Conversation(question))
        pod = lab.host(talk.ask().name)
        told = f"{way} {pod.name}"
        arrived = sources_of_an_invalid_packet(pod, talk, tap)
        tap.close()
        source = cluster_ip(69, family) if way in by_view else question.address
        assert (told, arrived) == (told, {source})
        assert (told, talk.ask().name) == (told, pod.name)


def survives_an_invalid_packet(lab: Lab, question: ProbeQuestion) -> tuple[str, str]:
    """Return who answers a new connection, and who does after a packet of the client outside the window."""
    with Conversation(question) as talk:
        pod = lab.host(talk.ask().name)
        with contextlib.closing(Tap(pod.netns, 6 if ":" in question.address else 4)) as tap:
            assert talk.ask().name == pod.name
            mine, frontend = talk.socket.getsockname()[:2], talk.socket.getpeername()[:2]
            last = [segment for segment in tap.arrived() if segment.source_port == mine[1]][-1]
            send_ahead(question.netns, mine, frontend, last, INVALID)
            return pod.name, talk.ask().name


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("way", ["LoadBalancer", "NodePort", "ClusterIP"])
def test_an_invalid_packet_of_a_client_ends_no_connection(services: UdpServices, family: int, way: str) -> None:
    """By a view, IPVS does not know it by the address it has dialled: the node would answer with a reset."""
    services.put(69, "p11 p21 node1", externalTrafficPolicy="Local")
    question = ProbeQuestion(services.lab.host("p12").netns, *services.ways(69, family)[way])
    eventually(lambda: {result.name for result in probe_many([question] * 20, 2)} == {"p11", "p21", "node1"})
    found = {survives_an_invalid_packet(services.lab, question) for _ in range(6)}
    assert found <= {(name, name) for name in ("p11", "p21", "node1")}


@pytest.mark.parametrize("family", [4, 6])
def test_an_invalid_packet_of_a_client_ends_a_connection_by_no_view(services: UdpServices, family: int) -> None:
    """A limit of IPVS (docs/internals-connections.md) unless conntrack is liberal; a kernel without it fails."""
    services.put(71, "p21")
    question = ProbeQuestion(services.lab.host("p12").netns, *services.ways(71, family)["ClusterIP"])
    eventually(lambda: {result.name for result in probe_many([question] * 8, 2)} == {"p21"})
    assert survives_an_invalid_packet(services.lab, question) == ("p21", "")
    liberal = "net/netfilter/nf_conntrack_tcp_be_liberal"
    netns.set_sysctls(services.lab.nodes[0].netns, {liberal: 1})
    try:
        assert survives_an_invalid_packet(services.lab, question) == ("p21", "p21")
    finally:
        netns.set_sysctls(services.lab.nodes[0].netns, {liberal: 0})


@pytest.mark.parametrize("family", [4, 6])
def test_an_invalid_packet_of_a_masqueraded_connection_reaches_no_client(
    services: UdpServices, family: int
) -> None:
    services.put(72, "p21")
    question = ProbeQuestion(services.lab.client.netns, *services.ways(72, family)["LoadBalancer"])
    eventually(lambda: probe_many([question])[0].name == "p21")
    tap = Tap(question.netns, family)
    talk = services.open.enter_context(Conversation(question))
    assert sources_of_an_invalid_packet(services.lab.host("p21"), talk, tap) == set()
    tap.close()


def test_a_source_port_cannot_go_past_ipvs_to_the_endpoint_that_it_met_through_it(services: UdpServices) -> None:
    """A limit of IPVS, for two minutes (docs/internals-packets.md): a kernel without it fails here."""
    services.put(79, "p11")
    eventually(lambda: services.served_by(79, "p11"))
    pod, client = services.lab.host("p11"), services.lab.client.netns
    for family in (4, 6):
        through = ProbeQuestion(client, *services.ways(79, family)["LoadBalancer"], "tcp", src_port=29000 + family)
        past = ProbeQuestion(client, pod.address(family), 8080, "tcp", src_port=29000 + family)
        other = dataclasses.replace(past, src_port=29100 + family)
        assert [result.name for result in probe_many([through])] == ["p11"]
        assert [result.name for result in probe_many([past])] == [""]
        assert [result.name for result in probe_many([other])] == ["p11"]
