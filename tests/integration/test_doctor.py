"""`ipvsproxy doctor` on a node that is broken in many ways, one at a time: the cause comes first in its list.

One node with one proxy, which verifies so rarely that what a test breaks stays broken. Each way is taken back, and
the node must be found healthy before the first and after the last one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator

import netns
import pytest
from lab import CLUSTER_CIDRS, DEFAULT_PROXY_ARGS, Lab, Node
from manifests import Folder, endpoint, endpoint_slice, port, service
from name_server import NameServer
from probe import probe
from proxy import Proxy

from ipvsproxy.address import parse_ip
from ipvsproxy.commands.service_survey import survey_service
from ipvsproxy.commands.survey import survey
from ipvsproxy.config import Config
from ipvsproxy.diagnosis.finding import Finding, Verdict
from ipvsproxy.diagnosis.node import diagnose
from ipvsproxy.diagnosis.service import diagnose_service
from ipvsproxy.kernel.ipvs import Ipvs
from ipvsproxy.plan.diff import IpvsStep, Verb
from ipvsproxy.plan.state import Destination, FrontendKey, Server
from ipvsproxy.probe.web import read_metrics

pytestmark = pytest.mark.needs("ip_vs", "nf_tables", "tool:nft")

TCP, NODE_PORT = 6, 31001
WEB, DNS, API = "10.96.3.1", "10.96.0.10", "10.96.0.1"
KUBERNETES, EXTERNAL = "kubernetes.default.svc.cluster.local", "else.default.svc.cluster.local"
DECLARED = "elsewhere.example.com"
WEB_KEY = FrontendKey(parse_ip(WEB), TCP, 80)
CONNTRACK = pathlib.Path("/proc/sys/net/netfilter/nf_conntrack_max")
PATIENCE = 30.0


@dataclasses.dataclass
class World:
    """A healthy node, its proxy, the name server of its cluster, and how doctor is called."""

    lab: Lab
    node: Node
    proxy: Proxy
    names: NameServer
    config: Config

    def findings(self) -> list[Finding]:
        with netns.inside(self.node.netns):
            return diagnose(survey(self.config, "cluster.local").facts)

    def run(self, *words: str, stdin: str = "") -> str:
        return self.lab.run(self.node, words, stdin)


@pytest.fixture(scope="module")
def world(session_lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    lab, node = session_lab, session_lab.nodes[0]
    folder = Folder(tmp_path_factory.mktemp("manifests"))
    describe(lab, folder)
    for name in ("p11", "p12", "p21"):
        lab.responder.listen(lab.host(name), 8080)
    names = NameServer({KUBERNETES: API}, {EXTERNAL: DECLARED})
    proxy = lab.proxy(node, folder.path, [*DEFAULT_PROXY_ARGS, "--ipvs-sync-period=1h", "--service-metrics=2"])
    config = Config(
        "node1", manifests=folder.path, cluster_cidrs=tuple(CLUSTER_CIDRS.split(",")), sync_period=3600.0
    )
    with names.serving(lab.host("p12")):
        yield World(lab, node, proxy, names, config)
    proxy.kill()
    lab.clean_nodes()
    lab.responder.clear()


def describe(lab: Lab, folder: Folder) -> None:
    web, dns = [port(80, 8080, node_port=NODE_PORT)], [port(53, 53, "UDP", "dns")]
    pods = [endpoint(lab, lab.host(name)) for name in ("p11", "p12", "p21")]
    folder.write("web", service("web", web, [WEB], type_="NodePort"), endpoint_slice("web", web, pods))
    resolver = [service("kube-dns", dns, [DNS]), endpoint_slice("kube-dns", dns, [pods[1]])]
    for made in resolver:
        made["metadata"]["namespace"] = "kube-system"
    folder.write("dns", *resolver)
    folder.write("kubernetes", service("kubernetes", [port(443, 6443, name="https")], [API]))
    elsewhere = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "else", "namespace": "default"}}
    folder.write("else", {**elsewhere, "spec": {"type": "ExternalName", "externalName": DECLARED}})
    folder.write_nodes(lab)


# Ways to break a node. Each is a context manager that takes itself back.


def sysctl(name: str, value: int) -> Callable[[World], contextlib.AbstractContextManager[None]]:
    @contextlib.contextmanager
    def way(world: World) -> Iterator[None]:
        was = netns.get_sysctl(world.node.netns, name)
        netns.set_sysctls(world.node.netns, {name: value})
        yield
        netns.set_sysctls(world.node.netns, {name: was})

    return way


def table(text: str) -> Callable[[World], contextlib.AbstractContextManager[None]]:
    """A table of another program."""

    @contextlib.contextmanager
    def way(world: World) -> Iterator[None]:
        name = text.partition("{")[0]
        world.run("nft", "-f", "-", stdin=text)
        yield
        world.run("nft", f"delete {name}")

    return way


def commands(breaking: str, mending: str) -> Callable[[World], contextlib.AbstractContextManager[None]]:
    @contextlib.contextmanager
    def way(world: World) -> Iterator[None]:
        world.run(*breaking.split())
        yield
        world.run(*mending.split())

    return way


@contextlib.contextmanager
def ruleset_flushed(world: World) -> Iterator[None]:
    saved = world.run("nft", "list", "table", "inet", "ipvsproxy")
    world.run("nft", "delete", "table", "inet", "ipvsproxy")
    yield
    world.run("nft", "-f", "-", stdin=saved)


@contextlib.contextmanager
def chain_flushed(world: World) -> Iterator[None]:
    saved = world.run("nft", "list", "chain", "inet", "ipvsproxy", "postrouting")
    world.run("nft", "flush", "chain", "inet", "ipvsproxy", "postrouting")
    yield
    world.run("nft", "-f", "-", stdin=saved)


def ipvs(*steps: IpvsStep, mend: IpvsStep) -> Callable[[World], contextlib.AbstractContextManager[None]]:
    @contextlib.contextmanager
    def way(world: World) -> Iterator[None]:
        with netns.inside(world.node.netns), contextlib.closing(Ipvs()) as kernel:
            assert kernel.apply(steps) == []
            yield
            assert kernel.apply([mend]) == []

    return way


@contextlib.contextmanager
def node_holds_vip(world: World) -> Iterator[None]:
    """The proxy gives a VIP up as soon as another link has it, and takes it again afterwards."""
    world.run("ip", "address", "add", f"{WEB}/32", "dev", "eth0")
    eventually(lambda: WEB not in world.run("ip", "address", "show", "dev", "kube-ipvs0"))
    yield
    world.run("ip", "address", "del", f"{WEB}/32", "dev", "eth0")
    eventually(lambda: WEB in world.run("ip", "address", "show", "dev", "kube-ipvs0"))


@contextlib.contextmanager
def name_server_silent(world: World) -> Iterator[None]:
    world.names.is_silent = True
    yield
    world.names.is_silent = False


@contextlib.contextmanager
def name_server_outdated(world: World) -> Iterator[None]:
    world.names.aliases[EXTERNAL] = "old.example.com"
    yield
    world.names.aliases[EXTERNAL] = DECLARED


@contextlib.contextmanager
def conntrack_nearly_full(world: World) -> Iterator[None]:
    was = CONNTRACK.read_text()
    assert probe(world.node.netns, WEB, 80).outcome == "answered"
    count = int(netns.get_sysctl(world.node.netns, "net/netfilter/nf_conntrack_count"))
    CONNTRACK.write_text(str(count + count // 8 + 1))
    yield
    CONNTRACK.write_text(was)


@contextlib.contextmanager
def another_scheduler(world: World) -> Iterator[None]:
    with configured(world, scheduler="nonsense"):
        yield


@contextlib.contextmanager
def api_server_away(world: World) -> Iterator[None]:
    with configured(world, manifests=None, master="http://127.0.0.1:1"):
        yield


@contextlib.contextmanager
def configured(world: World, **changes: object) -> Iterator[None]:
    was = world.config
    world.config = dataclasses.replace(was, **changes)
    yield
    world.config = was


@contextlib.contextmanager
def kube_proxy_running(world: World) -> Iterator[None]:
    with netns.inside(world.node.netns):
        process = subprocess.Popen(["kube-proxy", "600"], executable=shutil.which("sleep"))
    yield
    process.kill()
    process.wait()


@contextlib.contextmanager
def proxy_gone(world: World) -> Iterator[None]:
    world.proxy.kill()
    yield


def eventually(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.1)


HOOK = "type filter hook {} priority 0; policy {};"
FORWARD_DROPS = f"table inet firewall {{ chain f {{ {HOOK.format('forward', 'drop')} ct state new accept; }}; }}"
INPUT_DROPS = f"table inet firewall {{ chain i {{ {HOOK.format('input', 'accept')} tcp dport 80 drop; }}; }}"
MARK_DROPS = (
    f"table inet other {{ chain f {{ {HOOK.format('forward', 'accept')} meta mark & 0x4000 == 0x4000 drop; }}; }}"
)
HOST_PORT = (
    "table ip hostport { chain p { type nat hook prerouting priority -100;"
    f" fib daddr type local tcp dport {NODE_PORT} dnat to 10.244.1.10:9; }}; }}"
)
MASKING = (
    "table ip cni { chain p { type nat hook postrouting priority 100; ip saddr 10.244.0.0/16 masquerade; }; }"
)
MASQUERADED = f"masquerade4 {{ {WEB} . tcp . 80 : goto masquerade_unless_local_pod }}"
KUBE_PROXY_TABLE = "table ip kube-proxy { chain services { }; }"
POD = Destination(parse_ip("10.244.1.10"), 8080)
HAIRPIN = "ip link set p12 type bridge_slave hairpin"
FOREIGN, VIP = "ip address {} 10.96.99.99/32 dev kube-ipvs0", f"ip address {{}} {WEB}/32 dev kube-ipvs0"

WAYS = {
    "vs-conntrack-off": (sysctl("net/ipv4/vs/conntrack", 0), "sysctls", "net.ipv4.vs.conntrack is 0"),
    "forwarding-off": (sysctl("net/ipv4/ip_forward", 0), "sysctls", "net.ipv4.ip_forward is 0"),
    "bridge-unfiltered": (sysctl("net/bridge/bridge-nf-call-iptables", 0), "bridge", "of the same node"),
    "hairpin-off": (commands(f"{HAIRPIN} off", f"{HAIRPIN} on"), "hairpin", "hairpin mode off"),
    "forward-policy-drop": (table(FORWARD_DROPS), "other rules", "policy of inet firewall f drops replies"),
    "input-drop": (table(INPUT_DROPS), "other rules", "inet firewall i drops connections to"),
    "mark-collision": (table(MARK_DROPS), "packet mark", "uses bit 0x4000"),
    "host-port": (table(HOST_PORT), "hostPort", "ip hostport p takes connections to the NodePort"),
    "pod-masquerade": (table(MASKING), "masquerade", "ip cni p masquerades"),
    "ruleset-flushed": (ruleset_flushed, "ruleset", "is missing"),
    "chain-flushed": (chain_flushed, "ruleset", "not as we loaded it"),
    "foreign-vip": (commands(FOREIGN.format("add"), FOREIGN.format("del")), "kube-ipvs0", "10.96.99.99"),
    "vip-lost": (commands(VIP.format("del"), VIP.format("add")), "drift", f"VIP {WEB} is missing"),
    "vip-on-other-link": (node_holds_vip, "VIPs", f"{WEB} of Service default/web is an address of eth0"),
    "server-lost": (
        ipvs(
            IpvsStep(Verb.DEL_DEST, WEB_KEY, None, (POD,)),
            mend=IpvsStep(Verb.NEW_DEST, WEB_KEY, None, (POD,), 1),
        ),
        "drift", f"lacks {POD}",
    ),
    "scheduler-changed": (
        ipvs(
            IpvsStep(Verb.SET_SERVICE, WEB_KEY, Server("wlc", 0, 0)),
            mend=IpvsStep(Verb.SET_SERVICE, WEB_KEY, Server("rr", 0, 0)),
        ),
        "drift", "not Server(scheduler='rr'",
    ),
    "kube-proxy-writes": (table(KUBE_PROXY_TABLE), "other proxies", "a kube-proxy is at work"),
    "kube-proxy-runs": (kube_proxy_running, "other proxies", "kube-proxy runs on this node"),
    "dns-silent": (name_server_silent, "DNS", "does not resolve through kube-system/kube-dns"),
    "dns-outdated": (name_server_outdated, "DNS", f"declares {DECLARED}"),
    "conntrack-full": (conntrack_nearly_full, "pressure", "conntrack"),
    "element-lost": (
        commands(*(f"nft {verb} element inet ipvsproxy {MASQUERADED}" for verb in ("delete", "add"))),
        "drift",
        f"masquerade4 {{ {WEB} . tcp . 80 }} is missing",
    ),
    "no-such-scheduler": (another_scheduler, "scheduler", "no scheduler nonsense"),
    "api-server-away": (api_server_away, "objects", "Connection refused"),
}  # fmt: skip


def told(findings: list[Finding]) -> list[str]:
    return [f"{f.verdict} {f.check}: {f.summary} {f.evidence}" for f in findings if f.verdict is not Verdict.OK]


def test_a_healthy_node_is_found_healthy(world: World) -> None:
    for _ in range(2):
        assert probe(world.lab.client.netns, world.node.ipv4, NODE_PORT).outcome == "answered"
    assert told(world.findings()) == []


@pytest.mark.parametrize("name", WAYS)
def test_the_cause_comes_first(world: World, name: str) -> None:
    way, check, words = WAYS[name]
    with way(world):
        findings = world.findings()
    first = findings[0]
    assert first.check == check, told(findings)
    assert words in " ".join((first.summary, *first.evidence)), told(findings)
    assert first.verdict in (Verdict.PROBLEM, Verdict.WARNING)
    assert first.next


@pytest.mark.needs("tool:iptables-legacy")
def test_legacy_iptables_that_drop(world: World) -> None:
    if world.lab.run(world.node, ["sh", "-c", "iptables-legacy -S >/dev/null 2>&1 || echo no"]):
        pytest.skip("this kernel has no legacy iptables; unit/kernel/test_legacy.py reads its blobs")
    with commands("iptables-legacy -P FORWARD DROP", "iptables-legacy -P FORWARD ACCEPT")(world):
        first = world.findings()[0]
    assert "policy of iptables-legacy filter FORWARD drops replies" in first.summary
    assert "iptables-legacy -I FORWARD" in first.next


def walk(world: World, key: str, netns_name: str = "") -> list[Finding]:
    with netns.inside(world.node.netns):
        seen = survey(world.config, "cluster.local")
        facts = survey_service(key, seen, "cluster.local", netns_name)
    assert facts is not None
    return diagnose_service(facts, diagnose(seen.facts))


def test_one_service_through_its_steps(world: World) -> None:
    world.names.addresses["web.default.svc.cluster.local"] = WEB
    findings = walk(world, "default/web", world.lab.host("p12").netns)
    assert told(findings) == []
    evidence = [line for finding in findings for line in finding.evidence]
    asked = [line for line in evidence if line.startswith(f"{WEB}:80/TCP from")]
    assert len(asked) == 2, evidence
    assert all("answered" in line for line in asked)
    assert any("10.244.2.10:8080" in line and "answered" in line for line in evidence)
    assert walk(world, "default/nothing")[0].summary == "there is no Service default/nothing"
    assert told(walk(world, "default/else")) == []


def test_counters_of_services_and_endpoints(world: World) -> None:
    """Of three Services the two with traffic are shown, as soon as the pause between two looks is over."""
    assert probe(world.lab.client.netns, world.node.ipv4, NODE_PORT).outcome == "answered"
    world.findings()  # asks the name server

    def shown() -> dict[str, float]:
        with netns.inside(world.node.netns):
            text = read_metrics(world.config)
        lines = (line.rpartition(" ") for line in (text or "").splitlines() if "kubernetes_io" not in line)
        return {name: float(value) for name, _, value in lines if name.startswith("ipvsproxy_")}

    whole = f'service="web",frontend="{world.node.ipv4}:{NODE_PORT}/TCP"'
    labels = f'{{frontend="{world.node.ipv4}:{NODE_PORT}/TCP",namespace="default",service="web"}}'
    name = f"ipvsproxy_service_connections_total{labels}"
    eventually(lambda: shown().get(name, 0) >= 1)
    found = shown()
    parts = [value for key, value in found.items() if key.startswith("ipvsproxy_endpoint_connections_total")
             and f"{NODE_PORT}/TCP" in key]  # fmt: skip
    assert len(parts) == 3
    assert sum(parts) == found[name], whole
    told = " ".join(found)
    assert 'service="kube-dns"' in told
    assert 'service="kubernetes"' not in told


def test_an_endpoint_that_does_not_listen_is_the_cause(world: World) -> None:
    world.lab.responder.clear()
    first = walk(world, "default/web")[0]
    assert "the endpoint 10.244." in first.summary
    for name in ("p11", "p12", "p21"):
        world.lab.responder.listen(world.lab.host(name), 8080)


def test_nothing_is_left_of_all_that_and_a_proxy_that_ends_is_missed(world: World) -> None:
    assert told(world.findings()) == []
    with proxy_gone(world):
        assert "no proxy answers" in world.findings()[0].summary
