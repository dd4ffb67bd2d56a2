"""Ranges of ports, and one affinity for all ports: none is remapped, all lead a client to one endpoint."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Iterable, Iterator, Sequence

import pytest

from tests.lab.lab import DEFAULT_PROXY_ARGS, Lab
from tests.lab.manifests import ManifestFolder, dual_slices, port, service
from tests.lab.probe import Conversation, ProbeQuestion, probe_many
from tests.lab.published import balancer, cluster_ip, external, published
from tests.lab.waiting import eventually
from tests.support.api_object import ApiObject

pytestmark = pytest.mark.needs("ip_vs", "nf_tables", "sctp")

NUMBER, OTHER = 92, 93
PORTS = [port(80, 8080, "TCP", "web")]
RANGE, OUT_OF_RANGE = (30000, 30001, 30010), 30011
FOUR = (*RANGE, OUT_OF_RANGE)
PODS = ("p11", "p21")


class RangedService:
    def __init__(self, lab: Lab, folder: ManifestFolder) -> None:
        self.lab, self.folder = lab, folder

    def put(
        self,
        ranges: str = "30000-30010,30000-30010/udp",
        pods: Sequence[str] = PODS,
        ports: Sequence[ApiObject] = PORTS,
        **spec: object,
    ) -> None:
        made = published("ranged", NUMBER, ports, **spec)
        if ranges:
            made["metadata"]["annotations"] = {"ipvsproxy.io/port-range": ranges}
        self.folder.write("ranged", made, *dual_slices(self.lab, "ranged", ports, map(self.lab.host, pods)))

    def put_ports(self, **annotations: str) -> None:
        """Put a Service with affinity and four ports, which its endpoints have by the same numbers."""
        ports = [port(number, number, "TCP", f"p{number}") for number in FOUR]
        made = published("ranged", NUMBER, ports, sessionAffinity="ClientIP")
        made["metadata"]["annotations"] = {f"ipvsproxy.io/{name}": value for name, value in annotations.items()}
        self.folder.write("ranged", made, *dual_slices(self.lab, "ranged", ports, map(self.lab.host, PODS)))

    def question(self, asker: str, address: str, number: int, proto: str = "tcp") -> ProbeQuestion:
        return ProbeQuestion(self.lab.host(asker).netns, address, number, proto)

    def answers(self, asker: str, address: str, numbers: Iterable[int] = RANGE, proto: str = "tcp") -> set[str]:
        """Who answers at some ports, or what becomes of the question."""
        found = probe_many([self.question(asker, address, number, proto) for number in numbers])
        return {result.name or result.outcome for result in found}


@pytest.fixture(scope="module")
def ranged(session_lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RangedService]:
    lab, folder = session_lab, ManifestFolder(pathlib.Path(tmp_path_factory.mktemp("ranged")))
    folder.write_nodes(lab)
    for name in (*PODS, "p22"):
        lab.responder.listen(lab.host(name), 8080)
    for name in PODS:
        lab.responder.listen(lab.host(name), 21)
        for number in FOUR:
            for proto in ("tcp", "udp", "sctp"):
                lab.responder.listen(lab.host(name), number, proto)
    proxy = lab.proxy(lab.nodes[0], folder.path, DEFAULT_PROXY_ARGS)
    yield RangedService(lab, folder)
    proxy.kill()
    lab.clean_nodes()
    lab.responder.clear()


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("proto", ["tcp", "udp"])
@pytest.mark.parametrize("asker", ["client", "p12", "node1"])
def test_each_port_of_a_range_leads_to_the_one_endpoint_of_a_client(
    ranged: RangedService, asker: str, proto: str, family: int
) -> None:
    ranged.put()
    for address in (balancer(NUMBER, family), cluster_ip(NUMBER, family)):
        eventually(lambda to=address: ranged.answers(asker, to, proto=proto) <= {*PODS})
        assert len(ranged.answers(asker, address, proto=proto)) == 1
    assert ranged.answers(asker, balancer(NUMBER, family), [OUT_OF_RANGE], proto) == {"refused"}
    assert ranged.answers(asker, balancer(NUMBER, family), [80] * 8) == {*PODS}


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("proto", ["tcp", "udp", "sctp"])
@pytest.mark.parametrize("asker", ["client", "p12", "node1"])
def test_an_external_ip_has_the_ranges_of_each_protocol(
    ranged: RangedService, asker: str, proto: str, family: int
) -> None:
    ranged.put(f"30000-30010/{proto}")
    address = external(NUMBER, family)
    eventually(lambda: ranged.answers(asker, address, proto=proto) <= {*PODS})
    assert len(ranged.answers(asker, address, proto=proto)) == 1
    # SCTP clients wait on for whoever refuses by ICMP.
    assert not ranged.answers(asker, address, [OUT_OF_RANGE], proto) & {*PODS}
    (other,) = {"tcp", "udp"} - {proto} if proto != "sctp" else {"tcp"}
    eventually(lambda: ranged.answers(asker, address, [30000], other) == {"refused"})


@pytest.mark.parametrize("family", [4, 6])
def test_a_range_that_changes_cuts_no_connection_of_what_stays(ranged: RangedService, family: int) -> None:
    address = balancer(NUMBER, family)
    ranged.put("30000-30010")
    eventually(lambda: ranged.answers("client", address) <= {*PODS})
    with Conversation(ranged.question("client", address, 30000)) as kept:
        name = kept.ask().name
        ranged.put("30000-30005")
        eventually(lambda: ranged.answers("client", address, [30010]) == {"refused"})
        assert ranged.answers("client", address, [30001]) == {name}
        ranged.put("*")
        eventually(lambda: ranged.answers("client", address, [30010, OUT_OF_RANGE]) == {name})
        assert ranged.answers("client", address, [80] * 8) == {*PODS}
        assert kept.ask().name == name
    ranged.put("")
    eventually(lambda: ranged.answers("client", address, [30000]) == {"refused"})
    assert ranged.answers("client", address, [80] * 8) == {*PODS}


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("proto", ["tcp", "udp"])
def test_clients_of_an_endpoint_that_goes_get_another(ranged: RangedService, proto: str, family: int) -> None:
    address = balancer(NUMBER, family)
    ranged.put()
    eventually(lambda: len(ranged.answers("client", address, proto=proto) & {*PODS}) == 1)
    (name,) = ranged.answers("client", address, proto=proto)
    (other,) = set(PODS) - {name}
    ranged.put(pods=(other,))
    eventually(lambda: ranged.answers("client", address, proto=proto) == {other})
    ranged.put(pods=())
    eventually(lambda: ranged.answers("client", address, proto=proto) == {"refused"})


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("proto", ["tcp", "udp"])
def test_ports_of_the_host_stay_its_own(ranged: RangedService, proto: str, family: int) -> None:
    """Those of the node's addresses, whatever a Service asks for; a VIP with all ports leads to none of them."""
    node = ranged.lab.nodes[0]
    listener = ranged.lab.responder.listen(node, 30000, proto)
    try:
        ranged.put("*,*/udp")
        eventually(lambda: ranged.answers("client", balancer(NUMBER, family), [OUT_OF_RANGE], proto) <= {*PODS})
        for asker in ("client", "p12"):
            assert ranged.answers(asker, node.address(family), [30000], proto) == {"node1"}
            assert ranged.answers(asker, balancer(NUMBER, family), [30000], proto) <= {*PODS}
    finally:
        listener.stop()


MARKS = """table inet others {
    chain marked {
        type filter hook prerouting priority -300;
        th dport { 80, 30000-30010 } meta mark set 0xbeef4abc
    }
    chain kept { type filter hook postrouting priority 400; th dport { 8080, 30000-30010 } jump look; }
    chain look {
        meta mark 0xbeef4abc counter comment "kept"
        meta mark != 0xbeef4abc counter comment "lost"
    }
}"""


@pytest.mark.parametrize("family", [4, 6])
def test_marks_of_other_programs_survive(ranged: RangedService, family: int) -> None:
    lab, node = ranged.lab, ranged.lab.nodes[0]
    ranged.put()
    eventually(lambda: ranged.answers("client", balancer(NUMBER, family)) <= {*PODS})
    lab.run(node, ["nft", "-f", "-"], MARKS)
    try:
        for proto in ("tcp", "udp"):
            assert ranged.answers("client", balancer(NUMBER, family), proto=proto) <= {*PODS}
        text = lab.run(node, ["nft", "list", "table", "inet", "others"])
        assert re.findall(r'packets [1-9]\d* bytes \d+ comment "(\w+)"', text) == ["kept"]
    finally:
        lab.run(node, ["nft", "delete table inet others"])


@pytest.mark.parametrize("family", [4, 6])
def test_all_ports_of_a_service_have_one_affinity(ranged: RangedService, family: int) -> None:
    """The first connections come to different ports: with an affinity for each, some would be led elsewhere."""
    ranged.put("", pods=())
    eventually(lambda: ranged.answers("client", balancer(NUMBER, family), [80]) == {"refused"})
    ranged.put_ports(**{"affinity-scope": "service"})
    eventually(lambda: ranged.answers("node1", cluster_ip(NUMBER, family), FOUR) <= {*PODS})
    for address in (balancer(NUMBER, family), cluster_ip(NUMBER, family)):
        first = {
            asker: ranged.answers(asker, address, [number])
            for asker, number in (("client", FOUR[0]), ("p12", FOUR[1]), ("node1", FOUR[2]))
        }
        assert set.union(*first.values()) == {*PODS}
        for asker, names in first.items():
            assert ranged.answers(asker, address, FOUR) == names
    assert ranged.answers("client", balancer(NUMBER, family), [80]) == {"refused"}


@pytest.mark.parametrize("family", [4, 6])
def test_data_connections_of_ftp_find_the_endpoint_of_their_control_connection(
    ranged: RangedService, family: int
) -> None:
    """Passive FTP: IPVS would take the ports of data connections for those of a server with port 21."""
    address = balancer(NUMBER, family)
    ranged.put("30000-30010", ports=[*PORTS, port(21, 21, "TCP", "control")])
    eventually(lambda: ranged.answers("node1", address, [21]) <= {*PODS})
    for asker in ("client", "p12"):
        control = ranged.answers(asker, address, [21])
        assert control <= {*PODS}
        assert ranged.answers(asker, address, [*RANGE, 21]) == control
    assert ranged.answers("client", address, [OUT_OF_RANGE]) == {"refused"}


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("form", ["port-range", "affinity-scope"])
def test_no_other_service_takes_a_port_from_the_server_for_all(
    ranged: RangedService, form: str, family: int
) -> None:
    """Neither by a server for that port, nor by one for FTP, which IPVS asks for high ports."""
    lab = ranged.lab
    ranged.put(pods=("p11",)) if form == "port-range" else ranged.put_ports(**{form: "service"})
    own = {"p11"} if form == "port-range" else {*PODS}
    wanted = [cluster_ip(NUMBER, family), external(NUMBER, family)]
    ports = [port(number, 8080, "TCP", f"p{number}") for number in (21, 30000, 443)]
    thief = service("thief", ports, [cluster_ip(OTHER, f) for f in (4, 6)], externalIPs=wanted)
    ranged.folder.write("thief", thief, *dual_slices(lab, "thief", ports, [lab.host("p22")]))
    try:
        for address in wanted:
            eventually(lambda to=address: ranged.answers("client", to, [443]) == {"p22"})
            for asker in ("client", "p12", "node1"):
                eventually(lambda to=address, who=asker: ranged.answers(who, to) <= own)
                assert ranged.answers(asker, address, [443]) == {"p22"}
    finally:
        ranged.folder.remove("thief")


@pytest.mark.parametrize("family", [4, 6])
def test_a_local_policy_counts_for_ranges(ranged: RangedService, family: int) -> None:
    ranged.put(externalTrafficPolicy="Local")
    eventually(lambda: ranged.answers("client", balancer(NUMBER, family)) == {"p11"})
    ranged.put(externalTrafficPolicy="Local", pods=("p21",))
    eventually(lambda: ranged.answers("client", balancer(NUMBER, family)) == {"timeout"})
