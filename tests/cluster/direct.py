"""The objects of docs/dsr.md in a cluster, and what clients outside of it see of them.

The page's program is agnhost's netexec here. Its UDP server listens on the VIPs, as the page asks of programs that
do not look at the address at which they were asked.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from tests.cluster import programs
from tests.cluster.application import PATIENT, RunningApplication
from tests.cluster.images import AGNHOST
from tests.cluster.place import BRIDGE_CIDRS, OUTSIDE_IP, ClusterNode
from tests.cluster.traffic import Origin, run_at
from tests.support import page
from tests.support.api_object import ApiObject

NAME, NAMESPACE = "video", "default"
PAGE = "docs/dsr.md"
ANNOTATION = "ipvsproxy.io/forwarding"
HTTP, UDP = 80, 81
BALANCED = "172.31.100.77"
"""What the Service asks its load balancer controller for, as the page has it."""
CLIENTS = {4: OUTSIDE_IP, 6: BRIDGE_CIDRS[1].partition("/")[0]}
"""The addresses with which this machine asks the VIPs."""
SECONDS = 600
REQUESTS = 12
NO_ANSWER = ("", "")
# A line for each connection: who has answered, and which client they saw.
_ASK = """
for i in $(seq "$1"); do
    echo "answer $(curl -sS -g --fail-early --max-time 10 -w ' ' "http://$2/hostname" "http://$2/clientip" 2>&1)"
done
"""
_ASK_UDP = """
import socket, sys
address, port, times = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
for _ in range(times):
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as asking:
        asking.settimeout(10)
        asking.connect((address, port))
        words = []
        for word in (b"hostname", b"clientip"):
            asking.send(word)
            words.append(asking.recv(1024).decode().strip())
        print("answer", *words)
"""


def documented(tunnel: str) -> tuple[ApiObject, ApiObject]:
    """The page's Service and Deployment with a kind of tunnel, as they stand there."""
    service, deployment = page.manifests(PAGE)[0]
    service["metadata"]["annotations"][ANNOTATION] = tunnel
    (init,) = deployment["spec"]["template"]["spec"]["initContainers"]
    init["args"] = [f"--tunnel={tunnel}" if each.startswith("--tunnel=") else each for each in init["args"]]
    return service, deployment


def vips(service: ApiObject) -> dict[int, str]:
    """The external IPs by family."""
    return {6 if ":" in ip else 4: ip for ip in service["spec"]["externalIPs"]}


def balanced(service: ApiObject, deployment: ApiObject) -> None:
    """Give them the address of a load balancer as well."""
    service["spec"].update(type="LoadBalancer", loadBalancerIP=BALANCED)
    (init,) = deployment["spec"]["template"]["spec"]["initContainers"]
    init["args"] = [f"{each},{BALANCED}" if each.startswith("--vips=") else each for each in init["args"]]


def answering(service: ApiObject, deployment: ApiObject) -> None:
    """Put a program in place of the page's, one pod on each node, that a rolling update ends without haste."""
    listening = ",".join([*vips(service).values(), BALANCED])
    program = [f"--http-port={HTTP}", f"--udp-port={UDP}", f"--udp-listen-addresses={listening}"]
    spec = deployment["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    container["image"] = AGNHOST
    container["args"] = ["netexec", *program, "--delay-shutdown=20"]
    container["readinessProbe"] = {"httpGet": {"path": "/hostname", "port": HTTP}, "periodSeconds": 2, **PATIENT}
    apart = {"maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "DoNotSchedule"}
    of = {"labelSelector": deployment["spec"]["selector"], "matchLabelKeys": ["pod-template-hash"]}
    spec["topologySpreadConstraints"] = [{**apart, **of}]
    spec["terminationGracePeriodSeconds"] = 30
    deployment["spec"]["replicas"] = 2
    service["spec"]["ports"].append({"name": "udp", "port": UDP, "targetPort": UDP, "protocol": "UDP"})


class DirectVideo:
    """The page's objects with one kind of tunnel, and requests to them."""

    def __init__(self, running: RunningApplication, tunnel: str) -> None:
        self.running, self.kubectl, self.cluster = running, running.kubectl, running.cluster
        self.tunnel = tunnel
        self.service, self.deployment = documented(tunnel)
        balanced(self.service, self.deployment)
        answering(self.service, self.deployment)
        self.vips = vips(self.service)

    def install(self) -> None:
        """Return when pods on all nodes have answered clients of outside directly."""
        for node in self.cluster.nodes:
            self.route_via(node)
        self.kubectl.apply([self.deployment])
        self.roll()
        self.kubectl.apply([self.service])
        programs.wait("no direct server return", self.is_direct, SECONDS)

    def remove(self) -> None:
        names = (f"service/{NAME}", f"deployment/{NAME}")
        self.kubectl("delete", *names, "--ignore-not-found", "--cascade=foreground", f"--timeout={SECONDS}s")

    def roll(self) -> None:
        self.kubectl("rollout", "status", f"deployment/{NAME}", f"--timeout={SECONDS}s")

    def route_via(self, node: ClusterNode) -> None:
        """Have clients outside send to the external IPs by way of a node."""
        for family, vip in self.vips.items():
            via, prefix = node.ips[0 if family == 4 else 1], 32 if family == 4 else 128
            words = ["ip", "route", "replace", f"{vip}/{prefix}", "via", via, "src", CLIENTS[family]]
            subprocess.run(self.cluster.inside(*words), check=True)

    def pods(self) -> dict[str, Any]:
        """Those that run and are not ending, by name."""
        found = self.kubectl.get("pods", f"--selector=app={NAME}", "--field-selector=status.phase=Running")[
            "items"
        ]
        return {pod["metadata"]["name"]: pod for pod in found if "deletionTimestamp" not in pod["metadata"]}

    def seen(
        self, address: str, where: Origin | None = None, *, port: int = HTTP, times: int = REQUESTS
    ) -> set[tuple[str, str]]:
        """Which pods answer an address, each with the client that it has seen; NO_ANSWER if none does."""
        to = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
        done = run_at(self.cluster, where or Origin(), "sh", "-c", _ASK, "sh", times, to)
        return {_answer(line) for line in done.stdout.splitlines()}

    def seen_by_udp(self, address: str) -> set[tuple[str, str]]:
        """The same of datagrams."""
        done = run_at(self.cluster, Origin(), sys.executable, "-S", "-c", _ASK_UDP, address, UDP, REQUESTS)
        return {_answer(line) for line in done.stdout.splitlines()}

    def everybody(self, client: str) -> set[tuple[str, str]]:
        """What is seen when each pod answers, and knows the client."""
        return {(name, client) for name in self.pods()}

    def is_direct(self) -> bool:
        """Whether each pod answers outside clients of both families, whose own address it sees."""
        return all(self.seen(ip) == self.everybody(CLIENTS[family]) for family, ip in self.vips.items())

    def annotate(self, value: str) -> None:
        """Give the Service another way of forwarding; `-` takes the annotation away."""
        word = f"{ANNOTATION}-" if value == "-" else f"{ANNOTATION}={value}"
        self.kubectl("annotate", "service", NAME, word, "--overwrite")

    def unprepare(self) -> None:
        """Have pods without the init container, whose program then has no VIP to listen on."""
        (container,) = self.deployment["spec"]["template"]["spec"]["containers"]
        args = [each for each in container["args"] if not each.startswith("--udp-listen-addresses=")]
        self.patch_pods(initContainers=None, containers=[{**container, "args": args}])

    def prepare(self) -> None:
        """And with it again."""
        spec = self.deployment["spec"]["template"]["spec"]
        self.patch_pods(initContainers=spec["initContainers"], containers=spec["containers"])

    def patch_pods(self, **spec: object) -> None:
        """Change the Deployment's pods, and wait until the new ones have taken the old ones' place."""
        patch = json.dumps({"spec": {"template": {"spec": spec}}})
        self.kubectl("patch", f"deployment/{NAME}", "--type=merge", f"--patch={patch}")
        self.roll()


def _answer(line: str) -> tuple[str, str]:
    """Of a line such as `answer video-5d9-x7c2p 192.0.2.1:40000`."""
    words = line.split()
    if len(words) != 3 or not words[1].startswith(NAME):
        return NO_ANSWER
    return words[1], words[2].rpartition(":")[0].strip("[]")
