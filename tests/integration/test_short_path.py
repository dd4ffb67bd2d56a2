"""The short path: ClusterIPs that conntrack alone serves, beside those that stay with IPVS, IPv4 and IPv6."""

from __future__ import annotations

import contextlib
import pathlib
from collections import Counter
from collections.abc import Iterator

import pytest

from ipvsproxy.kernel.scripts import FOR_UNTRACKED, PARTS, part, ruleset
from tests.lab.lab import Lab
from tests.lab.manifests import dual_slices, service
from tests.lab.probe import ENOUGH, Conversation, ProbeQuestion, probe, probe_many
from tests.lab.published import cluster_ip, dnat_of_others
from tests.lab.short_services import ARGS, OTHER, PORTS, WEB, ShortServices, short_services
from tests.lab.waiting import eventually

pytestmark = pytest.mark.needs("ip_vs", "nf_tables")


@pytest.fixture(scope="module")
def short(session_lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ShortServices]:
    with short_services(session_lab, pathlib.Path(tmp_path_factory.mktemp("short"))) as services:
        yield services


@pytest.mark.parametrize("name", PARTS)
def test_each_part_can_be_added_to_a_table_that_is_there(session_lab: Lab, name: str) -> None:
    """libnftables judges maps that it reads from the kernel otherwise than those of the same transaction."""
    node = session_lab.nodes[1]  # which has no proxy
    needed = [first for first, second in FOR_UNTRACKED.items() if second == name]
    session_lab.run(node, ["nft", "-f", "-"], ruleset(parts=needed))
    try:
        session_lab.run(node, ["nft", "-f", "-"], part(name))
    finally:
        session_lab.run(node, ["nft", "delete table inet ipvsproxy; delete table arp ipvsproxy"])


@pytest.mark.parametrize("proto", ["tcp", "udp"])
@pytest.mark.parametrize("family", [4, 6])
def test_endpoints_answer_without_ipvs(short: ShortServices, family: int, proto: str) -> None:
    short.put(WEB, "p11 p21")
    eventually(lambda: short.names("p12", family, proto) == {"p11", "p21"})
    assert not short.has_server(family, 6 if proto == "tcp" else 17)
    for asker, seen in (("p12", "p12"), ("client", "node1"), ("node1", "node1")):
        found = probe_many([short.question(asker, family, proto)] * ENOUGH)
        assert {result.name for result in found} == {"p11", "p21"}, asker
        expected = {"p12": short.lab.host("p12"), "node1": short.lab.nodes[0]}[seen].address(family)
        # Masqueraded, an endpoint on this node sees the address of its bridge.
        seen_far = {result.seen_source for result in found if result.name == "p21" or asker == "p12"}
        assert seen_far == {expected}, asker


@pytest.mark.parametrize("family", [4, 6])
def test_a_pod_reaches_itself_by_the_short_path(short: ShortServices, family: int) -> None:
    short.put(WEB, "p11")
    eventually(lambda: short.names("p12", family) == {"p11"})
    found = probe(short.lab.host("p11").netns, cluster_ip(WEB, family), 80)
    assert found.name == "p11"
    assert found.seen_source != short.lab.host("p11").address(family)


@pytest.mark.parametrize("family", [4, 6])
def test_an_endpoint_in_the_network_of_the_node(short: ShortServices, family: int) -> None:
    name = f"short{WEB}"
    made = service(name, PORTS, [cluster_ip(WEB, number) for number in (4, 6)])
    short.folder.write(name, made, *dual_slices(short.lab, name, PORTS, [short.lab.nodes[0]]))
    for asker in ("p12", "node1", "client"):
        eventually(lambda asker=asker: short.names(asker, family) == {"node1"})


@pytest.mark.parametrize("family", [4, 6])
def test_the_guard_and_refusals_hold(short: ShortServices, family: int) -> None:
    short.put(WEB, "p11")
    eventually(lambda: short.names("client", family) == {"p11"})
    listener = short.lab.responder.listen(short.lab.nodes[0], 2222, everywhere=True)
    try:
        for asker in ("client", "p12", "node1"):
            where = short.question(asker, family).netns
            assert probe(where, cluster_ip(WEB, family), 2222).outcome == "refused"
        short.put(WEB, "")
        eventually(lambda: short.names("client", family) == {"refused"})
        assert probe(short.lab.client.netns, cluster_ip(WEB, family), 80).outcome == "refused"
    finally:
        listener.stop()


@pytest.mark.parametrize("family", [4, 6])
def test_connections_survive_endpoints_that_come_and_go(short: ShortServices, family: int) -> None:
    short.put(WEB, "p11 p21")
    eventually(lambda: short.names("p12", family) == {"p11", "p21"})
    with contextlib.ExitStack() as stack:
        talks = [stack.enter_context(Conversation(short.question("p12", family), 4)) for _ in range(ENOUGH)]
        first = [talk.ask().name for talk in talks]
        assert set(first) == {"p11", "p21"}
        for pods in ("p11 p21 p22", "p22 p21", "p22"):
            short.put(WEB, pods)
            eventually(lambda pods=pods: short.names("p12", family) == set(pods.split()))
            assert [talk.ask().name for talk in talks] == first


@pytest.mark.parametrize("family", [4, 6])
def test_show_counts_open_connections(short: ShortServices, family: int) -> None:
    short.put(WEB, "p11 p21")
    eventually(lambda: short.names("p12", family) == {"p11", "p21"})
    with contextlib.ExitStack() as stack:
        talks = [stack.enter_context(Conversation(short.question("p12", family), 4)) for _ in range(ENOUGH)]
        first = [talk.ask().name for talk in talks]
        expected = {(name, "serving", first.count(name)) for name in ("p11", "p21")}
        eventually(lambda: {row for row in short.endpoints(family) if row[1] == "serving"} == expected)
        assert Counter(name for name, state in short.connections(family) if state == "ESTABLISHED") == Counter(
            first
        )
        short.put(WEB, "p21")
        eventually(lambda: short.names("p12", family) == {"p21"})
        assert ("p11", "draining", first.count("p11")) in short.endpoints(family)
    eventually(lambda: all(active == 0 for _, _, active in short.endpoints(family)))


@pytest.mark.parametrize("family", [4, 6])
def test_a_udp_client_follows_its_service(short: ShortServices, family: int) -> None:
    short.put(WEB, "p11")
    eventually(lambda: short.names("p12", family, "udp") == {"p11"})
    with Conversation(short.question("p12", family, "udp"), 1.0) as talk:
        assert talk.ask().name == "p11"
        short.put(WEB, "p21")
        eventually(lambda: talk.ask().name == "p21")


@pytest.mark.parametrize("family", [4, 6])
def test_a_service_that_goes_takes_its_connections_with_it(short: ShortServices, family: int) -> None:
    short.put(WEB, "p11")
    eventually(lambda: short.names("p12", family) == {"p11"})
    with Conversation(short.question("p12", family), 1.0) as talk:
        assert talk.ask().name == "p11"
        short.remove(WEB)
        eventually(lambda: talk.ask().name == "")


@pytest.mark.parametrize("family", [4, 6])
def test_a_live_service_changes_its_path_there_and_back(short: ShortServices, family: int) -> None:
    short.put(WEB, "p11 p21", annotations={"data-path": "ipvs"})
    # A server is there before the frontend leaves the short path for it, hence what comes later.
    eventually(lambda: short.has_server(family))
    short.wait_for_all(family)
    with contextlib.ExitStack() as stack:
        talks, names = [], []

        def converse() -> None:
            more = [stack.enter_context(Conversation(short.question("p12", family), 4)) for _ in range(4)]
            talks.extend(more)
            names.extend(talk.ask().name for talk in more)

        converse()
        for data_path, has_server in (("auto", True), ("ipvs", True), ("auto", True)):
            short.put(WEB, "p11 p21", annotations={"data-path": data_path})
            short.wait_for_all(family)
            assert short.has_server(family) is has_server, "open connections through IPVS need their server"
            converse()
            assert [talk.ask().name for talk in talks] == names
            assert set(names) <= {"p11", "p21"}
    # The server goes two minutes later: so long IPVS keeps connections that have ended (unit tests have the rest).


def test_one_source_port_towards_two_services_with_one_endpoint(short: ShortServices) -> None:
    """What IPVS cannot do: it identifies replies by client and endpoint alone."""
    short.put(WEB, "p21")
    short.put(OTHER, "p21")
    eventually(lambda: short.names("p12") == short.names("p12", number=OTHER) == {"p21"})
    where = short.lab.host("p12").netns
    one, other = (ProbeQuestion(where, cluster_ip(number, 4), 80, src_port=45678) for number in (WEB, OTHER))
    with Conversation(one, 4) as first, Conversation(other, 4) as second:
        assert [talk.ask().name for talk in (first, second, first)] == ["p21"] * 3
    short.remove(OTHER)


@pytest.mark.parametrize(("data_path", "outcome"), [("ipvs", "answered"), ("auto", "refused")])
def test_a_dnat_of_others_to_a_frontend_finds_ipvs_only(
    short: ShortServices, data_path: str, outcome: str
) -> None:
    """It comes behind the decision of ours, and conntrack rewrites a destination once."""
    lab, node = short.lab, short.lab.nodes[0]
    short.put(WEB, "p11", annotations={"data-path": data_path})
    short.wait_for_all(4)
    with dnat_of_others(lab, WEB, 80) as foreign:
        for family in (4, 6):
            assert short.names("client", family) == {"p11"}
            assert probe(lab.client.netns, node.address(family), foreign).outcome == outcome


def test_what_only_ipvs_has_stays_with_ipvs(short: ShortServices) -> None:
    short.put(WEB, "p11 p21", sessionAffinity="ClientIP")
    eventually(lambda: short.has_server(4) and short.has_server(6))
    eventually(lambda: len(short.names("p12")) == 1)


def test_a_restart_changes_nothing(short: ShortServices) -> None:
    short.put(OTHER, "p11")
    eventually(lambda: short.names("p12", number=OTHER) == {"p11"})
    with Conversation(short.question("p12", 4, number=OTHER), 4) as talk:
        assert talk.ask().name == "p11"
        short.proxy.kill()
        assert talk.ask().name == "p11"
        assert short.names("p12", number=OTHER) == {"p11"}
        short.proxy = short.lab.proxy(short.lab.nodes[0], short.folder.path, ARGS)
        assert talk.ask().name == "p11"
        assert short.names("p12", number=OTHER) == {"p11"}
    assert not short.has_server(4, number=OTHER)


def test_elements_that_others_take_away_come_back(short: ShortServices) -> None:
    short.put(WEB, "p11 p21")
    eventually(lambda: short.names("p12") == {"p11", "p21"})
    short.lab.run(short.lab.nodes[0], ["nft", "flush map inet ipvsproxy endpoints4"])
    eventually(lambda: short.names("p12") == {"p11", "p21"})


def test_new_connections_pass_a_forward_chain_that_drops(short: ShortServices) -> None:
    short.put(WEB, "p21")
    eventually(lambda: short.names("p12") == {"p21"})
    node = short.lab.nodes[0]
    accepts = "ct state established,related accept; meta l4proto ipv6-icmp accept;"
    for family in ("ip", "ip6"):
        chain = f"chain FORWARD {{ type filter hook forward priority 0; policy drop; {accepts} }}"
        short.lab.run(node, ["nft", "-f", "-"], f"table {family} filter {{\n{chain}\n}}")
    try:
        for family in (4, 6):
            eventually(lambda family=family: short.names("client", family) == {"p21"})
            assert probe(short.lab.client.netns, short.lab.host("p11").address(family), 8080, timeout=2).name == ""
    finally:
        short.lab.run(node, ["nft", "delete table ip filter; delete table ip6 filter"])
