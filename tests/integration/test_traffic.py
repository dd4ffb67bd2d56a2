"""Two nodes with a proxy each, and every way into a Service asked from everywhere, IPv4 and IPv6.

The expectations are contract 4.9 with its improvements: who gets through, to which endpoints, and which source
they see. One set of Services serves all tests of this module; each case uses an address of its own.
"""

from __future__ import annotations

import itertools
import pathlib
import re
from collections.abc import Iterator

import pytest

from ipvsproxy.base import messages
from tests.lab import netns
from tests.lab.capabilities import missing
from tests.lab.cases import OWN, ask_everything, wrong
from tests.lab.lab import DEFAULT_PROXY_ARGS, Lab, LabNode
from tests.lab.manifests import ManifestFolder
from tests.lab.probe import ENOUGH, Conversation, ProbeQuestion, probe, probe_many, spread
from tests.lab.published import TARGETS, PublishedServices, balancer, cluster_ip, dnat_of_others, external
from tests.lab.waiting import eventually
from tests.lab.wipe import flush_ipvs

pytestmark = pytest.mark.needs("ip_vs", "nf_tables")

PROTOS = ["tcp", "udp", pytest.param("sctp", marks=pytest.mark.needs("sctp"))]
HOST_PORT = 2222


BOTH_PATHS = pytest.mark.parametrize("services", ["ipvs", "auto"], indirect=True)


@pytest.fixture(scope="module")
def services(
    session_lab: Lab, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[PublishedServices]:
    folder = tmp_path_factory.mktemp("traffic")
    services = PublishedServices(session_lab, ManifestFolder(pathlib.Path(folder)))
    services.write()
    for pod, (proto, target) in itertools.product(session_lab.pods, TARGETS.items()):
        if proto != "sctp" or not missing("sctp"):
            session_lab.responder.listen(pod, target, proto)
    flags = [*DEFAULT_PROXY_ARGS, "--ipvs-sync-period=3s", f"--data-path={getattr(request, 'param', 'ipvs')}"]
    proxies = [session_lab.proxy(node, folder, flags, wait=False) for node in session_lab.nodes]
    for proxy in proxies:
        proxy.wait_for(messages.SYNCED)
    yield services
    session_lab.take_back()


@BOTH_PATHS
@pytest.mark.parametrize("proto", PROTOS)
@pytest.mark.parametrize("family", [4, 6])
def test_cluster_policy_from_everywhere(services: PublishedServices, family: int, proto: str) -> None:
    table = f"""
        p12    | ClusterIP                        | p11 p21 | {OWN}
        p22    | ClusterIP                        | p11 p21 | {OWN}
        client | ClusterIP                        | p11 p21 | node1
        p12    | NodePort LoadBalancer externalIP | p11 p21 | node1
        client | NodePort LoadBalancer externalIP | p11 p21 | node1
        p22    | LoadBalancer externalIP          | p11 p21 | node2
        p22    | NodePort                         | p11 p21 | node1
    """
    if proto != "sctp":  # a host process lists all its addresses in the SCTP handshake, VIPs too
        table += """
        node1  | ClusterIP NodePort LoadBalancer externalIP | p11 p21 | node1
        node2  | ClusterIP LoadBalancer externalIP          | p11 p21 | node2
        """
    assert wrong(ask_everything(services.lab, services.cases(services.WEB, family, table, proto))) == []


@BOTH_PATHS
@pytest.mark.parametrize("family", [4, 6])
def test_external_local_drops_outsiders_and_serves_insiders(services: PublishedServices, family: int) -> None:
    """No endpoint on node1, two on node2."""
    on_node1 = f"""
        client       | NodePort LoadBalancer externalIP           | timeout |
        p11          | ClusterIP NodePort LoadBalancer externalIP | p21 p22 | {OWN}
        node1        | ClusterIP NodePort LoadBalancer externalIP | p21 p22 | node1
        client       | ClusterIP                                  | p21 p22 | node1
    """
    on_node2 = f"""
        client       | LoadBalancer externalIP                    | p21 p22 | {OWN}
    """
    cases = services.cases(services.LOCAL, family, on_node1) + services.cases(
        services.LOCAL, family, on_node2, via="node2"
    )
    assert wrong(ask_everything(services.lab, cases)) == []


@BOTH_PATHS
@pytest.mark.parametrize("family", [4, 6])
def test_both_policies_local(services: PublishedServices, family: int) -> None:
    table = f"""
        client | NodePort LoadBalancer externalIP | p11     | {OWN}
        p12    | NodePort LoadBalancer externalIP | p11 p21 | {OWN}
        node1  | NodePort LoadBalancer externalIP | p11 p21 | node1
        p12    | ClusterIP                        | p11     | {OWN}
        node1  | ClusterIP                        | p11     | node1
        client | ClusterIP                        | p11     | node1
    """
    assert wrong(ask_everything(services.lab, services.cases(services.BOTH_LOCAL, family, table))) == []


@pytest.mark.parametrize("family", [4, 6])
def test_the_synthetic_port_of_the_internal_view_answers_no_one(services: PublishedServices, family: int) -> None:
    address = cluster_ip(services.BOTH_LOCAL, family)
    asked = [
        ProbeQuestion(asker.netns, address, 80 ^ 0x8000)
        for asker in (services.lab.client, services.lab.pods[1], services.lab.nodes[0])
    ]
    assert [result.outcome for result in probe_many(asked)] == ["refused"] * 3


@BOTH_PATHS
@pytest.mark.parametrize("family", [4, 6])
def test_internal_local_never_leaves_the_node(services: PublishedServices, family: int) -> None:
    table = f"""
        p12 node1 client | ClusterIP             | timeout |
        p22              | ClusterIP             | p21     | {OWN}
        client           | LoadBalancer NodePort | p21     | node1
    """
    assert wrong(ask_everything(services.lab, services.cases(services.INTERNAL, family, table))) == []


@BOTH_PATHS
@pytest.mark.parametrize("proto", ["tcp", "udp"])
@pytest.mark.parametrize("family", [4, 6])
def test_without_endpoints_everybody_is_refused_at_once(
    services: PublishedServices, family: int, proto: str
) -> None:
    for asker in ("client", "p12", "node1"):  # one by one: see cases.REFILL
        table = f"{asker} | ClusterIP NodePort LoadBalancer externalIP | refused |"
        rows = ask_everything(services.lab, services.cases(services.EMPTY, family, table, proto))
        assert wrong(rows) == []
    address, number = services.ways(services.EMPTY, family, proto)["ClusterIP"]
    # A packet that was dropped is repeated after a second. So long a machine may stand still, but not each time.
    assert min(probe(services.lab.client.netns, address, number, proto).seconds for _ in range(5)) < 0.9


@BOTH_PATHS
@pytest.mark.parametrize("family", [4, 6])
def test_a_pod_reaches_itself(services: PublishedServices, family: int) -> None:
    lab = services.lab
    results = probe_many([ProbeQuestion(lab.host("p11").netns, cluster_ip(services.WEB, family), 80)] * ENOUGH)
    assert {result.name for result in results} == {"p11", "p21"}
    for result in results:
        expected = lab.host("p11").address(family)
        assert (result.seen_source == expected) is (result.name == "p21")


@BOTH_PATHS
@pytest.mark.parametrize("family", [4, 6])
def test_ports_of_the_host_do_not_answer_on_a_vip(services: PublishedServices, family: int) -> None:
    lab, node = services.lab, services.lab.nodes[0]
    listener = lab.responder.listen(node, HOST_PORT, everywhere=True)
    vips = [make(services.WEB, family) for make in (cluster_ip, balancer, external)]
    try:
        assert probe(lab.client.netns, node.address(family), HOST_PORT).name == "node1"
        asked = [ProbeQuestion(a.netns, vip, HOST_PORT) for a in (lab.client, lab.pods[0], node) for vip in vips]
        assert {result.outcome for result in probe_many(asked)} == {"refused"}
    finally:
        listener.stop()


@pytest.mark.parametrize("family", [4, 6])
def test_session_affinity_holds_each_client(services: PublishedServices, family: int) -> None:
    lab = services.lab
    for asker in (lab.client, lab.pods[0], lab.pods[2]):
        for way in ("ClusterIP", "LoadBalancer"):
            address, number = services.ways(services.STICKY, family)[way]
            assert len(spread(ProbeQuestion(asker.netns, address, number), 8)) == 1


@BOTH_PATHS
@pytest.mark.parametrize("family", [4, 6])
def test_source_ranges_restrict_load_balancer_vips_only(services: PublishedServices, family: int) -> None:
    table = """
        client       | LoadBalancer        | p11 p21 | node1
        p12 node1    | LoadBalancer        | timeout |
        p12 node1    | NodePort externalIP | p11 p21 | node1
    """
    assert wrong(ask_everything(services.lab, services.cases(services.RANGED, family, table))) == []


HOST_PORT_RULES = """table inet hostports {
    chain rules {
        fib daddr type local tcp dport 80 dnat ip to IPV4:9
        fib daddr type local tcp dport 80 dnat ip6 to [IPV6]:9
    }
    chain prerouting { type nat hook prerouting priority dstnat; goto rules; }
    chain output { type nat hook output priority -100; goto rules; }
}"""


@BOTH_PATHS
@pytest.mark.parametrize("family", [4, 6])
def test_host_ports_of_others_do_not_take_connections_to_vips(services: PublishedServices, family: int) -> None:
    lab, node, pod = services.lab, services.lab.nodes[0], services.lab.host("p12")
    rules = HOST_PORT_RULES.replace("IPV4", pod.address(4)).replace("IPV6", pod.address(6))
    lab.run(node, ["nft", "-f", "-"], rules)
    table = f"""
        client | ClusterIP LoadBalancer externalIP | p11 p21 | node1
        p12    | ClusterIP                         | p11 p21 | {OWN}
        node1  | ClusterIP LoadBalancer            | p11 p21 | node1
    """
    try:
        assert probe(lab.client.netns, node.address(family), 80).outcome == "refused"  # their rule is in effect
        assert wrong(ask_everything(lab, services.cases(services.WEB, family, table))) == []
    finally:
        lab.run(node, ["nft", "delete table inet hostports"])


@BOTH_PATHS
@pytest.mark.parametrize("family", [4, 6])
def test_a_dnat_of_others_to_a_vip_leads_to_no_port_of_the_host(services: PublishedServices, family: int) -> None:
    lab, node = services.lab, services.lab.nodes[0]
    listener = lab.responder.listen(node, HOST_PORT, everywhere=True)
    try:
        with dnat_of_others(lab, services.WEB, HOST_PORT) as port:
            assert probe(lab.client.netns, node.address(family), HOST_PORT).name == "node1"
            assert probe(lab.client.netns, node.address(family), port).outcome == "refused"
    finally:
        listener.stop()


MARKS = """table inet marks {
    chain marked { type filter hook forward priority -5; meta mark and 0x4000 != 0 counter comment "marked"; }
    chain left { type filter hook postrouting priority 400; meta mark and 0x4000 != 0 counter comment "left"; }
}"""


def marks(lab: Lab, node: LabNode) -> dict[str, int]:
    """Return how many packets had the mark of replies on their way, and how many when they left."""
    text = lab.run(node, ["nft", "list", "table", "inet", "marks"])
    return {name: int(count) for count, name in re.findall(r'packets (\d+) bytes \d+ comment "(\w+)"', text)}


@BOTH_PATHS
def test_services_work_though_the_forward_policy_is_drop(services: PublishedServices) -> None:
    lab, node = services.lab, services.lab.nodes[0]
    for family in ("ip", "ip6"):
        # Neighbours on one bridge must find each other, or nothing works with or without Services.
        rules = (
            "chain FORWARD { type filter hook forward priority 0; policy drop; meta l4proto ipv6-icmp accept; }"
        )
        lab.run(node, ["nft", "-f", "-"], f"table {family} filter {{\n{rules}\n}}")
    table = f"""
        client | ClusterIP LoadBalancer externalIP NodePort | p11 p21 | node1
        p12    | ClusterIP                                  | p11 p21 | {OWN}
    """
    lab.run(node, ["nft", "-f", "-"], MARKS)
    try:
        assert probe(lab.client.netns, lab.host("p11").ipv4, 8080, timeout=2).outcome == "timeout"
        eventually(lambda: "ipvsproxy" in lab.run(node, ["nft", "list", "chain", "ip", "filter", "FORWARD"]))
        for number in (4, 6):
            assert wrong(ask_everything(lab, services.cases(services.WEB, number, table))) == []
        counted = marks(lab, node)
        assert counted["marked"] > 0
        assert counted["left"] == 0
    finally:
        lab.run(node, ["nft", "delete table ip filter; delete table ip6 filter; delete table inet marks"])


@BOTH_PATHS
@pytest.mark.needs("tool:ping")
@pytest.mark.parametrize("family", [4, 6])
def test_ping_answers_on_a_vip(services: PublishedServices, family: int) -> None:
    lab = services.lab
    for host in (lab.client, lab.pods[0]):
        lab.run(host, ["ping", f"-{family}", "-c1", "-W5", cluster_ip(services.WEB, family)])


@BOTH_PATHS
def test_open_connections_survive_a_killed_proxy_and_its_restart(services: PublishedServices) -> None:
    lab = services.lab
    proxy = next(p for p in lab.proxies if p.netns == lab.nodes[0].netns)
    address, number = services.ways(services.WEB, 4)["LoadBalancer"]
    question = ProbeQuestion(lab.client.netns, address, number)
    with Conversation(question) as talk:
        served_by = talk.ask().name
        proxy.kill()
        assert talk.ask().name == served_by
        assert set(spread(question, ENOUGH)) == {"p11", "p21"}
        proxy.start()
        assert proxy.wait_for(messages.SYNCED)["changes"] == 0
        assert talk.ask().name == served_by
    assert proxy.stop() in (143, -15)
    assert set(spread(question, ENOUGH)) == {"p11", "p21"}
    proxy.start()
    proxy.wait_for(messages.SYNCED)


def test_a_removed_endpoint_drains(services: PublishedServices) -> None:
    lab = services.lab
    address, number = services.ways(services.WEB, 4)["ClusterIP"]
    question = ProbeQuestion(lab.pods[1].netns, address, number)
    talks = [Conversation(question) for _ in range(4)]
    services.put("web", services.WEB, "p11")
    eventually(lambda: set(spread(question, 4)) == {"p11"})
    assert {talk.ask().name for talk in talks} == {"p11", "p21"}
    for talk in talks:
        talk.socket.close()
    services.put("web", services.WEB, "p11 p21")
    eventually(lambda: set(spread(question, 4)) == {"p11", "p21"})


@BOTH_PATHS
def test_damage_is_repaired(services: PublishedServices) -> None:
    lab, node = services.lab, services.lab.nodes[0]
    address, number = services.ways(services.WEB, 4)["LoadBalancer"]
    question = ProbeQuestion(lab.client.netns, address, number)
    for damage in (flush_rules, flush_ipvs, lambda: lab.run(node, ["ip", "link", "delete", "kube-ipvs0"])):
        with netns.inside(node.netns):
            damage()
        eventually(lambda: set(spread(question, ENOUGH)) == {"p11", "p21"})


def flush_rules() -> None:
    from nft import Libnftables, Table, Transaction

    transaction = Transaction(Table("inet", "ipvsproxy"))
    transaction.delete_table()
    Libnftables().run(transaction)


def test_a_broken_file_affects_nothing_else(services: PublishedServices) -> None:
    lab = services.lab
    proxy = lab.proxies[0]
    good = (services.folder.path / "web.yaml").read_text()
    (services.folder.path / "web.yaml").write_text(good.replace("port: 80\n", "port: eighty\n", 1))
    line = proxy.wait_for(messages.MANIFEST_REFUSED)
    assert "web.yaml" in str(line)
    assert "spec.ports[0].port" in str(line)
    services.put("second", 60, "p22")
    second = ProbeQuestion(lab.client.netns, *services.ways(60, 4)["LoadBalancer"])
    eventually(lambda: set(spread(second, 3)) == {"p22"})
    assert set(spread(ProbeQuestion(lab.client.netns, *services.ways(services.WEB, 4)["LoadBalancer"]), 6)) == {
        "p11",
        "p21",
    }
    services.put("web", services.WEB, "p12")
    eventually(
        lambda: (
            set(spread(ProbeQuestion(lab.client.netns, *services.ways(services.WEB, 4)["LoadBalancer"]), 4))
            == {"p12"}
        )
    )
    services.folder.remove("second")
    eventually(lambda: probe(lab.client.netns, second.address, 80, timeout=2).outcome != "answered")
    services.put("web", services.WEB, "p11 p21")
