"""What test_transitions changes: one Service with every way in, its endpoints, and when a change has arrived."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Sequence
from typing import Any

from ipvsproxy.base.address import parse_ip
from ipvsproxy.kernel.ipvs import Ipvs
from ipvsproxy.plan.model import Protocol
from ipvsproxy.plan.state import FrontendKey
from tests.lab import netns
from tests.lab.lab import Lab, LabHost, LabNode
from tests.lab.manifests import ManifestFolder, endpoint_slice, port, service
from tests.lab.probe import ProbeQuestion
from tests.support.api_object import ApiObject

CLUSTER_IPS = ("10.96.8.1", "fd00:10:96::8:1")
BALANCERS = ("203.0.113.81", "2001:db8:113::81")
EXTERNAL = "198.51.100.81"
SETTLED_SECONDS = 60.0
_markers = itertools.count(1)


@dataclasses.dataclass(frozen=True)
class Web:
    """A Service and its endpoints; a transition is the step from one to another."""

    type: str = "LoadBalancer"
    port: int = 80
    port_name: str = "http"
    target: int = 8080
    node_port: int = 32080
    external_ip: bool = True
    pods: str = "p11 p21"
    external_policy: str = "Cluster"
    internal_policy: str = "Cluster"
    affinity: str = "None"
    data_path: str = ""

    def ports(self) -> list[ApiObject]:
        tcp = port(self.port, self.target, "TCP", self.port_name)
        udp = port(self.port, self.target, "UDP", f"{self.port_name}-udp")
        if self.type != "ClusterIP":
            tcp["nodePort"] = udp["nodePort"] = self.node_port
        return [tcp, udp]

    def service(self) -> ApiObject:
        reachable = self.type != "ClusterIP" or self.external_ip
        policy: dict[str, Any] = {"externalTrafficPolicy": self.external_policy} if reachable else {}
        made = service(
            "web", self.ports(), CLUSTER_IPS, type_=self.type,
            ingress=BALANCERS if self.type == "LoadBalancer" else (),
            externalIPs=[EXTERNAL] if self.external_ip else [],
            internalTrafficPolicy=self.internal_policy, sessionAffinity=self.affinity, **policy,
        )  # fmt: skip
        if self.data_path:
            made["metadata"]["annotations"] = {"ipvsproxy.io/data-path": self.data_path}
        return made

    def slices(self, lab: Lab) -> list[ApiObject]:
        hosts = [lab.host(name) for name in self.pods.split()]
        return [
            endpoint_slice("web", self.ports(), [_endpoint(lab, host, family) for host in hosts], family=family)
            for family in (4, 6)
        ]

    def ways(self, lab: Lab) -> dict[str, ProbeQuestion]:
        """Every way in from everywhere, by a name that does not depend on ports."""
        node = lab.nodes[0]
        targets = {"ClusterIP": (CLUSTER_IPS[0], self.port), "ClusterIP of IPv6": (CLUSTER_IPS[1], self.port)}
        if self.type == "LoadBalancer":
            targets |= {
                "LoadBalancer": (BALANCERS[0], self.port),
                "LoadBalancer of IPv6": (BALANCERS[1], self.port),
            }
        if self.type != "ClusterIP":
            targets["NodePort"] = (node.ipv4, self.node_port)
        if self.external_ip:
            targets["external IP"] = (EXTERNAL, self.port)
        askers = {"client": lab.client, "pod": lab.host("p12"), "node": node}
        tcp = {
            f"{who} -> {way}": ProbeQuestion(asker.netns, *target)
            for who, asker in askers.items()
            for way, target in targets.items()
        }
        udp = {f"{name} UDP": dataclasses.replace(tcp[name], proto="udp") for name in tcp if _has_udp(name)}
        return tcp | udp


def _has_udp(name: str) -> bool:
    return name in ("client -> LoadBalancer", "pod -> LoadBalancer", "pod -> ClusterIP")


def _endpoint(lab: Lab, host: LabHost, family: int) -> ApiObject:
    node = host if isinstance(host, LabNode) else lab.node_of(host)
    conditions = {"ready": True, "serving": True, "terminating": False}
    return {"addresses": [host.address(family)], "conditions": conditions, "nodeName": node.name}


class Stage:
    """The lab with a proxy on node1 that follows a folder."""

    def __init__(self, lab: Lab, folder: ManifestFolder) -> None:
        self.lab, self.folder, self.node = lab, folder, lab.nodes[0]
        with netns.inside(self.node.netns):
            self._ipvs = Ipvs()

    def close(self) -> None:
        self._ipvs.close()

    def put(self, web: Web) -> None:
        """Write Service and endpoints at once and wait until that has arrived."""
        self.folder.write("web", web.service(), *web.slices(self.lab))
        self.settle()

    def settle(self) -> None:
        """Wait until everything that was written before is in the kernel.

        Changes are worked through in order. A Service that is there tells that what was written before it is under
        way at least, and a second one that it is done.
        """
        for _ in range(2):
            number = next(_markers)
            address = f"10.96.{200 + number // 250}.{number % 250 + 1}"
            marker = service("marker", [port(9, 9)], [address])
            marker["metadata"]["annotations"] = {"ipvsproxy.io/data-path": "ipvs"}
            self.folder.write("marker", marker)
            self.until(lambda address=address: self.serves(address, 9), "the proxy does not follow")

    def serves(self, address: str, number: int) -> bool:
        return FrontendKey(parse_ip(address), Protocol.TCP, number) in self._ipvs.servers()

    def schedulers(self) -> set[str]:
        return {server.scheduler for server in self._ipvs.servers().values()}

    def until(self, holds: Any, complaint: str) -> None:
        deadline = time.monotonic() + SETTLED_SECONDS
        while not holds():
            assert time.monotonic() < deadline, complaint
            time.sleep(0.05)

    def ip(self, *lines: str) -> None:
        """Change addresses and links of the node."""
        netns.ip(self.node.netns, *lines)


def without(ways: dict[str, ProbeQuestion], parts: Sequence[str]) -> dict[str, ProbeQuestion]:
    return {name: question for name, question in ways.items() if not any(part in name for part in parts)}
