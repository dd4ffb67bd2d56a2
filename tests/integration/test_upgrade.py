"""The state of another version, older or newer, is taken over under load: nothing is lost, nothing of it stays."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import pathlib
import re
import selectors
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Self

import pytest

from ipvsproxy.base import messages
from tests.conformance.forked import ForkedProxy
from tests.conformance.proxy import Zygote
from tests.lab import netns, older_state
from tests.lab.lab import DEFAULT_PROXY_ARGS, Lab, LabNode
from tests.lab.load import Load
from tests.lab.manifests import ManifestFolder, endpoint, endpoint_slice, port, service
from tests.lab.probe import Attempt, Conversation, ProbeQuestion, probe_many
from tests.lab.proxy import LabProxy
from tests.lab.waiting import eventually
from tests.lab.wipe import wipe_node
from tests.support.api_object import ApiObject

pytestmark = pytest.mark.needs("ip_vs", "nf_tables", "tool:nft", "tool:ipvsadm")

WEB, RANGED = ("10.96.9.1", "fd00:10:96::9:1"), ("203.0.113.91", "2001:db8:113::91")
HOME, LOCAL = ("10.96.9.2", "fd00:10:96::9:2"), ("203.0.113.92", "2001:db8:113::92")
GONE, GONE_BALANCER = ("10.96.9.3", "fd00:10:96::9:3"), ("203.0.113.93", "2001:db8:113::93")
NODE_PORTS = {"web": 31090, "home": 31092, "gone": 31094}
DENIED = ("192.0.2.101", "2001:db8:2::101")
PODS = ("p11", "p21")
OLDER = os.environ.get("IPVSPROXY_OLDER", "").split()
"""The folder of another version's source, and flags for it."""
REPLACED = messages.RULESET_REPLACED
CLEANUP = [sys.executable, "-m", "ipvsproxy", "cleanup"]
# As an older version that holds the lock of the node: it proves nothing, and follows the rules as all versions do.
HOLDER = """
import socket
rules = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12)
rules.bind((0, 1 << 6))
lock, waiting = socket.socket(socket.AF_UNIX), []
lock.bind(chr(0) + "ipvsproxy/lock")
lock.listen(8)
while True:
    waiting.append(lock.accept()[0])
    waiting[-1].send(b"ipvsproxy v0.0.1, started long ago")
"""
# iptables-nft with a policy of DROP: replies pass by the rule that the proxy puts there.
FORWARD = """
table ip filter { chain FORWARD { type filter hook forward priority 0; policy drop; ct state new accept; }; }
table ip6 filter { chain FORWARD {
    type filter hook forward priority 0; policy drop; meta l4proto ipv6-icmp accept; ct state new accept; }; }
"""
# What a later version could have beside the rules of this one: names in use for something else, more hooks,
# objects of other kinds, tables of other families.
MORE = """
table inet ipvsproxy {
    counter hits { }
    set vips4 { type ipv4_addr . mark; elements = { 10.96.9.1 . 0x1 }; }
    map frontends4 { type ipv4_addr . inet_service : mark; elements = { 10.96.9.1 . 80 : 0x7 }; }
    set allowed4 { type ipv4_addr; flags interval; elements = { 192.0.2.0/24 }; }
    set seen { type ipv4_addr; flags dynamic,timeout; timeout 1h; }
    chain later { counter; add @seen { ip saddr }; ip saddr @allowed4 return; }
    chain mangling {
        type filter hook prerouting priority mangle; policy accept;
        ip daddr . meta mark @vips4 jump later
        meta mark set ip daddr . tcp dport map @frontends4
    }
}
table ip6 ipvsproxy { chain input { type filter hook input priority 10; ip6 daddr 2001:db8:113::99 drop; }; }
table netdev ipvsproxy { set links { type ifname; elements = { "eth0" }; }; }
"""


def objects(lab: Lab, name: str, ips: tuple[str, ...], balancers: tuple[str, ...], **spec: Any) -> list[ApiObject]:
    number = NODE_PORTS[name]
    ports = [port(80, 8080, "TCP", "tcp", number), port(81, 8081, "UDP", "udp", number + 1)]
    made = service(name, ports, ips, type_="LoadBalancer", ingress=balancers, **spec)
    ends = {family: [endpoint(lab, lab.host(pod), family=family) for pod in PODS] for family in (4, 6)}
    return [made, *(endpoint_slice(name, ports, ends[family], family=family) for family in (4, 6))]


def write(lab: Lab, manifests: ManifestFolder) -> None:
    """The Services that are wanted: one with source ranges, one with two views and a synthetic port."""
    manifests.write_nodes(lab)
    ranges = [f"{lab.client.ipv4}/32", f"{lab.client.ipv6}/128"]
    manifests.write("web", *objects(lab, "web", WEB, RANGED, loadBalancerSourceRanges=ranges))
    policies = {"externalTrafficPolicy": "Local", "internalTrafficPolicy": "Local"}
    manifests.write("home", *objects(lab, "home", HOME, LOCAL, **policies))


def ways(lab: Lab) -> dict[str, ProbeQuestion]:
    client, pod, node = lab.client.netns, lab.host("p12").netns, lab.nodes[0]
    return {
        "client -> NodePort": ProbeQuestion(client, node.ipv4, 31090),
        "client -> NodePort UDP": ProbeQuestion(client, node.ipv4, 31091, "udp"),
        "client -> NodePort of IPv6": ProbeQuestion(client, node.ipv6, 31090),
        "client -> ranged": ProbeQuestion(client, RANGED[0], 80, src=lab.client.ipv4),
        "client -> ranged UDP": ProbeQuestion(client, RANGED[0], 81, "udp", src=lab.client.ipv4),
        "client -> ranged of IPv6": ProbeQuestion(client, RANGED[1], 80, src=lab.client.ipv6),
        "client -> Local": ProbeQuestion(client, LOCAL[0], 80),
        "pod -> ClusterIP": ProbeQuestion(pod, WEB[0], 80),
        "pod -> ClusterIP of IPv6": ProbeQuestion(pod, WEB[1], 80),
        "pod -> ClusterIP UDP": ProbeQuestion(pod, WEB[0], 81, "udp"),
        "pod -> Local": ProbeQuestion(pod, LOCAL[0], 80),
        "node -> ClusterIP": ProbeQuestion(node.netns, WEB[0], 80),
    }


class Denied(threading.Thread):
    """A client whom the source ranges exclude: it asks all the time, and must never get through."""

    PACE, PATIENCE = 0.005, 1.5
    PORTS = range(32768, 60999)

    def __init__(self, lab: Lab) -> None:
        super().__init__(name="denied", daemon=True)
        self.asked, self.permitted = 0, 0
        client = lab.client.netns
        self._ways = [(client, RANGED[i], *way, DENIED[i]) for i in (0, 1) for way in ((80, "tcp"), (81, "udp"))]
        self._selector = selectors.DefaultSelector()
        self._open: list[tuple[float, Attempt]] = []
        self._over = threading.Event()

    def run(self) -> None:
        for way, number in zip(itertools.cycle(self._ways), itertools.cycle(self.PORTS)):
            if self._over.wait(self.PACE):
                break
            attempt = Attempt(ProbeQuestion(*way, src_port=number))
            attempt.start()
            tcp = way[3] == "tcp"
            self._selector.register(
                attempt.socket, selectors.EVENT_WRITE if tcp else selectors.EVENT_READ, attempt
            )
            self._open.append((time.monotonic() + self.PATIENCE, attempt))
            self.asked += 1
            self._look(time.monotonic())
        self._look(time.monotonic() + self.PATIENCE)
        self._selector.close()

    def _look(self, now: float) -> None:
        for key, _ in self._selector.select(0):
            attempt = key.data
            attempt.step()
            answered = attempt.result and attempt.result.outcome == "answered"
            self.permitted += bool(answered or (attempt.question.proto == "tcp" and attempt.connected))
            self._selector.unregister(attempt.socket)
        while self._open and self._open[0][0] <= now:
            ended = self._open.pop(0)[1].socket
            with contextlib.suppress(KeyError):
                self._selector.unregister(ended)
            ended.close()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        self.join()


@pytest.fixture
def node(lab: Lab, manifests: ManifestFolder) -> Iterator[LabNode]:
    """A node of which nothing is left afterwards; its pods serve, and the client has a second address."""
    node = lab.nodes[0]
    extra = [f"address {{}} {DENIED[0]}/24 dev eth0", f"address {{}} {DENIED[1]}/64 dev eth0 nodad"]
    netns.ip(lab.client.netns, *(line.format("add") for line in extra))
    for pod in PODS:
        lab.responder.listen(lab.host(pod), 8080)
        lab.responder.listen(lab.host(pod), 8081, "udp")
    write(lab, manifests)
    yield node
    for proxy in lab.proxies:
        proxy.kill()
    lab.clean_nodes()
    netns.ip(lab.client.netns, *(line.format("del") for line in extra))


StartVersion = Callable[..., ForkedProxy]


@pytest.fixture
def start(lab: Lab, node: LabNode, manifests: ManifestFolder, zygote: Zygote) -> StartVersion:
    return lambda *flags: ForkedProxy(zygote, lab, node, manifests.path, *flags)


def listings(lab: Lab, node: LabNode) -> dict[str, Any]:
    """Everything of ours on the node, without what differs from load to load."""
    found = json.loads(lab.run(node, ["nft", "-s", "-j", "list", "ruleset"]))["nftables"]
    commands = {
        "addresses": "ip -o address show dev kube-ipvs0", "routes": "ip -4 route show table local",
        "routes of IPv6": "ip -6 route show table local", "servers": "ipvsadm -Sn",
        "thresholds": "ipvsadm -Ln --thresholds",
    }  # fmt: skip
    texts = {name: sorted(lab.run(node, words.split()).splitlines()) for name, words in commands.items()}
    # Without the numbers of connections.
    texts["thresholds"] = [" ".join(line.split()[:4]) for line in texts["thresholds"]]
    texts["addresses"] = [" ".join(line.split()[2:4]) for line in texts["addresses"]]
    return texts | {"rules": [_stable(item) for item in found if "metainfo" not in item]}


def _stable(item: dict[str, Any]) -> Any:
    ((kind, fields),) = item.items()
    fields.pop("handle", None)
    if "elem" in fields:
        fields["elem"].sort(key=json.dumps)
    return [kind, fields]


@contextlib.contextmanager
def nothing_lost(lab: Lab) -> Iterator[None]:
    """Load, open connections and a client that is excluded, while the block goes on."""
    asked = ways(lab)
    with contextlib.ExitStack() as stack:
        talks = {name: stack.enter_context(Conversation(question, timeout=20)) for name, question in asked.items()}
        before = seen(talks)
        with Denied(lab) as denied, Load(asked, every=0.3) as load:
            time.sleep(1)
            yield
            time.sleep(1)
            eventually(lambda: denied.asked > 100)
        assert load.failures == [], load.report()
        assert set(load.answered) == set(asked)
        assert denied.permitted == 0
        assert seen(talks) == before


def seen(talks: dict[str, Conversation]) -> dict[str, tuple[str, str, int]]:
    """Return who answers on each connection, and the source that they see."""
    results = {name: talk.ask() for name, talk in talks.items()}
    assert {result.outcome for result in results.values()} == {"answered"}, results
    return {name: (result.name, result.seen_source, result.seen_port) for name, result in results.items()}


def is_as_fresh(lab: Lab, node: LabNode, start: StartVersion, rules: str = "") -> None:
    """Compare the node with what a start makes on a node that has nothing but some rules."""
    found = listings(lab, node)
    for proxy in lab.proxies:
        proxy.kill()
    wipe_node(node.netns)
    lab.run(node, ["nft", "-f", "-"], rules)
    start().started()
    expected = listings(lab, node)
    for name, listed in expected.items():
        assert found[name] == listed, name


def older_proxy(lab: Lab, node: LabNode, manifests: ManifestFolder, tmp_path: pathlib.Path) -> LabProxy:
    """Start the version in the folder OLDER."""
    flags = [f"--manifests={manifests.path}", f"--hostname-override={node.name}", *DEFAULT_PROXY_ARGS, *OLDER[1:]]
    words = ["env", "-C", OLDER[0], sys.executable, "-m", "ipvsproxy", "run", *flags]
    proxy = LabProxy(node.netns, words, tmp_path / "older.log")
    lab.proxies.append(proxy)
    proxy.start()
    return proxy


def all_answer(lab: Lab) -> bool:
    return {result.outcome for result in probe_many(ways(lab).values())} == {"answered"}


@pytest.mark.skipif(not OLDER, reason="IPVSPROXY_OLDER names no other version")
def test_another_version_that_has_run_here(
    lab: Lab, node: LabNode, manifests: ManifestFolder, start: StartVersion, tmp_path: pathlib.Path
) -> None:
    manifests.write("gone", *objects(lab, "gone", GONE, GONE_BALANCER))
    older = older_proxy(lab, node, manifests, tmp_path)
    eventually(lambda: all_answer(lab), seconds=60)
    time.sleep(2)
    if name := os.environ.get("IPVSPROXY_RECORD"):
        folder = pathlib.Path(os.environ.get("IPVSPROXY_KEPT", "."), "tests/integration/older", name)
        older_state.record(lab, node, folder)
    with nothing_lost(lab):
        older.stop(signal.SIGKILL)
        manifests.remove("gone")
        proxy = start().started()
    print(json.dumps([event for event in proxy.events() if event["msg"] in (messages.SYNCED, REPLACED)]))
    is_as_fresh(lab, node, start)


@pytest.mark.parametrize("name", older_state.names())
def test_an_older_state_is_taken_over_from_an_older_proxy(
    lab: Lab, node: LabNode, start: StartVersion, name: str
) -> None:
    """Beside the older one the new one waits and changes nothing; then it takes over whatever is there."""
    older_state.leave(lab, node, name)
    before = listings(lab, node)
    holder = LabProxy(node.netns, [sys.executable, "-c", HOLDER], pathlib.Path(os.devnull))
    holder.start()
    lab.proxies.append(holder)
    eventually(lambda: "@ipvsproxy/lock" in lab.run(node, ["cat", "/proc/net/unix"]))
    with nothing_lost(lab):
        proxy = start("--ipvs-sync-period=1s")
        proxy.start()
        said = proxy.wait_for(messages.STANDBY)
        assert "ipvsproxy v0.0.1" in str(said["holder"])
        assert listings(lab, node) == before
        holder.kill()
        proxy.wait_for(messages.SYNCED)
    is_settled(proxy, "unknown")
    is_as_fresh(lab, node, start)


def is_settled(proxy: LabProxy, was: str) -> None:
    """Some verifications later: the rules were replaced once, which was said once, and nobody contests them."""
    time.sleep(3)
    assert [event["was"] for event in proxy.events(REPLACED)] == [was]
    repairs = (messages.REPAIRED, messages.VERIFICATION_REPAIRED)
    assert [event for event in proxy.events() if event["msg"] in repairs] == []


def leave_newer(lab: Lab, node: LabNode, start: StartVersion) -> None:
    """Make the state of a later version: this one's, with another mark and other forms, and more of everything."""
    lab.run(node, ["nft", "-f", "-"], FORWARD)
    start("--iptables-masquerade-bit=15", "--vip-mode=route").started().kill()
    text = older_state.rules(lab, node)
    for name in ("vips4", "frontends4", "allowed4"):
        text = re.sub(rf"\b{name}\b", f"{name}_of_later", text)
    for ours, theirs in (
        (r'comment ".*"', 'comment "ipvsproxy v9.0.0, layout ffffffffffff"'),
        ("hook prerouting priority dstnat - 10", "hook prerouting priority dstnat - 20"),
        ("hook input priority filter;", "hook input priority filter + 20;"),
        ("hook postrouting priority srcnat;", "hook postrouting priority srcnat - 5;"),
    ):
        text, count = re.subn(ours, theirs, text)
        assert count, ours
    gone = "".join(f"delete table {table}\n" for table in older_state.tables(lab, node))
    lab.run(node, ["nft", "-f", "-"], gone + text + MORE)
    netns.ip(node.netns, LATER_LINKS)
    lab.run(node, ["sh", "-ec", LATER_SERVERS])


LATER_LINKS = f"""
address add {GONE[0]}/32 dev kube-ipvs0
route add local {GONE_BALANCER[0]} dev lo table local proto 118
route append local {LOCAL[0]} dev cni0 table local proto 118
route append local {LOCAL[1]} dev cni0 table local proto 118
route del local {LOCAL[0]} dev lo table local proto 118
"""
# Session affinity, also of whole networks, thresholds, a weight, a server of a Service that is gone; another
# scheduler where nobody asks, for the kernel cannot change it without a gap (docs/internals-packets.md).
LATER_SERVERS = f"""
ipvsadm -E -t {WEB[0]}:80 -s rr -p 600
ipvsadm -E -t {HOME[0]}:80 -s wlc -p 600 -M 255.255.255.0
ipvsadm -e -t {WEB[0]}:80 -r 10.244.1.10:8080 -m -w 1 -x 100 -y 50
ipvsadm -e -t {RANGED[0]}:80 -r 10.244.1.10:8080 -m -w 3 -x 100
ipvsadm -A -t {GONE[0]}:80 -s wlc
ipvsadm -a -t {GONE[0]}:80 -r 10.244.1.10:8080 -m
"""


def test_a_newer_state_is_taken_over(lab: Lab, node: LabNode, start: StartVersion) -> None:
    leave_newer(lab, node, start)
    with nothing_lost(lab):
        proxy = start("--ipvs-sync-period=1s").started()
    is_settled(proxy, "ipvsproxy v9.0.0, layout ffffffffffff")
    is_as_fresh(lab, node, start, FORWARD)


@pytest.mark.parametrize("name", [*older_state.names(), "newer"])
def test_cleanup_takes_all_of_it_away(lab: Lab, node: LabNode, start: StartVersion, name: str) -> None:
    if name == "newer":
        leave_newer(lab, node, start)
    else:
        older_state.leave(lab, node, name)
    lab.run(node, CLEANUP)
    assert older_state.tables(lab, node) == []
    assert "ipvsproxy" not in lab.run(node, ["nft", "list", "ruleset"])
    assert lab.run(node, ["ipvsadm", "-Sn"]) == ""
    assert "kube-ipvs0" not in lab.run(node, ["ip", "-o", "link"])
    assert "proto 118" not in lab.run(node, ["ip", "route", "show", "table", "all"])
