"""What the API server fills in where an object leaves a field open; objects from files never pass it.

The rules are SetDefaults of core/v1 Service and discovery/v1 EndpointSlice (pkg/apis/*/v1/defaults.go of
Kubernetes 1.36) and the allocation of ClusterIPs. They hold for objects of the API as well, where these fields are
never open. Of those that have no default, `unset` names in words what is missing.

Not here, since nothing is derived from it: targetPort (endpoints have their own ports), ipFamilyPolicy. Policies
are Cluster and conditions are ready unless they specify otherwise, which is how `kube.service` and
`kube.endpoint_slice` compare them.
"""

from collections.abc import Collection

from ipvsproxy.base.address import family, parse_ip
from ipvsproxy.kube.raw import ServiceSpec

NAMESPACE = "default"
PROTOCOL = "TCP"
PORT_NAME = ""
AFFINITY_SECONDS = 10800
HEADLESS = "None"
HEADLESS_SERVICE = "headless (clusterIP None): clients get the addresses of its endpoints from the DNS"
EXTERNAL_NAME = "ExternalName"
FAMILY_NAMES = {4: "IPv4", 6: "IPv6"}
ALLOCATED = "the API server would allocate one, a file must name it"
NODE_PORT = "NodePort"


def cluster_ips(spec: ServiceSpec) -> tuple[str, ...]:
    """Return clusterIPs, or the one clusterIP; empty while none is allocated."""
    return tuple(filter(None, spec.cluster_ips or ())) or tuple(filter(None, (spec.cluster_ip,)))


def family_name(text: str) -> str:
    """Return what ipFamilies has for a ClusterIP, empty for what is no address."""
    try:
        return FAMILY_NAMES[family(parse_ip(text))]
    except ValueError:
        return ""


def unset(spec: ServiceSpec, texts: Collection[str]) -> list[str]:
    """Return what the API server would allocate and a file must contain itself; `texts` are the ClusterIPs.

    A load balancer's Service does without NodePorts: its own addresses work.
    """
    if not texts:
        return [f"spec.clusterIP: missing; {ALLOCATED}; not served"]
    if not spec.ports:
        return ["spec.ports: missing; nothing is served"]
    if spec.type != NODE_PORT:
        return []
    return [
        f"spec.ports[{index}].nodePort: missing; {ALLOCATED}; no NodePort"
        for index, port in enumerate(spec.ports)
        if not port.node_port
    ]
