"""Annotations of a Service with pods of a StatefulSet: they are changed live, and clients in pods see it."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from tests.cluster import programs
from tests.cluster.application import HTTP, NAMESPACE, RunningApplication, client_ips, daemonset, service
from tests.cluster.daemonset import SYSTEM, pods
from tests.cluster.images import AGNHOST
from tests.cluster.traffic import Origin, run_at

NAME, PREFIX = "stateful", "ipvsproxy.io/"
SECONDS = 600
REQUESTS = 44
RANGE = (7000, 7001, 7002)
_HOLD = """
import socket, sys
held = []
for _ in range(int(sys.argv[3])):
    try:
        held.append(socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=5))
        print("open")
    except OSError as error:
        print(type(error).__name__)
"""


def objects() -> list[dict[str, Any]]:
    """Two pods, one on each node, that have names which stay, and further ports; and their Service."""
    made = daemonset(NAME, ["netexec", f"--http-port={HTTP}"], probe=True)
    pod = made["spec"]["template"]["spec"]
    env = [{"name": f"SERVE_PORT_{port}", "value": f"this is {port}"} for port in RANGE]
    pod["containers"].append({"name": "range", "image": AGNHOST, "args": ["porter"], "env": env})
    apart = {"maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "DoNotSchedule"}
    pod["topologySpreadConstraints"] = [{**apart, "labelSelector": made["spec"]["selector"]}]
    stateful = {**made, "kind": "StatefulSet", "spec": {**made["spec"], "serviceName": NAME, "replicas": 2}}
    stateful["spec"]["podManagementPolicy"] = "Parallel"
    ports = [{"name": "http", "port": 80, "targetPort": HTTP}]
    return [stateful, service(NAME, "ClusterIP", selector={"app": NAME}, ports=ports)]


class AnnotatedStatefulSet:
    """The Service, what it is given, and who answers whom."""

    def __init__(self, running: RunningApplication) -> None:
        self.running, self.kubectl, self.cluster = running, running.kubectl, running.cluster
        self.remove()  # with annotations of a run that was ended
        self.kubectl.apply(objects())
        self.kubectl("rollout", "status", f"statefulset/{NAME}", f"--timeout={SECONDS}s")
        self.clients = client_ips(self.kubectl)
        self.ip = self.kubectl.get("service", NAME)["spec"]["clusterIP"]

    def remove(self) -> None:
        self.kubectl(
            "delete", f"service/{NAME}", f"statefulset/{NAME}", "--ignore-not-found", f"--timeout={SECONDS}s"
        )

    def client(self, number: int) -> Origin:
        """The client pod on a node."""
        node = self.cluster.nodes[number]
        return Origin(node, self.clients[node.name])

    def annotate(self, **values: str) -> None:
        """Set annotations, by names with underscores; an empty value takes one away."""
        named = {PREFIX + name.replace("_", "-"): value for name, value in values.items()}
        words = [f"{name}={value}" if value else f"{name}-" for name, value in named.items()]
        self.kubectl("annotate", "service", NAME, *words, "--overwrite")

    def local(self, number: int) -> str:
        """The name of the pod on a node."""
        found = self.kubectl.get("pods", f"--selector=app={NAME}")["items"]
        node = self.cluster.nodes[number].name
        return next(pod["metadata"]["name"] for pod in found if pod["spec"]["nodeName"] == node)

    def shares(self, number: int) -> Counter[str]:
        """How many of new connections each pod answers to the client pod on a node."""
        ask = f"for i in $(seq {REQUESTS}); do curl -sS --max-time 10 http://{self.ip}/hostname; echo; done"
        return Counter(run_at(self.cluster, self.client(number), "sh", "-c", ask).stdout.split())

    def become(self, number: int, wanted: dict[str, int]) -> None:
        programs.wait(f"not {wanted}", lambda: self.shares(number) == wanted, SECONDS)

    def endpoints(self, number: int) -> list[dict[str, Any]]:
        """What the proxy of a node shows of the ClusterIP's endpoints."""
        proxy = pods(self.running)[self.cluster.nodes[number].name]["metadata"]["name"]
        show = ("ipvsproxy", "show", "endpoints", NAME, f"--namespace={NAMESPACE}", "--output=json")
        said = self.kubectl("exec", proxy, SYSTEM, "--container=ipvsproxy", "--", *show)
        return [each for each in json.loads(said)["items"] if each["frontend"] == f"{self.ip}:80/TCP"]


@pytest.fixture(scope="module")
def stateful(running: RunningApplication) -> Iterator[AnnotatedStatefulSet]:
    made = AnnotatedStatefulSet(running)
    yield made
    made.remove()


def test_pods_have_shares_by_their_names_and_one_in_maintenance_has_none(stateful: AnnotatedStatefulSet):
    first, second = f"{NAME}-0", f"{NAME}-1"
    stateful.annotate(scheduler="wrr", weights=f"{first}=3,{second}=1")
    for number in range(2):
        stateful.become(number, {first: REQUESTS * 3 // 4, second: REQUESTS // 4})
    stateful.annotate(weights=f"{first}=0")
    for number in range(2):
        stateful.become(number, {second: REQUESTS})
    stateful.annotate(weights="", scheduler="")
    stateful.become(0, {first: REQUESTS // 2, second: REQUESTS // 2})


def test_pods_of_the_nodes_own_zone_are_preferred(stateful: AnnotatedStatefulSet):
    stateful.annotate(scheduler="wrr", same_zone_weight="10")
    for number in range(2):
        near, far = stateful.local(number), stateful.local(1 - number)
        stateful.become(number, {near: REQUESTS * 10 // 11, far: REQUESTS // 11})
    stateful.annotate(scheduler="", same_zone_weight="")


def test_a_pod_that_becomes_ready_starts_slowly(stateful: AnnotatedStatefulSet):
    stateful.annotate(scheduler="wrr", slow_start="60s")
    programs.wait("no larger weights", lambda: weights(stateful) == [10, 10], SECONDS)
    old = next(
        each["endpoint"] for each in stateful.endpoints(0) if each["endpoint"].startswith(ip_of(stateful, 0))
    )
    stateful.kubectl("delete", "pod", f"{NAME}-1")
    seen: list[int] = []

    def has_all() -> bool:
        """Collect the weights that the new pod has."""
        found = [each for each in stateful.endpoints(0) if each["state"] == "serving" and each["endpoint"] != old]
        seen.extend(each["weight"] for each in found)
        return bool(seen) and seen[-1] == 10 and min(seen) < 10

    programs.wait("no slow start", has_all, SECONDS)
    rising = seen[seen.index(min(seen)) :]
    assert rising == sorted(rising)
    assert len(set(rising)) > 2
    stateful.annotate(scheduler="", slow_start="")


def weights(stateful: AnnotatedStatefulSet) -> list[int]:
    return [each["weight"] for each in stateful.endpoints(0)]


def ip_of(stateful: AnnotatedStatefulSet, number: int) -> str:
    return str(stateful.kubectl.get("pod", f"{NAME}-{number}")["status"]["podIP"])


def test_pods_that_have_all_connections_that_they_may_have_get_no_more(stateful: AnnotatedStatefulSet):
    stateful.annotate(max_connections="2")
    programs.wait("no limit", lambda: limits(stateful) == [2, 2], SECONDS)
    # Connections of earlier tests count until the kernel has forgotten them.
    programs.wait("others stay", lambda: not any(map(connections, stateful.endpoints(0))), SECONDS)
    assert held(stateful, 6) == ["open"] * 4 + ["ConnectionRefusedError"] * 2
    stateful.annotate(max_connections="")
    programs.wait("a limit", lambda: limits(stateful) == [0, 0], SECONDS)
    assert held(stateful, 6) == ["open"] * 6


def limits(stateful: AnnotatedStatefulSet) -> list[int]:
    return [each["upperThreshold"] for each in stateful.endpoints(0)]


def connections(endpoint: dict[str, Any]) -> int:
    """Those that count: open ones, and those that have just ended."""
    return int(endpoint["active"] + endpoint["inactive"])


def held(stateful: AnnotatedStatefulSet, number: int) -> list[str]:
    """What becomes of so many connections, all open at the same time."""
    hold = (sys.executable, "-S", "-c", _HOLD, stateful.ip, 80, number)
    return run_at(stateful.cluster, stateful.client(0), *hold).stdout.split()


def test_a_range_of_ports_leads_to_the_ports_of_pods(stateful: AnnotatedStatefulSet):
    stateful.annotate(port_range=f"{RANGE[0]}-{RANGE[-1]}")
    for number in range(2):
        programs.wait(
            "no ranges", lambda of=number: ranged(stateful, of) == [f"this is {port}" for port in RANGE], SECONDS
        )
    stateful.annotate(port_range="")
    programs.wait("still ranges", lambda: not any(ranged(stateful, 0)), SECONDS)


def ranged(stateful: AnnotatedStatefulSet, number: int) -> list[str]:
    """What the ports of the range answer the client pod on a node."""
    urls = [f"http://{stateful.ip}:{port}/" for port in RANGE]
    asked = [run_at(stateful.cluster, stateful.client(number), "curl", "-s", "--max-time", 5, url) for url in urls]
    return [each.stdout.strip() for each in asked]


def test_a_cluster_ip_answers_pings_only_while_there_are_ready_pods(stateful: AnnotatedStatefulSet):
    stateful.annotate(ping="when-ready")
    programs.wait("no answer", lambda: pings(stateful), SECONDS)
    stateful.kubectl("scale", f"statefulset/{NAME}", "--replicas=0")
    programs.wait("still answers", lambda: not pings(stateful), SECONDS)
    stateful.kubectl("scale", f"statefulset/{NAME}", "--replicas=2")
    programs.wait("no answer again", lambda: pings(stateful), SECONDS)
    stateful.annotate(ping="off")
    programs.wait("answers", lambda: not pings(stateful), SECONDS)


def pings(stateful: AnnotatedStatefulSet) -> bool:
    command = ("ping", "-c", 1, "-W", 2, stateful.ip)
    return run_at(stateful.cluster, stateful.client(0), *command).returncode == 0
