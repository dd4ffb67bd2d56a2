"""What a cluster has beside Kubernetes: a name server and a load balancer controller, both on this machine."""

from __future__ import annotations

import sys
from typing import Any

from tests.cluster import programs
from tests.cluster.binaries import Kube
from tests.cluster.kubectl import Kubectl
from tests.cluster.place import API_IP, DNS_IP, DNS_PORT, REPO, Cluster

COREFILE = f"""cluster.local:{DNS_PORT} in-addr.arpa:{DNS_PORT} ip6.arpa:{DNS_PORT} {{
    bind {API_IP}
    kubernetes cluster.local in-addr.arpa ip6.arpa {{
        kubeconfig %s
        pods insecure
        ttl 5
    }}
}}
"""
_META = {"name": "kube-dns", "namespace": "kube-system"}


def start(cluster: Cluster, kube: Kube, kubectl: Kubectl) -> None:
    kubectl.apply([dns_service(), dns_slice()])
    programs.start(cluster, "dns", dns_words(cluster, kube), cwd=REPO)
    programs.start(cluster, "balancer", [sys.executable, "-m", "tests.cluster.balancer", cluster.admin], cwd=REPO)


def dns_words(cluster: Cluster, kube: Kube) -> list[object]:
    """CoreDNS where there is its binary, otherwise the stand-in."""
    if not kube.has("coredns"):
        return [sys.executable, "-m", "tests.cluster.dns", cluster.admin]
    file = cluster.folder / "Corefile"
    file.write_text(COREFILE % cluster.admin)
    return [kube["coredns"], "-conf", file]


def dns_service() -> dict[str, Any]:
    """Without a selector: the name server is no pod."""
    names = (("dns", "UDP"), ("dns-tcp", "TCP"))
    ports = [{"name": name, "port": 53, "protocol": protocol, "targetPort": DNS_PORT} for name, protocol in names]
    spec = {
        "clusterIP": DNS_IP,
        "clusterIPs": [DNS_IP],
        "ports": ports,
    }
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {**_META, "labels": {"k8s-app": "kube-dns"}},
        "spec": spec,
    }


def dns_slice() -> dict[str, Any]:
    labels = {"kubernetes.io/service-name": "kube-dns"}
    ports = [
        {"name": name, "port": DNS_PORT, "protocol": protocol}
        for name, protocol in (("dns", "UDP"), ("dns-tcp", "TCP"))
    ]
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": "kube-dns-outside", "namespace": "kube-system", "labels": labels},
        "addressType": "IPv4",
        "ports": ports,
        "endpoints": [{"addresses": [API_IP], "conditions": {"ready": True}}],
    }
