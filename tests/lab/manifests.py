"""Kubernetes objects for tests, as plain dictionaries, and the folder they are written to.

Only what differs from test to test is an argument; everything else can be changed in the returned
dictionary before it is written. Files are replaced atomically, like a careful operator does.
"""

from __future__ import annotations

import itertools
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import yaml

from tests.support.api_object import ApiObject

if TYPE_CHECKING:
    from tests.lab.lab import Lab, LabHost, LabNode

_numbers = itertools.count(1)
_check_ports: dict[str, int] = {}


class ManifestFolder:
    """A folder of manifests that a proxy watches."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path

    def write(self, name: str, *objects: ApiObject) -> pathlib.Path:
        """Put the objects into NAME.yaml, in place of what it held."""
        target = self.path / f"{name}.yaml"
        fresh = self.path / f".{name}.{next(_numbers)}.tmp"
        fresh.write_text(yaml.safe_dump_all(objects, sort_keys=False))
        os.replace(fresh, target)  # noqa: PTH105
        return target

    def remove(self, name: str) -> None:
        (self.path / f"{name}.yaml").unlink()

    def write_nodes(self, lab: Lab) -> None:
        """Describe the lab's nodes in nodes.yaml."""
        self.write("nodes", *(node_object(node) for node in lab.nodes))


def port(number: int, target: int, proto: str = "TCP", name: str = "", node_port: int = 0) -> ApiObject:
    """One port of a Service; endpoint_slice reads the same dictionaries."""
    made: ApiObject = {"port": number, "targetPort": target, "protocol": proto}
    return made | ({"name": name} if name else {}) | ({"nodePort": node_port} if node_port else {})


def service(
    name: str,
    ports: Sequence[ApiObject],
    cluster_ips: Sequence[str],
    *,
    type_: str = "ClusterIP",
    ingress: Sequence[str] = (),
    **spec: Any,
) -> ApiObject:
    """Make a Service; further fields of its spec by their own names (externalTrafficPolicy="Local")."""
    families = ["IPv6" if ":" in address else "IPv4" for address in cluster_ips]
    fixed = {
        "type": type_,
        "clusterIP": cluster_ips[0],
        "clusterIPs": list(cluster_ips),
        "ipFamilies": families,
        "ipFamilyPolicy": "RequireDualStack" if len(families) == 2 else "SingleStack",
        "ports": list(ports),
        "selector": {"app": name},
        "sessionAffinity": "None",
        "internalTrafficPolicy": "Cluster",
    }
    if type_ == "LoadBalancer" and spec.get("externalTrafficPolicy") == "Local":
        # As the API server would: one for each Service, which keeps it.
        fixed["healthCheckNodePort"] = _check_ports.setdefault(name, 32300 + len(_check_ports))
    made: ApiObject = {"apiVersion": "v1", "kind": "Service", "metadata": _metadata(name), "spec": fixed | spec}
    if ingress:
        addresses = [{"ip": address, "ipMode": "VIP"} for address in ingress]
        made["status"] = {"loadBalancer": {"ingress": addresses}}
    return made


def endpoint_slice(
    service_name: str,
    ports: Sequence[ApiObject],
    endpoints: Sequence[ApiObject],
    *,
    family: int = 4,
    suffix: str = "",
) -> ApiObject:
    """Make an EndpointSlice for a Service's ports, out of endpoint() dictionaries."""
    name = f"{service_name}-{suffix or f'ipv{family}'}"
    metadata = _metadata(name) | {"labels": {"kubernetes.io/service-name": service_name}}
    slice_ports = [{"name": p.get("name", ""), "port": p["targetPort"], "protocol": p["protocol"]} for p in ports]
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": metadata,
        "addressType": f"IPv{family}",
        "ports": slice_ports,
        "endpoints": list(endpoints),
    }


def dual_slices(lab: Lab, name: str, ports: Sequence[ApiObject], hosts: Iterable[LabHost]) -> list[ApiObject]:
    """Make a slice for each family, with ready pods."""
    pods = list(hosts)
    return [endpoint_slice(name, ports, [endpoint(lab, pod, family=f) for pod in pods], family=f) for f in (4, 6)]


def endpoint(
    lab: Lab,
    host: LabHost,
    *,
    family: int = 4,
    ready: bool = True,
    serving: bool = True,
    terminating: bool = False,
) -> ApiObject:
    """Make an endpoint out of a pod (or a node, for a pod in the host's network)."""
    node = host if host in lab.nodes else lab.node_of(host)
    return {
        "addresses": [host.address(family)],
        "conditions": {"ready": ready, "serving": serving, "terminating": terminating},
        "nodeName": node.name,
        "targetRef": {"kind": "Pod", "name": host.name},
    }


def node_object(node: LabNode) -> ApiObject:
    """Make the Node object of a lab's node."""
    cidrs = list(node.pod_cidrs)
    metadata = {"name": node.name, "uid": f"uid-{node.name}", "labels": {"kubernetes.io/hostname": node.name}}
    addresses = [{"type": "InternalIP", "address": address} for address in (node.ipv4, node.ipv6)]
    addresses.append({"type": "Hostname", "address": node.name})
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": metadata,
        "spec": {"podCIDR": cidrs[0], "podCIDRs": cidrs},
        "status": {"addresses": addresses},
    }


def _metadata(name: str) -> ApiObject:
    return {"name": name, "namespace": "default", "uid": f"uid-{name}"}
