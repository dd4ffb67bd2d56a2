"""A cluster's names, addresses and folders: one owner for each, pure.

Everything of a cluster is in one network namespace of this machine and in one folder below .cache/cluster, so
several run side by side and each ends without a trace. Addresses repeat: no namespace sees another.
"""

from __future__ import annotations

import os
import pathlib
import re
from dataclasses import dataclass

REPO = pathlib.Path(__file__).resolve().parents[2]
CLUSTERS = REPO / ".cache/cluster"
HERE = "tests/cluster"

API_IP = "172.31.0.1"
API_URL = f"https://{API_IP}:6443"
BRIDGE_CIDRS = (f"{API_IP}/24", "fd00:172:31::1/64")
OUTSIDE_IP = "198.51.100.9"
"""Of a client that is neither node nor pod: the source of what this machine sends to load balancers."""
POD_CIDRS = ("10.244.0.0/16", "fd00:10:244::/48")
SERVICE_CIDRS = ("10.96.0.0/16", "fd00:10:96::/112")
KUBERNETES_IP = "10.96.0.1"
DNS_IP = "10.96.0.10"
DNS_PORT = 5353
BALANCER_CIDR = "172.31.100.0/24"
AGENT_PORT = 2222
MOST_NODES = 9
FLANNEL = "flannel"
"""The program of a plugin that the distribution does not have; it is looked for in KUBE."""
PLUGINS = ("bridge", "ptp", "firewall", FLANNEL)
"""How pods are connected (node_files.py)."""
_NAME = re.compile(r"[a-z][a-z0-9-]{0,20}")


@dataclass(frozen=True, slots=True)
class ClusterNode:
    """One node; numbers start with 1."""

    number: int

    @property
    def name(self) -> str:
        return f"node{self.number}"

    @property
    def ips(self) -> tuple[str, str]:
        return f"172.31.0.1{self.number}", f"fd00:172:31::1{self.number}"

    @property
    def pod_cidrs(self) -> tuple[str, str]:
        return f"10.244.{self.number}.0/24", f"fd00:10:244:{self.number}::/64"

    @property
    def tap(self) -> str:
        return f"tap{self.number}"

    @property
    def zone(self) -> str:
        """Three zones, in turn."""
        return f"zone-{'abc'[(self.number - 1) % 3]}"


@dataclass(frozen=True, slots=True)
class Cluster:
    """A cluster by its name, its number of nodes, and the network plugins there."""

    name: str = "lab"
    size: int = 2
    plugins: str = PLUGINS[0]

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            message = f"NAME must be a short word of small letters, digits and hyphens: {self.name!r}"
            raise ValueError(message)
        if not 1 <= self.size <= MOST_NODES:
            message = f"NODES must be a number from 1 to {MOST_NODES}: {self.size}"
            raise ValueError(message)
        if self.plugins not in PLUGINS:
            message = f"PLUGINS must be one of {', '.join(PLUGINS)}: {self.plugins!r}"
            raise ValueError(message)

    @property
    def namespace(self) -> str:
        return f"ipvsproxy-{self.name}"

    @property
    def folder(self) -> pathlib.Path:
        return CLUSTERS / self.name

    @property
    def images(self) -> pathlib.Path:
        return CLUSTERS / "images"

    @property
    def pki(self) -> pathlib.Path:
        return self.folder / "pki"

    @property
    def admin(self) -> pathlib.Path:
        """The kubeconfig of the administrator."""
        return self.pki / "admin.conf"

    @property
    def nodes(self) -> tuple[ClusterNode, ...]:
        return tuple(ClusterNode(number) for number in range(1, self.size + 1))

    def node(self, name: str) -> ClusterNode:
        """The node of that name or number; ValueError names those that there are."""
        for node in self.nodes:
            if name in (node.name, str(node.number)):
                return node
        message = f"no node {name!r}: {', '.join(node.name for node in self.nodes)}"
        raise ValueError(message)

    def node_folder(self, node: ClusterNode) -> pathlib.Path:
        """Shared with the node, under the same path."""
        return self.folder / node.name

    def log(self, program: str) -> pathlib.Path:
        return self.folder / "logs" / f"{program}.log"

    def inside(self, *argv: object) -> list[str]:
        """The words that run a command in the cluster's network namespace."""
        return ["ip", "netns", "exec", self.namespace, *map(str, argv)]


def processors() -> list[int]:
    """Those that this process may use."""
    return sorted(os.sched_getaffinity(0))
