"""What the trials ask: a web server on each node behind Services of all types, and a client pod on each node."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from tests.cluster import programs
from tests.cluster.binaries import Kube
from tests.cluster.images import AGNHOST
from tests.cluster.kubectl import Kubectl
from tests.cluster.place import Cluster
from tests.cluster.traffic import Origin

NODE_PORT, NODE_PORT_UDP = 30080, 30081
HTTP, UDP = 8080, 8081
READY_SECONDS = 900
NAMESPACE = "default"
# On a busy machine an answer may take its time; an endpoint that goes for that would refuse connections.
PATIENT = {"timeoutSeconds": 10, "failureThreshold": 6}


def daemonset(name: str, args: list[str], *, probe: bool) -> dict[str, Any]:
    container: dict[str, Any] = {"name": name, "image": AGNHOST, "args": args, "imagePullPolicy": "IfNotPresent"}
    if probe:
        container["readinessProbe"] = {
            "httpGet": {"path": "/hostname", "port": HTTP},
            "periodSeconds": 2,
            **PATIENT,
        }
    labels = {"app": name}
    pod = {"terminationGracePeriodSeconds": 5, "tolerations": [{"operator": "Exists"}], "containers": [container]}
    return {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {"selector": {"matchLabels": labels}, "template": {"metadata": {"labels": labels}, "spec": pod}},
    }


def service(name: str, kind: str, **spec: Any) -> dict[str, Any]:
    tcp: dict[str, Any] = {"name": "http", "port": 80, "targetPort": HTTP}
    udp: dict[str, Any] = {"name": "udp", "port": 81, "targetPort": UDP, "protocol": "UDP"}
    if kind == "NodePort":
        tcp["nodePort"], udp["nodePort"] = NODE_PORT, NODE_PORT_UDP
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {"type": kind, "selector": {"app": "web"}, "ports": [tcp, udp], **spec},
    }


def objects() -> list[dict[str, Any]]:
    netexec = ["netexec", f"--http-port={HTTP}", f"--udp-port={UDP}"]
    return [
        daemonset("web", netexec, probe=True),
        daemonset("client", ["pause"], probe=False),
        service("cluster", "ClusterIP"),
        service("sticky", "ClusterIP", sessionAffinity="ClientIP"),
        service("node", "NodePort"),
        service("balanced", "LoadBalancer"),
        service("local", "LoadBalancer", externalTrafficPolicy="Local"),
    ]


@dataclass(frozen=True, slots=True)
class Application:
    """Addresses of what was installed."""

    cluster: Cluster
    ips: dict[str, str]
    """ClusterIPs by the name of the Service."""
    balanced: str
    local: str
    clients: dict[str, str]
    """The client pod's address by the name of its node."""

    def targets(self) -> dict[Origin, list[str]]:
        """Requests of all kinds from everywhere (steady.py).

        To the NodePort of another node, nodes and pods keep one connection: of each new one that node would have
        an entry, for two minutes, that takes replies to the same port of connections which only pass through it.
        """
        inner = [f"{kind}:{self.ips[name]}:80" for name in ("cluster", "sticky") for kind in ("new", "kept")]
        inner.append(f"udp:{self.ips['cluster']}:81")
        ports = [f"new:{node.ips[0]}:{NODE_PORT}" for node in self.cluster.nodes]
        outer = [f"{kind}:{ip}:80" for ip in (self.balanced, self.local) for kind in ("new", "kept")]
        outer += [
            f"kept:{self.cluster.nodes[0].ips[0]}:{NODE_PORT}",
            f"udp:{self.cluster.nodes[0].ips[0]}:{NODE_PORT_UDP}",
        ]
        wanted = {Origin(): [*ports, *outer]}
        for node in self.cluster.nodes:
            kinds = ("new" if each == node else "kept" for each in self.cluster.nodes)
            near = [
                f"{kind}:{each.ips[0]}:{NODE_PORT}" for kind, each in zip(kinds, self.cluster.nodes, strict=True)
            ]
            wanted[Origin(node)] = [f"new:{self.ips['cluster']}:80", *near]
            wanted[Origin(node, self.clients[node.name])] = [*inner, *near, f"new:{self.balanced}:80"]
        return wanted


class RunningApplication(NamedTuple):
    """A cluster with the application on it."""

    cluster: Cluster
    kube: Kube
    kubectl: Kubectl
    application: Application


def install(cluster: Cluster, kubectl: Kubectl) -> Application:
    """Return when all of it is ready and has its addresses."""
    kubectl.apply(objects())
    for name in ("web", "client"):
        kubectl("rollout", "status", "daemonset", name, f"--timeout={READY_SECONDS}s")
    programs.wait("the load balancers have no addresses", lambda: all(_balancers(kubectl)), READY_SECONDS)
    balanced, local = _balancers(kubectl)
    services = {each["metadata"]["name"]: each["spec"]["clusterIP"] for each in kubectl.get("services")["items"]}
    return Application(cluster, services, balanced, local, client_ips(kubectl))


def client_ips(kubectl: Kubectl) -> dict[str, str]:
    """The client pods' addresses by node; one that has rebooted has another."""
    pods = kubectl.get("pods", "--selector=app=client")["items"]
    return {pod["spec"]["nodeName"]: pod["status"]["podIP"] for pod in pods}


def _balancers(kubectl: Kubectl) -> list[str]:
    found = []
    for name in ("balanced", "local"):
        status = kubectl.get("service", name)["status"]["loadBalancer"]
        found.append((status.get("ingress") or [{}])[0].get("ip", ""))
    return found
