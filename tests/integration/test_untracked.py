"""Packets that conntrack does not place: no nat chain sees them, and nothing opens.

Another program keeps them from conntrack (notrack), or conntrack calls them invalid. Source ranges are asked all
the same where IPVS would serve such a packet; a node that has nothing of the kind has no rules for it.
"""

from __future__ import annotations

import pathlib
import socket
from collections.abc import Iterator

import pytest

from ipvsproxy.base.address import parse_ip
from ipvsproxy.base.messages import PARTS_ADDED
from tests.lab import netns
from tests.lab.lab import DEFAULT_PROXY_ARGS, Lab, LabHost
from tests.lab.manifests import ManifestFolder, dual_slices, port, service
from tests.lab.packets import FIN, SYN, send_datagram, send_segment
from tests.lab.probe import probe
from tests.lab.proxy import LabProxy
from tests.lab.published import cluster_ip
from tests.lab.waiting import eventually

pytestmark = pytest.mark.needs("ip_vs", "nf_tables")

NUMBER = 96
PORTS = [port(80, 8080, "TCP", "web"), port(80, 8080, "UDP", "dns")]
BALANCERS = {4: "203.0.113.96", 6: "2001:db8:113::96"}
NOBODY = ["198.18.0.0/32", "2001:db8:ffff::/128"]
EVERYBODY = ["0.0.0.0/0", "::/0"]
NOTRACK = """table inet elsewhere {
    chain prerouting { type filter hook prerouting priority raw; tcp dport 80 notrack; }
    chain output { type filter hook output priority raw; tcp dport 80 notrack; }
}"""
GONE = "delete table inet elsewhere"
BY_IPVS, OF_NODE = {"check_untracked", "leaving"}, {"sent_untracked"}
"""Chains of the parts that only frontends with source ranges by IPVS need, and only while something is hidden."""
OF_SHORT_PATH = {"not_translated"}
BOTH_PATHS = pytest.mark.parametrize("path", ["ipvs", "auto"])


class RestrictedBalancer:
    """A Service whose load balancer's address only some clients may reach, and the proxy of node1."""

    def __init__(self, lab: Lab, folder: ManifestFolder) -> None:
        self.lab, self.folder, self.node = lab, folder, lab.nodes[0]
        self.proxy: LabProxy | None = None

    def put(self, ranges: list[str], path: str = "") -> None:
        ips = [cluster_ip(NUMBER, family) for family in (4, 6)]
        more = {"type_": "LoadBalancer", "ingress": BALANCERS.values(), "loadBalancerSourceRanges": ranges}
        made = service("web", PORTS, ips, **more)
        made["metadata"]["annotations"] = {"ipvsproxy.io/data-path": path} if path else {}
        self.folder.write("web", made, *dual_slices(self.lab, "web", PORTS, [self.lab.host("p11")]))

    def start(self, path: str) -> LabProxy:
        args = [*DEFAULT_PROXY_ARGS, f"--data-path={path}", "--ipvs-sync-period=2s"]
        self.proxy = self.lab.proxy(self.node, self.folder.path, args)
        for family in (4, 6):
            eventually(lambda family=family: self.ask(self.lab.client, cluster_ip(NUMBER, family)) == "p11")
        return self.proxy

    def ask(self, asker: LabHost, address: str) -> str:
        return probe(asker.netns, address, 80, timeout=1.5).name

    def answers(self, *askers: LabHost) -> set[str]:
        """Return who answers at the load balancer's addresses."""
        return {self.ask(asker, BALANCERS[family]) for asker in askers for family in (4, 6)}

    def chains(self) -> set[str]:
        lines = self.lab.run(self.node, ["nft", "list", "table", "inet", "ipvsproxy"]).splitlines()
        return {line.split()[1] for line in lines if line.strip().startswith("chain ")}

    def run(self, *argv: str, text: str = "") -> None:
        self.lab.run(self.node, list(argv), text or None)

    def client_ports(self, family: int) -> set[int]:
        """Return the ports from which IPVS has connections to the load balancer's address."""
        with netns.inside(self.node.netns):
            lines = pathlib.Path("/proc/thread-self/net/ip_vs_conn").read_text().splitlines()[1:]
        address = parse_ip(BALANCERS[family])
        name = address.hex().upper() if family == 4 else socket.inet_ntop(socket.AF_INET6, address)
        written = {name, f"[{name}]", ":".join(address.hex()[n : n + 4] for n in range(0, 32, 4))}
        return {int(line.split()[2], 16) for line in lines if line.split()[3] in written}


@pytest.fixture
def ranged(session_lab: Lab, tmp_path: pathlib.Path) -> Iterator[RestrictedBalancer]:
    lab, folder = session_lab, ManifestFolder(tmp_path)
    folder.write_nodes(lab)
    for proto in ("tcp", "udp"):
        lab.responder.listen(lab.host("p11"), 8080, proto)
    found = RestrictedBalancer(lab, folder)
    found.put(NOBODY)
    yield found
    if found.proxy:
        found.proxy.kill()
    lab.run(found.node, ["sh", "-c", f"nft '{GONE}' 2>/dev/null || true"])
    lab.take_back()


@BOTH_PATHS
def test_source_ranges_and_the_host_stay_closed(ranged: RestrictedBalancer, path: str) -> None:
    proxy, lab, node = ranged.start(path), ranged.lab, ranged.node
    listener = lab.responder.listen(node, 80, everywhere=True)
    assert not ranged.chains() & (OF_NODE | OF_SHORT_PATH)
    assert (ranged.chains() >= BY_IPVS) is (path == "ipvs")
    ranged.run("nft", "-f", "-", text=NOTRACK)
    try:
        if path == "auto":  # which serves no one; so long they come to the host
            eventually(lambda: ranged.chains() >= OF_SHORT_PATH)
        assert ranged.answers(lab.client, lab.host("p12")) == {""}  # at once: IPVS would serve them
        if path == "ipvs":
            proxy.wait_for(PARTS_ADDED)
        assert ranged.answers(node) == {""}
        for family in (4, 6):
            # IPVS needs no conntrack. On the short path nobody can be served, and the host must not answer.
            expected = "p11" if path == "ipvs" else ""
            assert ranged.ask(lab.client, cluster_ip(NUMBER, family)) == expected
        assert (ranged.chains() >= OF_NODE) is (path == "ipvs")
        assert (ranged.chains() >= OF_SHORT_PATH) is (path == "auto")
    finally:
        listener.stop()


def test_what_is_hidden_when_the_proxy_starts_is_judged_from_the_first_packet(ranged: RestrictedBalancer) -> None:
    ranged.start("ipvs").kill()
    ranged.run("nft", "-f", "-", text=NOTRACK)
    proxy = ranged.start("ipvs")
    assert ranged.answers(ranged.node, ranged.lab.client) == {""}
    assert not proxy.events(PARTS_ADDED)
    # No rule goes while the proxy runs; the next start loads what is needed then.
    ranged.run("nft", GONE)
    assert ranged.chains() >= OF_NODE
    proxy.kill()
    ranged.start("ipvs")
    assert not ranged.chains() & OF_NODE
    assert ranged.answers(ranged.node, ranged.lab.client) == {""}


@pytest.mark.needs("tool:iptables-nft", "tool:iptables-legacy")
@pytest.mark.parametrize("program", ["iptables-nft", "ip6tables-nft", "iptables-legacy", "ip6tables-legacy"])
def test_rules_of_iptables_are_noticed(ranged: RestrictedBalancer, program: str) -> None:
    """As NodeLocal DNSCache has them."""
    if ranged.lab.run(ranged.node, ["sh", "-c", f"{program} -t raw -S >/dev/null 2>&1 || echo no"]):
        pytest.skip(f"this kernel has no table raw of {program}; unit/kernel/test_notrack.py reads its rules")
    proxy, family = ranged.start("ipvs"), 6 if program.startswith("ip6") else 4
    rule = ["OUTPUT", "-p", "tcp", "--dport", "80", "-j"]
    ranged.run(program, "-w", "-t", "raw", "-A", *rule, "CT", "--notrack")
    try:
        proxy.wait_for(PARTS_ADDED)
        assert ranged.ask(ranged.node, BALANCERS[family]) == ""
    finally:
        ranged.run(program, "-w", "-t", "raw", "-F")


def test_where_conntrack_takes_up_nothing_in_the_middle_the_node_is_asked_too(ranged: RestrictedBalancer) -> None:
    proxy = ranged.start("ipvs")
    loose = "net/netfilter/nf_conntrack_tcp_loose"
    netns.set_sysctls(ranged.node.netns, {loose: 0})
    try:
        proxy.wait_for(PARTS_ADDED)
        assert ranged.chains() >= OF_NODE
    finally:
        netns.set_sysctls(ranged.node.netns, {loose: 1})


@pytest.mark.parametrize("family", [4, 6])
def test_invalid_packets_of_an_excluded_client_come_to_nothing(ranged: RestrictedBalancer, family: int) -> None:
    """A SYN with FIN, which some endpoints take, a datagram with a wrong checksum: each would be a connection."""
    ranged.start("ipvs")
    client = ranged.lab.client
    source, to, ports = client.address(family), (BALANCERS[family], 80), set(range(8000, 8005))

    def send() -> None:
        for number in ports:
            send_segment(client.netns, (source, number), to, 1, b"", flags=SYN | FIN)
            send_datagram(client.netns, (source, number + 10), to, b"{}", checksum=0x1234)
        assert ranged.ask(client, cluster_ip(NUMBER, family)) == "p11"  # which came behind them

    send()
    assert not ranged.client_ports(family)
    ranged.put(EVERYBODY)
    eventually(lambda: ranged.ask(client, BALANCERS[family]) == "p11")
    send()  # what is let in shows that such packets come as far as that
    assert ranged.client_ports(family) >= {*ports, *(number + 10 for number in ports)}


def test_a_service_that_comes_to_ipvs_has_the_rules_for_it(ranged: RestrictedBalancer) -> None:
    proxy, lab = ranged.start("auto"), ranged.lab
    assert not ranged.chains() & BY_IPVS
    ranged.put(NOBODY, "ipvs")
    proxy.wait_for(PARTS_ADDED)
    assert ranged.chains() >= BY_IPVS
    ranged.run("nft", "-f", "-", text=NOTRACK)
    eventually(lambda: ranged.ask(lab.client, cluster_ip(NUMBER, 4)) == "p11")  # by IPVS, that is
    assert ranged.answers(lab.client, lab.host("p12")) == {""}
