"""Services with addresses of every kind, all of which follow from a number, and the ways into them."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence

from tests.lab.cases import Case
from tests.lab.lab import Lab
from tests.lab.manifests import ManifestFolder, dual_slices, port, service
from tests.support.api_object import ApiObject

PORTS = (port(80, 8080, "TCP", "t"), port(81, 8081, "UDP", "u"), port(82, 8082, "SCTP", "s"))
TARGETS = {"tcp": 8080, "udp": 8081, "sctp": 8082}
PORT_OF = {"tcp": 80, "udp": 81, "sctp": 82}


def cluster_ip(number: int, family: int) -> str:
    return f"10.96.1.{number}" if family == 4 else f"fd00:10:96::1:{number}"


def balancer(number: int, family: int) -> str:
    return f"203.0.113.{number}" if family == 4 else f"2001:db8:113::{number}"


def external(number: int, family: int) -> str:
    return f"198.51.100.{number}" if family == 4 else f"2001:db8:198::{number}"


def published(name: str, number: int, ports: Sequence[ApiObject], **spec: object) -> ApiObject:
    """Make a dual-stack Service with addresses of every kind, which follow from its number."""
    addresses = [[make(number, f) for f in (4, 6)] for make in (cluster_ip, balancer, external)]
    return service(
        name, ports, addresses[0], type_="LoadBalancer", ingress=addresses[1], externalIPs=addresses[2], **spec
    )


FOREIGN_PORT = 8022
TO_A_VIP = """table inet elsewhere {
    chain prerouting {
        type nat hook prerouting priority dstnat;
        fib daddr type local tcp dport FOREIGN dnat ip to IPV4:PORT
        fib daddr type local tcp dport FOREIGN dnat ip6 to [IPV6]:PORT
    }
}"""


@contextlib.contextmanager
def dnat_of_others(lab: Lab, number: int, to: int) -> Iterator[int]:
    """Have rules of another program on node1 that lead a port of all its addresses to one of a ClusterIP.

    Yields the port.
    """
    words = {"FOREIGN": FOREIGN_PORT, "IPV4": cluster_ip(number, 4), "IPV6": cluster_ip(number, 6), "PORT": to}
    rules = TO_A_VIP
    for word, value in words.items():
        rules = rules.replace(word, str(value))
    node = lab.nodes[0]
    lab.run(node, ["nft", "-f", "-"], rules)
    try:
        yield FOREIGN_PORT
    finally:
        lab.run(node, ["nft", "delete table inet elsewhere"])


class PublishedServices:
    """Services of every policy, by number, written to a folder of manifests."""

    WEB, LOCAL, BOTH_LOCAL, INTERNAL, EMPTY, STICKY, RANGED = range(51, 58)

    def __init__(self, lab: Lab, folder: ManifestFolder) -> None:
        self.lab = lab
        self.folder = folder

    def write(self) -> None:
        self.folder.write_nodes(self.lab)
        for name, number, pods, spec in (
            ("web", self.WEB, "p11 p21", {}),
            ("local", self.LOCAL, "p21 p22", {"externalTrafficPolicy": "Local"}),
            (
                "both-local",
                self.BOTH_LOCAL,
                "p11 p21",
                {"externalTrafficPolicy": "Local", "internalTrafficPolicy": "Local"},
            ),
            ("internal", self.INTERNAL, "p21", {"internalTrafficPolicy": "Local"}),
            ("empty", self.EMPTY, "", {}),
            ("sticky", self.STICKY, "p11 p12 p21 p22", {"sessionAffinity": "ClientIP"}),
            (
                "ranged",
                self.RANGED,
                "p11 p21",
                {"loadBalancerSourceRanges": ["192.0.2.100/32", "2001:db8:2::100/128"]},
            ),
        ):
            self.put(name, number, pods, **spec)

    def put(self, name: str, number: int, pods: str, **spec: object) -> None:
        ports = [p | {"nodePort": 31000 + number * 10 + index} for index, p in enumerate(PORTS)]
        slices = dual_slices(self.lab, name, PORTS, map(self.lab.host, pods.split()))
        self.folder.write(name, published(name, number, ports, **spec), *slices)

    def ways(self, number: int, family: int, proto: str = "tcp") -> dict[str, tuple[str, int]]:
        """Every way in, as (address, port); NodePorts on node1."""
        node_port = 31000 + number * 10 + list(PORT_OF).index(proto)
        return {
            "ClusterIP": (cluster_ip(number, family), PORT_OF[proto]),
            "NodePort": (self.lab.nodes[0].address(family), node_port),
            "LoadBalancer": (balancer(number, family), PORT_OF[proto]),
            "externalIP": (external(number, family), PORT_OF[proto]),
        }

    def cases(self, number: int, family: int, table: str, proto: str = "tcp", via: str = "node1") -> list[Case]:
        """Read lines of `asker | ways | endpoints or outcome | source`."""
        ways = self.ways(number, family, proto)
        found = []
        for line in filter(str.strip, table.splitlines()):
            askers, names, answer, source = (part.strip() for part in line.split("|"))
            for asker, name in itertools.product(askers.split(), names.split()):
                address, number_ = ways[name]
                if answer in ("timeout", "refused"):
                    found.append(Case(asker, name, address, number_, proto=proto, via=via, outcome=answer))
                else:
                    found.append(Case(asker, name, address, number_, answer, source, proto, via))
        return found
