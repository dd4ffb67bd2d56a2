"""Well-formed objects that ask for far too much: others notice nothing while they come, flap and go.

A steady load runs on one Service meanwhile, from outside and from a pod, and must not lose a request. Another
Service is changed right after each hostile object, and must follow. /livez answers 200 all the time. Sizes are as
the API server takes them, but for endpoints: IPVS itself looks through all destinations of a server for each new
one, and a message to a user-mode kernel takes 60 microseconds, so 100,000 keep it busy for minutes.
"""

from __future__ import annotations

import contextlib
import json
import pathlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Self

import pytest

from ipvsproxy.kernel.ipvs import Ipvs
from tests.lab import netns
from tests.lab.lab import Lab, LabNode
from tests.lab.load import Load
from tests.lab.manifests import ManifestFolder, endpoint, endpoint_slice, port, service
from tests.lab.probe import ProbeQuestion, probe_many
from tests.lab.proxy import LabProxy
from tests.support.api_object import ApiObject
from tests.support.build import key

pytestmark = [pytest.mark.needs("ip_vs", "nf_tables")]

MOST_MIB = 200
FOLLOWED_SECONDS = 60.0
"""Generous: under emulation everything is many times slower. What was measured is printed."""
STEADY, CANARY, BALANCED = "10.96.0.10", "10.96.0.20", "203.0.113.30"
NODES, THEIRS = ("192.0.2.1", "192.0.2.2"), 2380
"""Addresses of the nodes, and a port on which a program of each of them listens."""
THIEF = ("p22", "10.244.2.20")
"""The pod to which connections would go that a hostile Service has taken: nobody asks it otherwise."""
WEB = port(80, 8080)


def addresses(count: int, first: int = 198, second: int = 18) -> list[str]:
    """Addresses that no node, pod or range of the lab has: of 198.18.0.0/15."""
    return [f"{first}.{second + (n >> 16)}.{n >> 8 & 255}.{n & 255}" for n in range(1, count + 1)]


def pieces(name: str, ports: list[ApiObject], pods: list[str]) -> Iterator[ApiObject]:
    """Slices of 1,000 endpoints each, as the API server takes them."""
    listed = [{"name": p.get("name", ""), "port": p["targetPort"], "protocol": p["protocol"]} for p in ports]
    for number, first in enumerate(range(0, len(pods), 1000)):
        some = pods[first : first + 1000]
        yield {
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": f"{name}-{number}", "labels": {"kubernetes.io/service-name": name}},
            "ports": listed,
            "endpoints": [{"addresses": [pod], "conditions": {"ready": True}} for pod in some],
        }  # fmt: skip


def numbered(count: int, first: int = 1) -> list[ApiObject]:
    return [port(n, 8080, name=f"p{n}") for n in range(first, first + count)]


def many_local_ports(turn: int) -> list[ApiObject]:
    """Both policies Local and 32,768 ports: no number is left for the last internal view."""
    ports = numbered(32_768)
    spec = {
        "externalTrafficPolicy": "Local",
        "internalTrafficPolicy": "Local",
        "allocateLoadBalancerNodePorts": False,
    }
    made = service("hostile", ports, ["10.96.9.1"], type_="LoadBalancer", ingress=[f"198.19.0.{turn + 1}"], **spec)
    return [made, *pieces("hostile", ports[:20], ["10.244.1.10"])]


def ports_times_addresses(turn: int) -> list[ApiObject]:
    ports = numbered(5000)
    made = service("hostile", ports, ["10.96.9.1"], externalIPs=addresses(20_000)[turn:])
    return [made, *pieces("hostile", ports, ["10.244.1.10"])]


def many_source_ranges(turn: int) -> list[ApiObject]:
    ranges = [f"{text}/32" for text in addresses(16_000, 100, 64)][turn:]
    spec = {"loadBalancerSourceRanges": ranges}
    made = service("hostile", [WEB], ["10.96.9.1"], type_="LoadBalancer", ingress=["198.19.0.1"], **spec)
    return [made, *pieces("hostile", [WEB], ["10.244.1.10"])]


def endpoints_that_ipvs_refuses(turn: int) -> list[ApiObject]:
    ports = numbered(100)
    return [
        service("hostile", ports, ["10.96.9.1"]),
        *pieces("hostile", ports, addresses(200, 225, turn)),
    ]


def frontends_of_another(turn: int) -> list[ApiObject]:
    """A younger Service claims all that an older one has."""
    asked, ports = addresses(500), numbered(20)
    old = service("hostile", ports, ["10.96.9.1"], externalIPs=asked)
    young = service("hostile2", ports, ["10.96.9.2"], externalIPs=asked[turn:])
    old["metadata"]["creationTimestamp"] = "2020-01-01T00:00:00Z"
    young["metadata"]["creationTimestamp"] = "2026-01-01T00:00:00Z"
    return [young] if turn == 1 else [old, young]


def addresses_that_nobody_gets(turn: int) -> list[ApiObject]:
    return [service("hostile", [WEB], ["10.96.9.1"], externalIPs=addresses(20_000, 127, turn))]


def many_endpoints(turn: int) -> list[ApiObject]:
    return [service("hostile", [WEB], ["10.96.9.1"]), *pieces("hostile", [WEB], addresses(5000)[turn:])]


def what_belongs_to_others(turn: int) -> list[ApiObject]:
    """The oldest of all, with addresses of nodes, a pod, the network and another Service's load balancer."""
    ports = [WEB, *(port(n, 8080, name=f"p{n}") for n in (THEIRS, 10250, 10256))]
    theirs = [NODES[0], NODES[1], "192.0.2.255", "169.254.169.254", "10.244.2.10", BALANCED, "192.0.2.100"]
    made = service("hostile", ports, ["10.96.9.1"], externalIPs=[*theirs[turn:], "198.19.0.1"])
    listed = service("hostile2", ports, ["10.96.9.2"], type_="LoadBalancer", ingress=list(NODES)[turn:])
    made["metadata"]["creationTimestamp"] = listed["metadata"]["creationTimestamp"] = "2020-01-01T00:00:00Z"
    return [made, listed, *pieces("hostile", ports, [THIEF[1]]), *pieces("hostile2", ports, [THIEF[1]])]


class Pulse(threading.Thread):
    """Asks /livez of a node's proxy all the time."""

    def __init__(self, node: LabNode) -> None:
        super().__init__(name="pulse", daemon=True)
        self.codes: dict[str, int] = {}
        self.slowest = 0.0
        self._node = node
        self._stopping = threading.Event()

    def run(self) -> None:
        while not self._stopping.wait(0.1):
            began = time.monotonic()
            code = self._ask()
            self.codes[code] = self.codes.get(code, 0) + 1
            self.slowest = max(self.slowest, time.monotonic() - began)

    def _ask(self) -> str:
        with netns.inside(self._node.netns):
            asking = socket.socket()
        with asking:
            asking.settimeout(20)
            try:
                asking.connect(("127.0.0.1", 10256))
                asking.sendall(b"GET /livez HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n")
                return asking.recv(64).split()[1].decode()
            except OSError as error:
                return str(error)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stopping.set()
        self.join()


def asked_again(load: Load, times: int = 3) -> None:
    """Wait until each way in has answered some more: what comes and goes in a moment is met by nobody."""
    before, until = load.answered.copy(), time.monotonic() + FOLLOWED_SECONDS
    while any(load.answered[way] < before[way] + times for way in load.ways):
        assert time.monotonic() < until, load.report()
        time.sleep(0.05)


def memory_mib(proxy: LabProxy, what: str) -> int:
    """Return VmRSS, or VmHWM for the most there has been."""
    lines = pathlib.Path(f"/proc/{proxy.pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(what)).split()[1]) // 1024


class SharedNode:
    """A node with a steady Service, and one that follows what it is told."""

    def __init__(self, lab: Lab, manifests: ManifestFolder) -> None:
        self.lab, self.folder, self.node = lab, manifests, lab.nodes[0]
        for pod in lab.pods:
            lab.responder.listen(pod, 8080)
        lab.route_client_via(self.node, "10.96.0.0/16")
        manifests.write_nodes(lab)
        local = [endpoint(lab, pod) for pod in self.node.pods]
        manifests.write("steady", service("steady", [WEB], [STEADY]), endpoint_slice("steady", [WEB], local))
        balanced = service("balanced", [WEB], ["10.96.0.30"], type_="LoadBalancer", ingress=[BALANCED])
        manifests.write("balanced", balanced, endpoint_slice("balanced", [WEB], local))
        lab.route_client_via(self.node, BALANCED)
        for node in lab.nodes:
            lab.responder.listen(node, THEIRS)
        self.canary(0)
        self.proxy = lab.proxy(self.node, manifests.path)

    def canary(self, number: int) -> str:
        """Have the other Service lead to another pod; return its name."""
        others = [pod for pod in self.lab.pods if pod.name != THIEF[0]]
        pod = others[number % len(others)]
        pods = [endpoint(self.lab, pod)]
        self.folder.write("canary", service("canary", [WEB], [CANARY]), endpoint_slice("canary", [WEB], pods))
        return pod.name

    def hostile(self, objects: list[ApiObject]) -> None:
        """Put objects into a file of JSON, which is read as fast as the API's answers are."""
        made = {"apiVersion": "v1", "kind": "List", "items": objects}
        fresh = self.folder.path / ".hostile.tmp"
        fresh.write_text(json.dumps(made))
        fresh.replace(self.folder.path / "hostile.json")

    def follows(self, number: int) -> float:
        """Change the other Service and return how long it took to have effect."""
        began, wanted = time.monotonic(), self.canary(number)
        question = ProbeQuestion(self.node.netns, CANARY, 80)
        while probe_many([question])[0].name != wanted:
            assert time.monotonic() - began < FOLLOWED_SECONDS, "the change of another Service has no effect"
            time.sleep(0.05)
        return time.monotonic() - began


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "objects",
    [
        many_local_ports,
        ports_times_addresses,
        many_source_ranges,
        endpoints_that_ipvs_refuses,
        frontends_of_another,
        addresses_that_nobody_gets,
        many_endpoints,
        what_belongs_to_others,
    ],
)
def test_others_notice_nothing(
    lab: Lab, manifests: ManifestFolder, objects: Callable[[int], list[ApiObject]]
) -> None:
    shared = SharedNode(lab, manifests)
    steady = {
        "outside": ProbeQuestion(lab.client.netns, STEADY, 80),
        "pod": ProbeQuestion(shared.node.pods[0].netns, STEADY, 80),
        "node": ProbeQuestion(shared.node.netns, STEADY, 80),
        "load balancer": ProbeQuestion(lab.client.netns, BALANCED, 80),
        "this node's program": ProbeQuestion(lab.client.netns, NODES[0], THEIRS),
        "other node's program": ProbeQuestion(shared.node.netns, NODES[1], THEIRS),
        "other node's program, from a pod": ProbeQuestion(shared.node.pods[0].netns, NODES[1], THEIRS),
    }
    before, waited = memory_mib(shared.proxy, "VmRSS"), []
    with Pulse(shared.node) as pulse, Load(steady, every=0.2, talks=1) as load:
        for number, turn in enumerate((0, 1, 0)):
            load.mark(f"hostile objects, version {turn}")
            shared.hostile(objects(turn))
            waited.append(shared.follows(number + 1))
            asked_again(load)
        load.mark("hostile objects go")
        (shared.folder.path / "hostile.json").unlink()
        waited.append(shared.follows(5))
    grown = memory_mib(shared.proxy, "VmHWM") - before
    print(f"others followed after {[round(seconds, 2) for seconds in waited]} s, memory grew by {grown} MiB,")
    print(f"/livez {pulse.codes}, slowest after {pulse.slowest:.2f} s")
    print(load.report())
    assert load.failures == []
    assert load.endpoints.keys() == {*(pod.name for pod in shared.node.pods), *(node.name for node in lab.nodes)}
    assert pulse.codes.keys() == {"200"}
    assert grown < MOST_MIB
    lines = [line for line in shared.proxy.events() if "hostile" in json.dumps(line)]
    assert len(lines) < 100


HOSTILE, CROWD = "10.96.9.1", 20_000


def programmed(node: LabNode) -> int:
    """Return how many endpoints the hostile Service has in the kernel."""
    with netns.inside(node.netns), contextlib.closing(Ipvs()) as ipvs:
        return sum(1 for _ in ipvs.each_destination(key(f"{HOSTILE}:80")))


def crowd(first: int) -> list[ApiObject]:
    return [service("hostile", [WEB], [HOSTILE]), *pieces("hostile", [WEB], addresses(CROWD + first)[first:])]


@pytest.mark.timeout(1800)
def test_others_are_followed_while_a_crowd_of_endpoints_is_programmed(lab: Lab, manifests: ManifestFolder) -> None:
    """IPVS needs seconds to minutes for so many; another Service follows its changes all the time."""
    neighbours = SharedNode(lab, manifests)
    steady = {
        "outside": ProbeQuestion(lab.client.netns, STEADY, 80),
        "pod": ProbeQuestion(neighbours.node.pods[0].netns, STEADY, 80),
    }
    waited, meanwhile, number = [], 0, 0
    with Pulse(neighbours.node) as pulse, Load(steady, every=0.2, talks=1) as load:
        for first in (0, CROWD // 2):
            neighbours.hostile(crowd(first))
            until = time.monotonic() + 800
            while (there := programmed(neighbours.node)) < CROWD:
                assert time.monotonic() < until
                number += 1
                waited.append(neighbours.follows(number))
                meanwhile += there > 0
            load.mark(f"{CROWD} endpoints from number {first}")
        (neighbours.folder.path / "hostile.json").unlink()
        while programmed(neighbours.node):
            number += 1
            waited.append(neighbours.follows(number))
        asked_again(load)
    print(f"{number} changes of another Service had effect after {sorted(waited)[number // 2]:.2f} s, the slowest")
    print(f"after {max(waited):.2f} s; /livez {pulse.codes}, slowest after {pulse.slowest:.2f} s")
    print(load.report())
    assert meanwhile > 0
    assert load.failures == []
    assert pulse.codes.keys() == {"200"}
