"""What others change is put right at once, by the kernel's own word: the next verification is an hour away.

The last test prints how long repairs take beside the same repair by hand with the usual programs, in the same run.
"""

from __future__ import annotations

import json
import pathlib
import signal
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from ipvsproxy.base import messages
from ipvsproxy.base.address import parse_ip
from ipvsproxy.kernel.ipvs import Ipvs
from ipvsproxy.kernel.links import Links
from ipvsproxy.kernel.ruleset import Ruleset
from ipvsproxy.plan.repair_backoff import BURST
from nft import Libnftables, NftError, Table, Transaction
from tests.lab import netns
from tests.lab.lab import DEFAULT_PROXY_ARGS, Lab
from tests.lab.manifests import ManifestFolder, dual_slices, port, service
from tests.lab.probe import ProbeQuestion, probe, spread
from tests.lab.proxy import LabProxy
from tests.lab.waiting import eventually
from tests.lab.wipe import flush_ipvs

pytestmark = pytest.mark.needs("ip_vs", "nf_tables", "tool:nft")

PORTS = (port(80, 8080, node_port=31780),)
CLUSTER_IPS = ("10.96.8.1", "fd00:10:96::8:1")
VIP = "203.0.113.80"
TABLE = Table("inet", "ipvsproxy")


class RepairedNode:
    """One node with one Service, and what its kernel should hold."""

    def __init__(self, lab: Lab, folder: pathlib.Path) -> None:
        self.lab, self.node = lab, lab.nodes[0]
        objects = ManifestFolder(folder)
        objects.write_nodes(lab)
        web = service(
            "web", PORTS, CLUSTER_IPS, type_="LoadBalancer", ingress=[VIP],
            loadBalancerSourceRanges=["192.0.2.96/27", "198.18.0.0/15"],
        )  # fmt: skip
        hosts = [lab.host(pod) for pod in ("p11", "p12")]
        objects.write("web", web, *dual_slices(lab, "web", PORTS, hosts))
        for host in hosts:
            lab.responder.listen(host, 8080)
        self.proxy = lab.proxy(self.node, folder, [*DEFAULT_PROXY_ARGS, "--ipvs-sync-period=1h"])
        self.right = self.state()

    def run(self, *argv: str) -> str:
        return self.lab.run(self.node, argv)

    def state(self) -> tuple[str, list[str]]:
        """Our table without its handles, and the addresses of kube-ipvs0."""
        table = json.loads(self.run("nft", "-j", "list", "table", "inet", "ipvsproxy"))["nftables"]
        for item in table:
            for value in item.values():
                value.pop("handle", None)
                if isinstance(value.get("elem"), list):
                    value["elem"].sort(key=str)
        addresses = self.run("ip", "-o", "address", "show", "kube-ipvs0").split()
        return json.dumps(table[1:]), sorted(word for word in addresses if "/" in word)

    def is_right(self) -> bool:
        try:
            return self.state() == self.right
        except RuntimeError:  # no table, or no link
            return False


@pytest.fixture(scope="module")
def repaired(session_lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RepairedNode]:
    made = RepairedNode(session_lab, pathlib.Path(tmp_path_factory.mktemp("repair")))
    yield made
    session_lab.take_back()


ELEMENT = f"inet ipvsproxy frontends4 {{ {VIP} . tcp . 80 }}"
DAMAGES = {
    "the whole ruleset": ("nft", "flush ruleset"),
    "the rules of a chain": ("nft", "flush chain inet ipvsproxy decide4"),
    "a verdict": ("nft", f"delete element {ELEMENT}"),
    "a verdict that is another one": (
        "nft", f"delete element {ELEMENT}; add element {ELEMENT.removesuffix(' }')} : drop }}",
    ),
    "all verdicts": ("nft", "flush map inet ipvsproxy frontends6"),
    "all source ranges": ("nft", "flush set inet ipvsproxy allowed4"),
    "a guard too many": ("nft", "add element inet ipvsproxy vips4 { 192.0.2.1 }"),
    "an IPv4 address": ("ip", "address", "delete", f"{CLUSTER_IPS[0]}/32", "dev", "kube-ipvs0"),
    "an IPv6 address": ("ip", "address", "delete", f"{CLUSTER_IPS[1]}/128", "dev", "kube-ipvs0"),
    "an address too many": ("ip", "address", "add", "203.0.113.99/32", "dev", "kube-ipvs0"),
    "the link": ("ip", "link", "delete", "kube-ipvs0"),
}  # fmt: skip


def test_every_damage_is_put_right_without_a_verification(repaired: RepairedNode) -> None:
    said = messages.REPAIRED
    assert repaired.proxy.events(said) == []  # the proxy's own work is no damage
    for argv in DAMAGES.values():
        before = len(repaired.proxy.events(said))
        repaired.run(*argv)
        repaired.proxy.wait_for(said, before + 1)
        eventually(repaired.is_right)
    assert repaired.proxy.events(messages.SETS_NOT_RESTORED) == []
    question = ProbeQuestion(repaired.lab.client.netns, VIP, 80)
    assert set(spread(question, 6)) == {"p11", "p12"}
    assert probe(repaired.lab.host("p12").netns, VIP, 80, timeout=1.5).outcome == "timeout"


def test_servers_are_looked_at_soon_when_other_things_were_touched(repaired: RepairedNode) -> None:
    with netns.inside(repaired.node.netns):
        flush_ipvs()
    repaired.run("ip", "address", "delete", f"{VIP}/32", "dev", "kube-ipvs0")
    question = ProbeQuestion(repaired.lab.client.netns, VIP, 80)
    eventually(lambda: set(spread(question, 6)) == {"p11", "p12"})


def test_flushed_servers_are_found_by_a_sample(repaired: RepairedNode) -> None:
    proxy = restarted(repaired)
    with netns.inside(repaired.node.netns):
        ipvs = Ipvs()
        right = ipvs.observe()
        flush_ipvs()
        assert ipvs.observe() == {}
    said = proxy.wait_for(messages.REPAIRED)
    assert (said["rules"], said["vips"], said["servers"]) == (None, 0, len(right))
    eventually(lambda: ipvs.observe() == right)
    ipvs.close()
    question = ProbeQuestion(repaired.lab.client.netns, VIP, 80)
    assert set(spread(question, 6)) == {"p11", "p12"}


def test_a_new_address_of_the_node_serves_node_ports_at_once(repaired: RepairedNode) -> None:
    repaired.run("ip", "address", "add", "192.0.2.31/24", "dev", "eth0")
    try:
        eventually(lambda: probe(repaired.lab.client.netns, "192.0.2.31", 31780, timeout=2).outcome == "answered")
    finally:
        repaired.run("ip", "address", "delete", "192.0.2.31/24", "dev", "eth0")


def restarted(repaired: RepairedNode) -> LabProxy:
    repaired.proxy.kill()
    repaired.proxy.start()
    repaired.proxy.wait_for(messages.SYNCED)
    return repaired.proxy


def test_contention_is_reported_once_and_repairs_become_rarer(repaired: RepairedNode) -> None:
    proxy, over = restarted(repaired), threading.Event()

    def fight() -> None:
        with netns.inside(repaired.node.netns):
            nft = Libnftables()
            transaction = Transaction(TABLE)
            transaction.delete_elements([("vips4", VIP)])
            while not over.wait(0.02):
                try:
                    nft.run(transaction)
                except NftError:
                    continue  # not repaired yet

    other = threading.Thread(target=fight)
    other.start()
    try:
        said = proxy.wait_for(messages.CONTESTED)
        assert said["by"]
    finally:
        over.set()
        other.join()
    assert len(proxy.events(messages.REPAIRED)) <= BURST + 1
    eventually(repaired.is_right)
    assert len(proxy.events(messages.CONTESTED)) == 1


def test_figures(repaired: RepairedNode, capsys: pytest.CaptureFixture[str], tmp_path: pathlib.Path) -> None:
    """No time is asserted: `TESTS=tests/integration/test_repair.py ARGS='-k figures'` prints them."""
    import nftables

    process = restarted(repaired).process
    assert process is not None
    saved = tmp_path / "saved.nft"
    saved.write_text(repaired.run("nft", "list", "table", "inet", "ipvsproxy"))
    element = f"element inet ipvsproxy vips4 {{ {VIP} }}"
    with netns.inside(repaired.node.netns):
        links, ruleset, nft = Links(), Ruleset("ipvsproxy"), nftables.Nftables()
        links.ensure_link()
        (vip,) = {vip for vip in links.vips() if vip.address == parse_ip(VIP)}
    cases: dict[str, tuple[Callable[[], object], tuple[str, ...], Callable[[], bool]]] = {
        "an address": (
            lambda: links.unbind([vip]),
            ("ip", "address", "add", f"{VIP}/32", "dev", "kube-ipvs0"),
            lambda: vip in links.vips(),
        ),
        "an element": (
            lambda: nft.cmd(f"delete {element}"),
            ("nft", f"add {element}"),
            lambda: nft.cmd(f"get {element}")[0] == 0,
        ),
        "the ruleset": (
            lambda: nft.cmd("flush ruleset"),
            ("nft", "-f", str(saved)),
            lambda: bool(ruleset.stamp()),
        ),
    }
    rows = []
    for name, (damage, repair, is_back) in cases.items():
        process.send_signal(signal.SIGSTOP)
        damage()
        began = time.monotonic()
        repaired.run(*repair)
        by_hand = time.monotonic() - began
        process.send_signal(signal.SIGCONT)
        time.sleep(3)  # the proxy looks at what has been done meanwhile
        damage()
        began = time.monotonic()
        while not is_back():
            assert time.monotonic() - began < 120
        rows.append((name, by_hand, time.monotonic() - began))
        eventually(repaired.is_right)
    links.close()
    ruleset.close()
    with capsys.disabled():
        print("\nrepair of        by hand    by the proxy")
        for name, by_hand, by_proxy in rows:
            print(f"{name:12} {by_hand * 1000:8.0f} ms {by_proxy * 1000:10.0f} ms   x {by_proxy / by_hand:.2f}")
