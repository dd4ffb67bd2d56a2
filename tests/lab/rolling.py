"""A Service whose endpoints are replaced one by one, as a Deployment does it, and all ways into it.

    starting -> ready -> terminating (still serving: its connections end in peace) -> gone

Every endpoint has an address that no other had in the last rounds: pods of the lab get further addresses.
A terminating pod ends only when the node sends nothing new to it: its grace period is longer than any absence of
the proxy.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Self

from ipvsproxy.base import names
from ipvsproxy.base.address import parse_ip
from ipvsproxy.base.frontend import FrontendKey
from ipvsproxy.kernel.elements import ElementReader
from ipvsproxy.kernel.ipvs import Ipvs
from ipvsproxy.ruleset.schema import ENDPOINTS, INTERNAL_ENDPOINTS
from tests.lab import netns
from tests.lab.lab import Lab, LabHost
from tests.lab.manifests import endpoint_slice, port, service
from tests.lab.probe import ProbeQuestion
from tests.lab.responder import EndpointListener
from tests.support.api_object import ApiObject

TCP, UDP = port(80, 8080, "TCP", "http"), port(81, 8081, "UDP", "udp")
NODE_PORTS = (31080, 31081)
CLUSTER_IPS = ("10.96.7.1", "fd00:10:96::7:1")
BALANCERS = ("203.0.113.71", "2001:db8:113::71")
EXTERNAL = "198.51.100.71"
PATIENCE = 90.0
# For a packet that was on its way when the last new connection had been sent; a pod's grace period is longer.
UNDER_WAY_SECONDS = 0.5
ADDRESSES_A_POD = 8
# Not p12, which asks: a client that is an endpoint itself is a case of its own (hairpin).
HOMES = ("p11", "p21", "p11", "p22")

Publish = Callable[..., object]


@dataclasses.dataclass
class RollingPod:
    """One endpoint: where it runs, and how it is."""

    host: LabHost
    node: str
    listeners: list[EndpointListener] = dataclasses.field(default_factory=list)
    terminating: bool = False

    def endpoint(self, family: int) -> ApiObject:
        return {
            "addresses": [self.host.address(family)],
            "conditions": {"ready": not self.terminating, "serving": True, "terminating": self.terminating},
            "nodeName": self.node,
        }


def homes(lab: Lab) -> Iterator[tuple[LabHost, str]]:
    """Addresses for pods, for ever: further ones of the lab's pods, node1 and node2 in turn."""
    for number, name in zip(itertools.count(), itertools.cycle(HOMES)):
        pod, last = lab.host(name), 1 + number // 2 % ADDRESSES_A_POD
        host = LabHost(f"{name}.{last}", pod.netns, f"{pod.ipv4[:-1]}{last}", f"{pod.ipv6[:-1]}{last}")
        yield host, lab.node_of(pod).name


def add_addresses(lab: Lab, verb: str = "add") -> None:
    """Give the pods of the lab the addresses of `homes`, or take them away again (`del`)."""
    for pod in lab.pods:
        numbers = range(1, ADDRESSES_A_POD + 1)
        lines = [f"address {verb} {pod.ipv4[:-1]}{n}/24 dev eth0" for n in numbers]
        lines += [f"address {verb} {pod.ipv6[:-1]}{n}/64 dev eth0 nodad" for n in numbers]
        netns.ip(pod.netns, *lines)


class Deployment:
    """The Service `name`, kept at so many endpoints. `publish` writes objects to where proxies find them."""

    def __init__(self, lab: Lab, publish: Publish, size: int = 3, name: str = "rolling", **spec: Any) -> None:
        self._lab, self._publish, self._name, self._spec = lab, publish, name, spec
        self._homes = homes(lab)
        self.annotations: dict[str, str] = {}
        self._node = lab.nodes[0]
        self.pods = [self._start() for _ in range(size)]
        with netns.inside(self._node.netns):
            self._ipvs, self._rules = Ipvs(), ElementReader(names.TABLE)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._ipvs.close()
        self._rules.close()

    def publish(self) -> None:
        """Tell everybody how things are."""
        ports = [TCP | {"nodePort": NODE_PORTS[0]}, UDP | {"nodePort": NODE_PORTS[1]}]
        made = service(
            self._name, ports, CLUSTER_IPS, type_="LoadBalancer", ingress=BALANCERS, externalIPs=[EXTERNAL],
            **self._spec,
        )  # fmt: skip
        made["metadata"]["annotations"] = self.annotations
        endpoints = {family: [pod.endpoint(family) for pod in self.pods] for family in (4, 6)}
        slices = [endpoint_slice(self._name, (TCP, UDP), endpoints[family], family=family) for family in (4, 6)]
        self._publish(made, *slices)

    def replace_all(self, *, surge: bool = True) -> None:
        """Replace every endpoint, one after the other; with `surge` the new one starts before the old one goes."""
        for old in list(self.pods):
            self.replace(old, surge=surge)

    def replace(self, old: RollingPod, *, surge: bool = True) -> None:
        if surge:
            self.pods.append(self._start())
            self.publish()
        old.terminating = True
        for listener in old.listeners:
            listener.leave()
        self.publish()
        self._wait(lambda: not self.is_used(old), f"{old.host.name} is still used")
        time.sleep(UNDER_WAY_SECONDS)
        self._wait(lambda: not sum(listener.connections for listener in old.listeners), "connections do not end")
        for listener in old.listeners:
            listener.stop()
        self.pods.remove(old)
        if not surge:
            self.pods.append(self._start())
        self.publish()

    def is_used(self, pod: RollingPod) -> bool:
        """Whether the node gives it new connections or datagrams."""
        addresses = {parse_ip(pod.host.ipv4), parse_ip(pod.host.ipv6)}
        by_ipvs = any(
            attributes.weight and destination.address in addresses
            for state in self._ipvs.observe().values()
            for destination, attributes in state.destinations.items()
        )
        return by_ipvs or not addresses.isdisjoint(self._on_short_path())

    def _on_short_path(self) -> Iterator[bytes]:
        """Yield the endpoints that the ruleset chooses from."""
        for kind in (*ENDPOINTS.values(), *INTERNAL_ENDPOINTS.values()):
            yield from (to.address for to in self._rules.all(kind).values() if isinstance(to, FrontendKey))

    def is_known(self, pod: RollingPod) -> bool:
        """Whether the node still has it at all, draining or not."""
        addresses = {parse_ip(pod.host.ipv4), parse_ip(pod.host.ipv6)}
        return any(d.address in addresses for state in self._ipvs.observe().values() for d in state.destinations)

    def wait_until_used(self) -> None:
        """Wait until the node serves exactly the present endpoints."""
        self._wait(lambda: all(map(self.is_used, self.pods)), "not served")

    def _start(self) -> RollingPod:
        host, node = next(self._homes)
        listeners = [self._lab.responder.listen(host, 8080), self._lab.responder.listen(host, 8081, "udp")]
        return RollingPod(host, node, listeners)

    def _wait(self, holds: Callable[[], bool], complaint: str) -> None:
        deadline = time.monotonic() + PATIENCE
        while not holds():
            assert time.monotonic() < deadline, complaint
            time.sleep(0.1)


def ways(lab: Lab) -> Mapping[str, ProbeQuestion]:
    """The ways into the Service that are under load: outside client, pod and node, both families, TCP and UDP."""
    client, pod, node = lab.client.netns, lab.host("p12").netns, lab.nodes[0]
    return {
        "client -> LoadBalancer": ProbeQuestion(client, BALANCERS[0], 80),
        "client -> LoadBalancer IPv6": ProbeQuestion(client, BALANCERS[1], 80),
        "client -> external IP": ProbeQuestion(client, EXTERNAL, 80),
        "client -> NodePort": ProbeQuestion(client, node.ipv4, NODE_PORTS[0]),
        "client -> LoadBalancer UDP": ProbeQuestion(client, BALANCERS[0], 81, "udp"),
        "pod -> ClusterIP": ProbeQuestion(pod, CLUSTER_IPS[0], 80),
        "pod -> ClusterIP IPv6": ProbeQuestion(pod, CLUSTER_IPS[1], 80),
        "pod -> ClusterIP UDP": ProbeQuestion(pod, CLUSTER_IPS[0], 81, "udp"),
        "node -> ClusterIP": ProbeQuestion(node.netns, CLUSTER_IPS[0], 80),
        "node -> LoadBalancer": ProbeQuestion(node.netns, BALANCERS[0], 80),
    }


def only(found: Mapping[str, ProbeQuestion], names: Sequence[str]) -> dict[str, ProbeQuestion]:
    return {name: question for name, question in found.items() if any(part in name for part in names)}
