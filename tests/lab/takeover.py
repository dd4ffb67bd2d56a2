"""A node that a kube-proxy has served, with things of others on it: who asks there, and what is left."""

from __future__ import annotations

import contextlib
import re
import sys
import threading
from collections.abc import Iterator

from ipvsproxy.base.names import REPLIES_COMMENT
from ipvsproxy.plan.leftovers import is_leftover
from tests.lab.kube_proxy_state import FOREIGN_SET, Served, leave_foreign
from tests.lab.lab import DEFAULT_PROXY_ARGS, Lab, LabNode
from tests.lab.manifests import ManifestFolder, endpoint, endpoint_slice, port, service
from tests.lab.probe import ProbeQuestion, Result, probe, probe_many
from tests.lab.waiting import eventually

NODE_PORT = 31001
EXCLUDED = "10.98.0.0/16"
ARGUMENTS = [*DEFAULT_PROXY_ARGS, "--ipvs-sync-period=1s", f"--ipvs-exclude-cidrs={EXCLUDED}"]
CLEANUP = [sys.executable, "-m", "ipvsproxy", "cleanup", f"--ipvs-exclude-cidrs={EXCLUDED}"]


def serve(lab: Lab, manifests: ManifestFolder) -> tuple[Served, ...]:
    """Serve one Service of two endpoints to both families, in manifests and by its pods."""
    node, pods, ports = lab.nodes[0], (lab.host("p11"), lab.host("p21")), [port(80, 8080, node_port=NODE_PORT)]
    made = tuple(
        Served(family, f"{net}{cluster}1", f"{out}7", NODE_PORT, (node.address(family), own), pods, cidr)
        for family, net, cluster, out, own, cidr in (
            (4, "10.96.", "1.", "203.0.113.", "10.244.1.1", "10.244.0.0/16"),
            (6, "fd00:10:96::", "1:", "2001:db8:113::", "fd00:10:244:1::1", "fd00:10:244::/48"),
        )
    )
    slices = [
        endpoint_slice("web", ports, [endpoint(lab, pod, family=one.family) for pod in pods], family=one.family)
        for one in made
    ]
    balancers = [one.balancer for one in made]
    ips = [one.cluster_ip for one in made]
    manifests.write("web", service("web", ports, ips, type_="LoadBalancer", ingress=balancers), *slices)
    manifests.write_nodes(lab)
    for pod in pods:
        lab.responder.listen(pod, 8080)
    return made


@contextlib.contextmanager
def others_node(lab: Lab) -> Iterator[LabNode]:
    """Yield a node with what belongs to others, empty again afterwards."""
    node = lab.nodes[0]
    leave_foreign(lab, node)
    lab.run(node, ["ipvsadm", "-A", "-t", "10.98.0.1:80", "-s", "wlc"])
    try:
        yield node
    finally:
        _emptied(lab, node)


def _emptied(lab: Lab, node: LabNode) -> None:
    for proxy in lab.proxies:
        proxy.kill()
    lab.clean_nodes()
    # Rules let go of their sets a moment after they are gone.
    eventually(lambda: not lab.run(node, ["sh", "-c", "ipset destroy; ipset list -n"], check=False))


def questions(lab: Lab, node: LabNode, served: tuple[Served, ...]) -> list[ProbeQuestion]:
    """Every way in for outside clients and local pods, and the ClusterIP for the node itself."""
    asked = []
    for one in served:
        own, *_ = one.node_addresses
        ways = [(one.cluster_ip, 80), (one.balancer, 80), (own, one.node_port)]
        asked += [ProbeQuestion(host.netns, *way) for host in (lab.client, lab.host("p12")) for way in ways]
        asked.append(ProbeQuestion(node.netns, one.cluster_ip, 80))
    return asked


def ask(asked: list[ProbeQuestion]) -> list[str]:
    """Return what became of the questions, each asked several times: `answered`, or who was let down."""
    return sorted({_outcome(q, r) for q, r in zip(asked * 4, probe_many(asked * 4), strict=True)})


def _outcome(question: ProbeQuestion, result: Result) -> str:
    return result.outcome if result.outcome == "answered" else f"{question} {result.outcome}"


@contextlib.contextmanager
def asking(question: ProbeQuestion) -> Iterator[list[Result]]:
    """Open new connections all the time, one after the other; yields what becomes of them."""
    results: list[Result] = []
    over = threading.Event()

    def work() -> None:
        while not over.is_set():
            results.append(probe(question.netns, question.address, question.port))

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield results
    finally:
        over.set()
        thread.join()


def rules(lab: Lab, node: LabNode) -> list[str]:
    """Everything that iptables shows, without counters and without our own rule."""
    lines = [line for tool in ("iptables", "ip6tables") for line in _saved(lab, node, tool)]
    return [line for line in lines if REPLIES_COMMENT not in line and not line.startswith("#")]


def _saved(lab: Lab, node: LabNode, tool: str) -> list[str]:
    text = lab.run(node, [f"{tool}-save"])
    ours = [line for line in text.splitlines() if "-A FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT" not in line]
    return [re.sub(r" \[\d+:\d+\]$", "", line) for line in ours]


def leftovers(lab: Lab, node: LabNode) -> set[str]:
    chains = {word for line in rules(lab, node) for word in re.split(r"[\s:]", line) if is_leftover(word)}
    tables = {line for line in lab.run(node, ["nft", "list", "tables"]).splitlines() if "kube-proxy" in line}
    return chains | tables | set(lab.run(node, ["ipset", "list", "-n"]).split()) - {FOREIGN_SET}


def listings(lab: Lab, node: LabNode) -> dict[str, list[str]]:
    """Everything of a node that an operator can list; chains of iptables with their rules, ours included."""
    commands = {
        "links": "ip -o link", "addresses": "ip -o address", "routes": "ip route show table all",
        "routes of IPv6": "ip -6 route show table all", "rules": "ip rule", "rules of IPv6": "ip -6 rule",
        "servers": "ipvsadm -Sn", "sets": "ipset list", "tables": "nft list tables",
        "iptables": "iptables-save", "ip6tables": "ip6tables-save",
    }  # fmt: skip
    return {name: _stable(lab.run(node, command.split())) for name, command in commands.items()}


def _stable(text: str) -> list[str]:
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return sorted(re.sub(r"\[\d+:\d+\]| expires \d+sec|qlen \d+", "", line) for line in lines)
