"""What is measured: paths through the node, and kinds of round trips on each of them."""

import dataclasses

KINDS = {"connection": 100, "tcp": 200, "udp": 200}
"""How many round trips of a kind are made. A connection is opened, asked once and closed; others stay open."""
ENDPOINT_PORT = 8080
CLUSTER_IP, CLUSTER_IP6 = "10.96.0.10", "fd00:10:96::10"
PORT, NODE_PORT = 80, 30080
BALANCED, RANGED, LOCAL = "203.0.113.10", "203.0.113.11", "203.0.113.12"
BALANCER_PORT, LOCAL_PORT = 8000, 8001
POD, ENDPOINT, NODE, CLIENT = "p11", "p12", "node1", "client"
"""Hosts of the lab: two pods of one node, the node, and a client outside."""
NO_SERVICE, IPVS = "conntrack", "bare IPVS"
FLOORS = (NO_SERVICE, IPVS)
"""Peers that are floors: what the kernel needs for such a path without any proxy's rules."""
OURS, AUTO = "ipvsproxy", "ipvsproxy auto"
"""Peers that the budget has: ipvsproxy, by IPVS alone and with the short path for whatever may take it."""
TENANTS, OF_TENANT = "ipvsproxy tenants", "ipvsproxy own tenant"
"""The same with tenants: a Service for all, and one of the tenant of the pod that asks."""


@dataclasses.dataclass(frozen=True)
class LabPath:
    """From a host of the lab to an address; an address that names a host is that host's own."""

    name: str
    source: str
    address: str
    port: int
    floor: str
    family: int = 4
    grown: bool = False
    kinds: tuple[str, ...] = ("connection", "tcp")

    def target(self, lab):
        hosts = {host.name: host for host in (*lab.pods, *lab.nodes)}
        return hosts[self.address].address(self.family) if self.address in hosts else self.address


ALL_KINDS = tuple(KINDS)
PATHS = (
    LabPath("pod to pod", POD, ENDPOINT, ENDPOINT_PORT, NO_SERVICE, kinds=ALL_KINDS),
    LabPath("client to pod", CLIENT, ENDPOINT, ENDPOINT_PORT, NO_SERVICE),
    LabPath("pod to ClusterIP", POD, CLUSTER_IP, PORT, IPVS, kinds=ALL_KINDS),
    LabPath("node to ClusterIP", NODE, CLUSTER_IP, PORT, IPVS, kinds=ALL_KINDS),
    LabPath("client to NodePort", CLIENT, NODE, NODE_PORT, IPVS, kinds=ALL_KINDS),
    LabPath("client to load balancer", CLIENT, BALANCED, BALANCER_PORT, IPVS),
    LabPath("pod to pod, IPv6", POD, ENDPOINT, ENDPOINT_PORT, NO_SERVICE, 6),
    LabPath("pod to ClusterIP, IPv6", POD, CLUSTER_IP6, PORT, IPVS, 6, kinds=ALL_KINDS),
    LabPath("client to NodePort, IPv6", CLIENT, NODE, NODE_PORT, IPVS, 6),
    # Once there are Services with source ranges and with a Local policy, too.
    LabPath("client to load balancer with ranges", CLIENT, RANGED, BALANCER_PORT, IPVS, grown=True),
    LabPath("client to load balancer, Local", CLIENT, LOCAL, LOCAL_PORT, IPVS, grown=True),
    LabPath("pod to load balancer, Local", POD, LOCAL, LOCAL_PORT, IPVS, grown=True),
    LabPath(
        "pod to pod, beside ranges and Local", POD, ENDPOINT, ENDPOINT_PORT, NO_SERVICE,
        grown=True, kinds=ALL_KINDS,
    ),
    LabPath(
        "pod to ClusterIP, beside ranges and Local", POD, CLUSTER_IP, PORT, IPVS,
        grown=True, kinds=ALL_KINDS,
    ),
)  # fmt: skip


@dataclasses.dataclass(frozen=True, order=True)
class PriceRow:
    """One figure: the instructions of one kind of round trip on a path, of one peer."""

    services: int
    path: str
    kind: str
    peer: str

    def __str__(self):
        return f"{self.path}, {self.kind}, {self.peer}, {self.services} Services"


def floor_of(row):
    """Return the row that a row is held against, that of the kernel without a proxy."""
    floor = next(path.floor for path in PATHS if path.name == row.path)
    return dataclasses.replace(row, peer=floor)


_PROXIES = frozenset(
    [PriceRow(10, path.name, kind, peer) for path in PATHS for kind in path.kinds for peer in (OURS, AUTO)]
    + [PriceRow(1_000, path.name, kind, OURS) for path in PATHS[:3] for kind in path.kinds]
    + [
        PriceRow(10, path.name, kind, peer)
        for path in PATHS
        if (path.source, path.port, path.grown) == (POD, PORT, False)
        for kind in path.kinds
        for peer in (TENANTS, OF_TENANT)
    ]
)
WATCHED = _PROXIES | set(map(floor_of, _PROXIES))
"""What the budget has."""
