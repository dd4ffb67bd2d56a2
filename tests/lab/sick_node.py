"""A node that is well, and many ways to make it ill; each is a context manager that takes itself back.

The proxy of the node verifies so rarely that what is broken stays broken.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import platform
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from unittest import mock

from ipvsproxy.base.address import parse_ip
from ipvsproxy.commands.survey import survey
from ipvsproxy.config import Config, DataPath
from ipvsproxy.diagnosis.finding import Finding
from ipvsproxy.diagnosis.node import diagnose
from ipvsproxy.kernel.ipvs import Ipvs
from ipvsproxy.kernel.read import survey as kernel_survey
from ipvsproxy.plan.diff import IpvsStep, Verb
from ipvsproxy.plan.state import Destination, FrontendKey, ServerAttributes
from tests.lab import netns
from tests.lab.lab import CLUSTER_CIDRS, DEFAULT_PROXY_ARGS, Lab, LabNode
from tests.lab.manifests import ManifestFolder, endpoint, endpoint_slice, port, service
from tests.lab.name_server import NameServer
from tests.lab.probe import probe
from tests.lab.proxy import LabProxy
from tests.lab.waiting import eventually

TCP, NODE_PORT = 6, 31001
WEB, DNS, API = "10.96.3.1", "10.96.0.10", "10.96.0.1"
KUBERNETES, EXTERNAL = "kubernetes.default.svc.cluster.local", "else.default.svc.cluster.local"
DECLARED = "elsewhere.example.com"
WEB_KEY = FrontendKey(parse_ip(WEB), TCP, 80)
CONNTRACK = pathlib.Path("/proc/sys/net/netfilter/nf_conntrack_max")
UNPACKED = pathlib.Path(__file__).parents[2] / ".cache/kernel/lib/modules"
PODS = ("p11", "p12", "p21")


@dataclasses.dataclass
class DiagnosedNode:
    """A healthy node, its proxy, the name server of its cluster, and how doctor is called."""

    lab: Lab
    node: LabNode
    proxy: LabProxy
    names: NameServer
    config: Config
    folder: ManifestFolder

    def findings(self) -> list[Finding]:
        with netns.inside(self.node.netns):
            return diagnose(survey(self.config, "cluster.local").facts)

    def run(self, *words: str, stdin: str = "") -> str:
        return self.lab.run(self.node, words, stdin)


@contextlib.contextmanager
def healthy_node(lab: Lab, folder: ManifestFolder, data_path: str = "ipvs") -> Iterator[DiagnosedNode]:
    node = lab.nodes[0]
    describe(lab, folder)
    serve_pods(lab)
    names = NameServer({KUBERNETES: API}, {EXTERNAL: DECLARED})
    flags = ["--ipvs-sync-period=1h", "--service-metrics=2", f"--data-path={data_path}"]
    proxy = lab.proxy(node, folder.path, [*DEFAULT_PROXY_ARGS, *flags])
    config = Config(
        "node1", manifests=folder.path, cluster_cidrs=tuple(CLUSTER_CIDRS.split(",")), sync_period=3600.0,
        data_path=DataPath(data_path),
    )  # fmt: skip
    with names.serving(lab.host("p12")):
        yield DiagnosedNode(lab, node, proxy, names, config, folder)
    lab.take_back()


def serve_pods(lab: Lab) -> None:
    for name in PODS:
        lab.responder.listen(lab.host(name), 8080)


def describe(lab: Lab, folder: ManifestFolder) -> None:
    web, dns = [port(80, 8080, node_port=NODE_PORT)], [port(53, 53, "UDP", "dns")]
    pods = [endpoint(lab, lab.host(name)) for name in PODS]
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


def sysctl(name: str, value: int) -> Callable[[DiagnosedNode], contextlib.AbstractContextManager[None]]:
    @contextlib.contextmanager
    def way(diagnosed: DiagnosedNode) -> Iterator[None]:
        was = netns.get_sysctl(diagnosed.node.netns, name)
        netns.set_sysctls(diagnosed.node.netns, {name: value})
        yield
        netns.set_sysctls(diagnosed.node.netns, {name: was})

    return way


def table(text: str) -> Callable[[DiagnosedNode], contextlib.AbstractContextManager[None]]:
    """A table of another program."""

    @contextlib.contextmanager
    def way(diagnosed: DiagnosedNode) -> Iterator[None]:
        name = text.partition("{")[0]
        diagnosed.run("nft", "-f", "-", stdin=text)
        try:
            yield
        finally:
            diagnosed.run("nft", f"delete {name}")

    return way


def commands(breaking: str, repairing: str) -> Callable[[DiagnosedNode], contextlib.AbstractContextManager[None]]:
    @contextlib.contextmanager
    def way(diagnosed: DiagnosedNode) -> Iterator[None]:
        diagnosed.run(*breaking.split())
        try:
            yield
        finally:
            diagnosed.run(*repairing.split())

    return way


def unrepaired(
    way: Callable[[DiagnosedNode], contextlib.AbstractContextManager[None]],
) -> Callable[[DiagnosedNode], contextlib.AbstractContextManager[None]]:
    """What a proxy repairs at once, or at its next glance, while it is stopped and not asked for its health."""

    @contextlib.contextmanager
    def stopped(diagnosed: DiagnosedNode) -> Iterator[None]:
        os.kill(diagnosed.proxy.pid, signal.SIGSTOP)
        try:
            with configured(diagnosed, healthz_bind_address=None, metrics_bind_address=None), way(diagnosed):
                yield
        finally:
            os.kill(diagnosed.proxy.pid, signal.SIGCONT)

    return stopped


@contextlib.contextmanager
def ruleset_flushed(diagnosed: DiagnosedNode) -> Iterator[None]:
    saved = diagnosed.run("nft", "list", "table", "inet", "ipvsproxy")
    diagnosed.run("nft", "delete", "table", "inet", "ipvsproxy")
    yield
    diagnosed.run("nft", "-f", "-", stdin=saved)


def tampered(*words: str) -> Callable[[DiagnosedNode], contextlib.AbstractContextManager[None]]:
    """A command of nft about our table, which is loaded as it was afterwards."""

    @contextlib.contextmanager
    def way(diagnosed: DiagnosedNode) -> Iterator[None]:
        saved = diagnosed.run("nft", "list", "table", "inet", "ipvsproxy")
        diagnosed.run("nft", *words)
        try:
            yield
        finally:
            diagnosed.run("nft", "-f", "-", stdin=f"delete table inet ipvsproxy\n{saved}")

    return way


@contextlib.contextmanager
def chain_flushed(diagnosed: DiagnosedNode) -> Iterator[None]:
    saved = diagnosed.run("nft", "list", "chain", "inet", "ipvsproxy", "postrouting")
    diagnosed.run("nft", "flush", "chain", "inet", "ipvsproxy", "postrouting")
    yield
    diagnosed.run("nft", "-f", "-", stdin=saved)


def ipvs(*steps: IpvsStep, repair: IpvsStep) -> Callable[[DiagnosedNode], contextlib.AbstractContextManager[None]]:
    @contextlib.contextmanager
    def way(diagnosed: DiagnosedNode) -> Iterator[None]:
        with netns.inside(diagnosed.node.netns), contextlib.closing(Ipvs()) as kernel:
            assert kernel.apply(steps) == []
            yield
            assert kernel.apply([repair]) == []

    return way


@contextlib.contextmanager
def node_holds_vip(diagnosed: DiagnosedNode) -> Iterator[None]:
    """The proxy gives a VIP up as soon as another link has it, and takes it again afterwards."""
    diagnosed.run("ip", "address", "add", f"{WEB}/32", "dev", "eth0")
    eventually(lambda: WEB not in diagnosed.run("ip", "address", "show", "dev", "kube-ipvs0"))
    yield
    diagnosed.run("ip", "address", "del", f"{WEB}/32", "dev", "eth0")
    eventually(lambda: WEB in diagnosed.run("ip", "address", "show", "dev", "kube-ipvs0"))


@contextlib.contextmanager
def name_server_silent(diagnosed: DiagnosedNode) -> Iterator[None]:
    diagnosed.names.is_silent = True
    yield
    diagnosed.names.is_silent = False


@contextlib.contextmanager
def name_server_outdated(diagnosed: DiagnosedNode) -> Iterator[None]:
    diagnosed.names.aliases[EXTERNAL] = "old.example.com"
    yield
    diagnosed.names.aliases[EXTERNAL] = DECLARED


@contextlib.contextmanager
def conntrack_nearly_full(diagnosed: DiagnosedNode) -> Iterator[None]:
    was = CONNTRACK.read_text()
    assert probe(diagnosed.node.netns, WEB, 80).outcome == "answered"
    count = int(netns.get_sysctl(diagnosed.node.netns, "net/netfilter/nf_conntrack_count"))
    CONNTRACK.write_text(str(count + count // 8 + 1))
    yield
    CONNTRACK.write_text(was)


def modules_are_known() -> bool:
    return any((folder / platform.release()).is_dir() for folder in (kernel_survey.MODULES, UNPACKED))


@contextlib.contextmanager
def another_scheduler(diagnosed: DiagnosedNode) -> Iterator[None]:
    """In a micro-VM the folder of modules is hidden; the kernel's own one is where it was unpacked."""
    usual = kernel_survey.MODULES
    folder = usual if os.access(usual / platform.release() / "modules.dep", os.R_OK) else UNPACKED
    with configured(diagnosed, scheduler="nonsense"), mock.patch.object(kernel_survey, "MODULES", folder):
        yield


@contextlib.contextmanager
def api_server_away(diagnosed: DiagnosedNode) -> Iterator[None]:
    with configured(diagnosed, manifests=None, master="http://127.0.0.1:1"):
        yield


@contextlib.contextmanager
def configured(diagnosed: DiagnosedNode, **changes: object) -> Iterator[None]:
    was = diagnosed.config
    diagnosed.config = dataclasses.replace(was, **changes)
    yield
    diagnosed.config = was


@contextlib.contextmanager
def kube_proxy_running(diagnosed: DiagnosedNode) -> Iterator[None]:
    with netns.inside(diagnosed.node.netns):
        process = subprocess.Popen(["kube-proxy", "600"], executable=shutil.which("sleep"))
    yield
    process.kill()
    process.wait()


@contextlib.contextmanager
def proxy_gone(diagnosed: DiagnosedNode) -> Iterator[None]:
    diagnosed.proxy.kill()
    yield


HOOK = "type filter hook {} priority 0; policy {};"
FORWARD_DROPS = f"table inet firewall {{ chain f {{ {HOOK.format('forward', 'drop')} ct state new accept; }}; }}"
INPUT_DROPS = f"table inet firewall {{ chain i {{ {HOOK.format('input', 'accept')} tcp dport 80 drop; }}; }}"
RAW_DROPS = "table inet firewall { chain r { type filter hook prerouting priority raw; tcp dport 80 drop; }; }"
UNTRACKING = "table inet firewall { chain u { type filter hook prerouting priority raw; tcp dport 80 notrack; }; }"
LAST_DROPS = (
    f"table inet firewall {{ chain l {{ {HOOK.format('postrouting', 'accept')} tcp dport 8080 drop; }}; }}"
)
SET_DROPS = (
    "table inet firewall { set ports { type inet_service; flags interval; elements = { 80, 31000-31999 }; };"
    f" chain s {{ {HOOK.format('input', 'accept')} tcp dport @ports drop; }}; }}"
)
MAP_DROPS = (
    f"table inet firewall {{ chain m {{ {HOOK.format('input', 'accept')} tcp dport vmap {{ 80 : drop }}; }}; }}"
)
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
MASQUERADING = "inet ipvsproxy masquerade_always"
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
    "raw-drop": (table(RAW_DROPS), "other rules", "inet firewall r drops connections to"),
    "set-drop": (table(SET_DROPS), "other rules", "inet firewall s drops connections to"),
    "map-drop": (table(MAP_DROPS), "other rules", "inet firewall m drops connections to"),
    "untracked": (table(UNTRACKING), "other rules", "inet firewall u hides connections to"),
    "postrouting-drop": (table(LAST_DROPS), "other rules", "inet firewall l drops what"),
    "mark-collision": (table(MARK_DROPS), "packet mark", "uses bit 0x4000"),
    "host-port": (table(HOST_PORT), "hostPort", "ip hostport p takes connections to the NodePort"),
    "pod-masquerade": (table(MASKING), "masquerade", "ip cni p masquerades"),
    "ruleset-flushed": (unrepaired(ruleset_flushed), "ruleset", "is missing"),
    "table-dormant": (unrepaired(tampered("add table inet ipvsproxy { flags dormant; }")), "ruleset", "dormant"),
    "policy-changed": (
        unrepaired(tampered(f"add chain inet ipvsproxy forward {{ {HOOK.format('forward', 'drop')} }}")),
        "ruleset", "policy is drop",
    ),
    "rule-replaced": (
        unrepaired(tampered(f"flush chain {MASQUERADING}; add rule {MASQUERADING} accept")),
        "ruleset", "rule 1 ends with accept, not masquerade",
    ),
    "chain-flushed": (unrepaired(chain_flushed), "ruleset", "not as we loaded it"),
    "foreign-vip": (unrepaired(commands(FOREIGN.format("add"), FOREIGN.format("del"))), "kube-ipvs0", "10.96.99.99"),  # noqa: E501
    "vip-lost": (unrepaired(commands(VIP.format("del"), VIP.format("add"))), "drift", f"VIP {WEB} is missing"),
    "vip-on-other-link": (node_holds_vip, "VIPs", f"{WEB} of Service default/web is an address of eth0"),
    "server-lost": (
        unrepaired(ipvs(
            IpvsStep(Verb.DEL_DEST, WEB_KEY, None, (POD,)),
            repair=IpvsStep(Verb.NEW_DEST, WEB_KEY, None, (POD,)),
        )),
        "drift", f"endpoint {POD} of {WEB}:80/TCP is missing",
    ),
    "scheduler-changed": (
        unrepaired(ipvs(
            IpvsStep(Verb.SET_SERVICE, WEB_KEY, ServerAttributes("wlc", 0, 0)),
            repair=IpvsStep(Verb.SET_SERVICE, WEB_KEY, ServerAttributes("rr", 0, 0)),
        )),
        "drift", "is wlc, not rr",
    ),
    "kube-proxy-writes": (table(KUBE_PROXY_TABLE), "other proxies", "a kube-proxy is at work"),
    "kube-proxy-runs": (kube_proxy_running, "other proxies", "kube-proxy runs on this node"),
    "dns-silent": (name_server_silent, "DNS", "does not resolve through kube-system/kube-dns"),
    "dns-outdated": (name_server_outdated, "DNS", f"declares {DECLARED}"),
    "conntrack-full": (conntrack_nearly_full, "pressure", "conntrack"),
    "element-lost": (
        unrepaired(commands(*(f"nft {verb} element inet ipvsproxy {MASQUERADED}" for verb in ("delete", "add")))),
        "drift",
        f"masquerade4 {{ {WEB} . tcp . 80 }} is missing",
    ),
    "no-such-scheduler": (another_scheduler, "scheduler", "no scheduler nonsense"),
    "api-server-away": (api_server_away, "objects", "Connection refused"),
}  # fmt: skip
