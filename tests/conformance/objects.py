"""A scenario as the proxy gets it: Kubernetes objects for its manifests folder, and command-line flags.

Odd values (a blank before a range, a ClusterIP that an ExternalName has left behind) go through as they
are: coping with them is part of what is tested.
"""

from __future__ import annotations

from collections.abc import Iterator

from tests.conformance.scenario_file import Scenario, ScenarioEndpoint
from tests.support.api_object import ApiObject

OWN_KEYS = {"namespace", "name", "note", "labels", "annotations", "loadBalancerIngress"}
OWN_KEYS |= {"sessionAffinityTimeoutSeconds", "ports", "clusterIP", "type", "status"}
DEFAULT_BRIDGE = "cni0"
DEFAULT_PREFIX = "veth"


def objects(scenario: Scenario) -> list[ApiObject]:
    """Return the Node, the Services and the slices, and the namespaces and pods of tenants."""
    services = [*map(_service, scenario.services), *_slices(scenario)]
    return [node_object(scenario), *services, *_namespaces(scenario), *_pods(scenario)]


def _namespaces(scenario: Scenario) -> Iterator[ApiObject]:
    for name, labels in scenario.namespaces.items():
        yield {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}}


def _pods(scenario: Scenario) -> Iterator[ApiObject]:
    for pod in scenario.pods:
        metadata = {"name": pod["name"], "namespace": pod["namespace"]}
        status = {"phase": "Running", "podIP": pod["address"], "podIPs": [{"ip": pod["address"]}]}
        spec = {"nodeName": scenario.node_name}
        yield {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec, "status": status}


def node_object(scenario: Scenario) -> ApiObject:
    node, name = scenario.node, scenario.node_name
    labels = {"kubernetes.io/hostname": name}
    if node.get("zone") is not None:
        labels["topology.kubernetes.io/zone"] = node["zone"]
    cidrs = node.get("pod_cidrs") or []
    addresses = [{"type": "InternalIP", "address": text} for text in node.get("primary_ips") or ()]
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "uid": f"uid-{name}", "labels": labels},
        "spec": {"podCIDR": cidrs[0], "podCIDRs": cidrs} if cidrs else {},
        "status": {"addresses": [*addresses, {"type": "Hostname", "address": name}]},
    }


def service(namespace: str, name: str, cluster_ip: str, ports: list[ApiObject]) -> ApiObject:
    """Make a plain ClusterIP Service."""
    return _service({"namespace": namespace, "name": name, "clusterIP": cluster_ip, "ports": ports})


def _service(raw: ApiObject) -> ApiObject:
    spec: ApiObject = {key: value for key, value in raw.items() if key not in OWN_KEYS and value is not None}
    spec["type"] = raw.get("type") or "ClusterIP"
    spec["ports"] = [{"targetPort": port.get("port")} | port for port in raw.get("ports") or ()]
    _add_cluster_ips(spec, raw.get("clusterIP"))
    seconds = raw.get("sessionAffinityTimeoutSeconds")
    if seconds is not None:
        spec["sessionAffinityConfig"] = {"clientIP": {"timeoutSeconds": seconds}}
    made = {"apiVersion": "v1", "kind": "Service", "metadata": _metadata(raw), "spec": spec}
    status = raw.get("status") or {"loadBalancer": {"ingress": raw.get("loadBalancerIngress") or []}}
    return made | {"status": status}


def _metadata(raw: ApiObject) -> ApiObject:
    namespace, name = raw.get("namespace") or "default", raw["name"]
    metadata: ApiObject = {"namespace": namespace, "name": name, "uid": f"uid-{namespace}-{name}"}
    return metadata | {key: raw[key] for key in ("labels", "annotations") if raw.get(key)}


def _add_cluster_ips(spec: ApiObject, cluster_ip: str | None) -> None:
    texts = spec.get("clusterIPs") or ([cluster_ip] if cluster_ip else [])
    if not texts:
        return
    spec["clusterIP"], spec["clusterIPs"] = texts[0], texts
    if texts[0] != "None":
        spec.setdefault("ipFamilies", ["IPv6" if ":" in text else "IPv4" for text in texts])
        spec.setdefault("ipFamilyPolicy", "RequireDualStack" if len(texts) == 2 else "SingleStack")


def _slices(scenario: Scenario) -> Iterator[ApiObject]:
    """One slice for all endpoints that agree in Service, family and ports."""
    parts: dict[tuple[object, ...], list[ScenarioEndpoint]] = {}
    for endpoint in scenario.endpoints:
        family = "IPv6" if ":" in endpoint.address else "IPv4"
        parts.setdefault((endpoint.service, family, endpoint.ports), []).append(endpoint)
    for number, ((full_name, family, ports), members) in enumerate(parts.items(), 1):
        namespace, _, name = str(full_name).rpartition("/")
        slice_name = f"{name}-{number}"
        yield {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "namespace": namespace or "default",
                "name": slice_name,
                "uid": f"uid-{namespace}-{slice_name}",
                "labels": {"kubernetes.io/service-name": name},
            },
            "addressType": family,
            "ports": [{"name": n, "port": p, "protocol": proto.upper()} for n, p, proto in ports],  # type: ignore[attr-defined]
            "endpoints": [_slice_endpoint(member, scenario) for member in members],
        }


def _slice_endpoint(endpoint: ScenarioEndpoint, scenario: Scenario) -> ApiObject:
    raw = endpoint.raw
    conditions = {key: raw[key] for key in ("ready", "serving", "terminating") if raw.get(key) is not None}
    made: ApiObject = {"addresses": [endpoint.address], "conditions": conditions}
    node = endpoint.node or (scenario.node_name if endpoint.local else None)
    if node:
        made["nodeName"] = node
    if raw.get("zone"):
        made["zone"] = raw["zone"]
    zones = [{"name": name} for name in raw.get("zone_hints") or ()]
    nodes = [{"name": name} for name in raw.get("node_hints") or ()]
    if zones or nodes:
        made["hints"] = ({"forZones": zones} if zones else {}) | ({"forNodes": nodes} if nodes else {})
    return made


def detector(scenario: Scenario) -> tuple[str, str]:
    """Return the mode of local detection, and the bridge or prefix that it needs."""
    mode = scenario.config.get("detectLocalMode") or "ClusterCIDR"
    extra = scenario.config.get("detectLocal") or {}
    kind, default = {
        "BridgeInterface": ("bridge", DEFAULT_BRIDGE),
        "InterfaceNamePrefix": ("prefix", DEFAULT_PREFIX),
    }.get(mode, ("", ""))
    named = (value for key, value in extra.items() if kind and kind in key.lower() and value)
    return mode, next(named, default)


def flags(scenario: Scenario) -> list[str]:
    """Return the command-line flags that mean the scenario's configuration."""
    config = scenario.config
    mode, name = detector(scenario)
    made = [f"--hostname-override={scenario.node_name}", f"--detect-local-mode={mode}"]
    if mode == "BridgeInterface":
        made.append(f"--pod-bridge-interface={name}")
    if mode == "InterfaceNamePrefix":
        made.append(f"--pod-interface-name-prefix={name}")
    lists = {"clusterCIDRs": "cluster-cidr", "nodePortAddresses": "nodeport-addresses"}
    lists["excludeCIDRs"] = "ipvs-exclude-cidrs"
    made += [f"--{flag}={','.join(config[key])}" for key, flag in lists.items() if config.get(key)]
    if config.get("scheduler"):
        made.append(f"--ipvs-scheduler={config['scheduler']}")
    if config.get("dataPath"):
        made.append(f"--data-path={config['dataPath']}")
    tenants = {
        "tenantLabel": "tenant-label",
        "tenantRefusal": "tenant-refusal",
        "tenantDNSFallback": "tenant-dns-fallback",
    }
    made += [f"--{flag}={config[key]}" for key, flag in tenants.items() if config.get(key)]
    if config.get("masqueradeAll"):
        made.append("--masquerade-all=true")
    return made
