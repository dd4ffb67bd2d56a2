"""The Kubernetes objects of a measurement: Services that are asked, and others that are only there."""

from tests.bench import cluster
from tests.bench.dataplane.rows import (
    BALANCED,
    BALANCER_PORT,
    CLUSTER_IP,
    CLUSTER_IP6,
    ENDPOINT,
    ENDPOINT_PORT,
    LOCAL,
    LOCAL_PORT,
    NODE_PORT,
    POD,
    PORT,
    RANGED,
)
from tests.lab import manifests

FEWEST = 2
"""Services that every measurement has in its first stage."""
OTHER_ENDPOINTS = 5
LABEL = "ipvsproxy.io/tenant"
RANGES = ["192.0.2.0/24", "198.51.100.0/24"]


def node(lab):
    return manifests.node_object(lab.nodes[0])


def first_stage(lab, services):
    """Return the objects of so many Services.

    One of both families with a NodePort, one load balancer for everybody, and others with a ClusterIP.
    """
    ports = [manifests.port(PORT, ENDPOINT_PORT, proto, proto.lower(), NODE_PORT) for proto in ("TCP", "UDP")]
    made = [manifests.service("asked", ports, [CLUSTER_IP, CLUSTER_IP6], type_="NodePort")]
    made += manifests.dual_slices(lab, "asked", ports, [lab.host(ENDPOINT)])
    made += _balancer(lab, "balanced", BALANCED, BALANCER_PORT)
    for number in range(services - FEWEST):
        made += [cluster.service(number), cluster.endpoint_slice(number, OTHER_ENDPOINTS)]
    return made


def tenants(lab, tenant):
    """Return the namespaces of the Services and of another tenant, with a Service there, and the pod that asks."""
    owners = {"default": tenant, "green": "green"}
    found = [
        {
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {"name": name, "labels": {LABEL: owner} if owner else {}},
        }
        for name, owner in owners.items()
    ]
    ips = [{"ip": lab.host(POD).address(family)} for family in (4, 6)]
    found.append({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": POD, "namespace": "default"},
        "spec": {"nodeName": lab.nodes[0].name}, "status": {"podIPs": ips},
    })  # fmt: skip
    other = manifests.service("other", [manifests.port(PORT, ENDPOINT_PORT)], ["10.97.1.1"])
    other["metadata"]["namespace"] = "green"
    return [*found, other]


def second_stage(lab):
    """Return the objects of two load balancers more: one with source ranges, one with a Local policy."""
    return [
        *_balancer(lab, "ranged", RANGED, BALANCER_PORT, loadBalancerSourceRanges=RANGES),
        *_balancer(lab, "local", LOCAL, LOCAL_PORT, externalTrafficPolicy="Local"),
    ]


def _balancer(lab, name, address, port, **spec):
    ports = [manifests.port(port, ENDPOINT_PORT)]
    cluster_ip = f"10.97.0.{address.rpartition('.')[2]}"
    fixed = {"externalTrafficPolicy": "Cluster", "allocateLoadBalancerNodePorts": False} | spec
    endpoints = [manifests.endpoint(lab, lab.host(ENDPOINT))]
    return [
        manifests.service(name, ports, [cluster_ip], type_="LoadBalancer", ingress=[address], **fixed),
        manifests.endpoint_slice(name, ports, endpoints),
    ]
