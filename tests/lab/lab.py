"""The lab: an outside client, nodes and their pods as network namespaces on one LAN, dual stack.

    client 192.0.2.100 ── LAN bridge ─┬─ node1 192.0.2.1 ── cni0 ─┬─ p11 10.244.1.10
           2001:db8:2::100            │  2001:db8:2::1            └─ p12 10.244.1.20
                                      └─ node2 192.0.2.2 ── cni0 ─┬─ p21 10.244.2.10
                                                                  └─ p22 10.244.2.20

Pods have fd00:10:244:N::10 and so on too. IPVS, nftables and conntrack are per namespace, so each
node is a node of its own. Building takes one `ip -batch` per namespace: processes are slow under
emulation. Nothing runs in the lab but what a test starts.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Self

from ipvsproxy.base import messages
from tests.lab import netns
from tests.lab.proxy import LabProxy
from tests.lab.responder import Responder
from tests.lab.wipe import wipe_node

CLUSTER_CIDRS = "10.244.0.0/16,fd00:10:244::/48"
DEFAULT_PROXY_ARGS = (f"--cluster-cidr={CLUSTER_CIDRS}",)
_lab_numbers = itertools.count(1)

# Usable IPv6 at once; and no ICMP redirect may move a path that a test has laid through a node.
HOST_SYSCTLS = {
    "net/ipv6/conf/all/accept_dad": 0,
    "net/ipv6/conf/default/accept_dad": 0,
    "net/ipv6/conf/default/dad_transmits": 0,
    "net/ipv6/conf/default/accept_ra": 0,
    "net/ipv6/conf/default/accept_redirects": 0,
    "net/ipv4/conf/all/accept_redirects": 0,
    "net/ipv4/conf/default/accept_redirects": 0,
}
NODE_SYSCTLS = HOST_SYSCTLS | {
    "net/ipv4/ip_forward": 1,
    "net/ipv6/conf/all/forwarding": 1,
    "net/ipv6/conf/default/forwarding": 1,
    "net/ipv4/conf/all/send_redirects": 0,
    "net/ipv4/conf/default/send_redirects": 0,
    # Every refusal must be seen: the kernel sends few of them a second to one client.
    "net/ipv4/icmp_ratelimit": 0,
    "net/ipv6/icmp/ratelimit": 0,
    "net/ipv4/conf/all/rp_filter": 2,
    "net/ipv4/conf/default/rp_filter": 2,
    "net/bridge/bridge-nf-call-iptables": 1,
    "net/bridge/bridge-nf-call-ip6tables": 1,
}
# The LAN stands for a cable: its bridge must neither filter nor speak.
LAN_SYSCTLS = {
    "net/ipv6/conf/default/disable_ipv6": 1,
    "net/bridge/bridge-nf-call-iptables": 0,
    "net/bridge/bridge-nf-call-ip6tables": 0,
}
BRIDGE = "type bridge forward_delay 0 mcast_snooping 0"


@dataclasses.dataclass(frozen=True)
class LabHost:
    """Something with an address in a namespace of its own: the client, a node or a pod."""

    name: str
    netns: str
    ipv4: str
    ipv6: str

    def address(self, family: int) -> str:
        return self.ipv6 if family == 6 else self.ipv4


@dataclasses.dataclass(frozen=True)
class LabNode(LabHost):
    """A node with its pods."""

    number: int
    pods: tuple[LabHost, ...]

    @property
    def pod_cidrs(self) -> tuple[str, str]:
        return f"10.244.{self.number}.0/24", f"fd00:10:244:{self.number}::/64"


class Lab:
    """A context manager: the namespaces exist, and the responder serves, inside its block."""

    def __init__(self, nodes: int = 2, pods: int = 2) -> None:
        self.prefix = f"lab{os.getpid()}x{next(_lab_numbers)}"
        self.client = LabHost("client", f"{self.prefix}-client", "192.0.2.100", "2001:db8:2::100")
        self.nodes = tuple(self._node(number, pods) for number in range(1, nodes + 1))
        self.pods = tuple(pod for node in self.nodes for pod in node.pods)
        self.responder = Responder()
        self.proxies: list[LabProxy] = []
        self._client_routes: set[str] = set()
        self._lan = f"{self.prefix}-lan"

    def _node(self, number: int, pods: int) -> LabNode:
        name = f"node{number}"
        made = tuple(self._pod(number, pod) for pod in range(1, pods + 1))
        address6 = f"2001:db8:2::{number}"
        return LabNode(name, f"{self.prefix}-{name}", f"192.0.2.{number}", address6, number, made)

    def _pod(self, node: int, number: int) -> LabHost:
        name = f"p{node}{number}"
        address6 = f"fd00:10:244:{node}::{number * 10}"
        return LabHost(name, f"{self.prefix}-{name}", f"10.244.{node}.{number * 10}", address6)

    def __enter__(self) -> Self:
        try:
            self._build()
        except BaseException:
            self._remove()
            raise
        self.responder.start()
        return self

    def __exit__(self, *exc: object) -> None:
        for proxy in self.proxies:
            proxy.kill()
        self.responder.stop()
        self._remove()

    def host(self, name: str) -> LabHost:
        """Look up the client, a node or a pod by its short name, like `client`, `node1` or `p12`."""
        return next(host for host in (self.client, *self.nodes, *self.pods) if host.name == name)

    def node(self, name: str) -> LabNode:
        return next(node for node in self.nodes if node.name == name)

    def node_of(self, pod: LabHost) -> LabNode:
        return next(node for node in self.nodes if pod in node.pods)

    # Building. Links first, from outside and straight into their namespaces; then each configures its own.

    def _namespaces(self) -> list[str]:
        return [
            self._lan,
            self.client.netns,
            *(node.netns for node in self.nodes),
            *(pod.netns for pod in self.pods),
        ]

    def _build(self) -> None:
        netns.ip(None, *(f"netns add {name}" for name in self._namespaces()))
        netns.set_sysctls(self._lan, LAN_SYSCTLS)
        for host in (self.client, *self.pods):
            netns.set_sysctls(host.netns, HOST_SYSCTLS)
        for node in self.nodes:
            netns.set_sysctls(node.netns, NODE_SYSCTLS)
        netns.ip(None, *self._links())
        netns.ip(self._lan, *self._lan_batch())
        netns.ip(self.client.netns, *_interface_batch(self.client, self.nodes[0].ipv4, self.nodes[0].ipv6))
        for node in self.nodes:
            netns.ip(node.netns, *self._node_batch(node))
            for pod in node.pods:
                gateways = f"10.244.{node.number}.1", f"fd00:10:244:{node.number}::1"
                netns.ip(pod.netns, *_interface_batch(pod, *gateways))

    def _links(self) -> list[str]:
        on_lan = [
            f"link add {h.name} netns {self._lan} type veth peer eth0 netns {h.netns}" for h in self._lan_hosts()
        ]
        on_cni0 = [
            f"link add {pod.name} netns {node.netns} type veth peer eth0 netns {pod.netns}"
            for node in self.nodes
            for pod in node.pods
        ]
        return on_lan + on_cni0

    def _lan_hosts(self) -> list[LabHost]:
        return [self.client, *self.nodes]

    def _lan_batch(self) -> list[str]:
        ports = [f"link set {host.name} up master lan" for host in self._lan_hosts()]
        return [f"link add lan {BRIDGE}", *ports, "link set lan up"]

    def _node_batch(self, node: LabNode) -> list[str]:
        lines = [f"link add cni0 {BRIDGE}", "link set cni0 up"]
        for pod in node.pods:
            lines += [f"link set {pod.name} up master cni0", f"link set {pod.name} type bridge_slave hairpin on"]
        lines += [f"address add 10.244.{node.number}.1/24 dev cni0"]
        lines += [f"address add fd00:10:244:{node.number}::1/64 dev cni0 nodad"]
        # The rest of the world is behind the client, as it would be behind a router.
        lines += _interface_batch(node, self.client.ipv4, self.client.ipv6)
        for other in self.nodes:
            if other is not node:
                lines += [f"route add {other.pod_cidrs[0]} via {other.ipv4}"]
                lines += [f"route add {other.pod_cidrs[1]} via {other.ipv6}"]
        return lines

    def _remove(self) -> None:
        # Each in a process of its own fate: -force goes on after a namespace that is already gone.
        commands = "".join(f"netns del {name}\n" for name in self._namespaces())
        subprocess.run(
            ["ip", "-force", "-batch", "-"], input=commands, capture_output=True, text=True, check=False
        )

    # What tests do with it.

    def run(self, host: LabHost, argv: Sequence[str], stdin: str = "", *, check: bool = True) -> str:
        """Run a program in the host's namespace and return its output."""
        return netns.run(host.netns, argv, stdin, check=check)

    def route_client_via(self, node: LabNode, prefix: str) -> None:
        """Have the client reach a prefix (a VIP, say) through this node instead of node1."""
        gateway = node.address(6 if ":" in prefix else 4)
        netns.ip(self.client.netns, f"route replace {prefix} via {gateway}")
        self._client_routes.add(prefix)

    def reset_client_routes(self) -> None:
        """Take back every route_client_via."""
        if self._client_routes:
            netns.ip(self.client.netns, *(f"route del {prefix}" for prefix in self._client_routes))
        self._client_routes.clear()

    def clean_nodes(self) -> None:
        """Take away what stopped proxies have left in the nodes, without asking them to do it."""
        for node in self.nodes:
            wipe_node(node.netns)
        self.proxies.clear()

    def take_back(self) -> None:
        """Make the lab as new: no proxy nor what it has left, no listener, no route of the client."""
        for proxy in self.proxies:
            proxy.kill()
        if self.proxies:
            self.clean_nodes()
        self.responder.clear()
        self.reset_client_routes()

    def proxy(
        self,
        node: LabNode,
        manifests: pathlib.Path,
        extra_args: Sequence[str] = DEFAULT_PROXY_ARGS,
        *,
        command: Sequence[str] = (sys.executable, "-m", "ipvsproxy", "run"),
        wait: bool = True,
    ) -> LabProxy:
        """Start an ipvsproxy on the node and wait for its first sync; it is killed with the lab."""
        log = pathlib.Path(tempfile.mkdtemp(prefix=f"{self.prefix}-")) / f"{node.name}.log"
        fixed = [f"--manifests={manifests}", f"--hostname-override={node.name}", "--logging-format=json",
                 "--ipvs-min-sync-period=0s"]  # fmt: skip
        proxy = LabProxy(node.netns, [*command, *fixed, *extra_args], log)
        self.proxies.append(proxy)
        proxy.start()
        if wait:
            proxy.wait_for(messages.SYNCED)
        return proxy


def _interface_batch(host: LabHost, gateway4: str, gateway6: str) -> list[str]:
    up = ["link set lo up", "link set eth0 up"]
    addresses = [f"address add {host.ipv4}/24 dev eth0", f"address add {host.ipv6}/64 dev eth0 nodad"]
    return up + addresses + _default_routes(gateway4, gateway6)


def _default_routes(gateway4: str, gateway6: str) -> list[str]:
    return [f"route replace default via {gateway4}", f"route replace default via {gateway6}"]
