"""Synthetic clusters as the API server would list them: raw JSON, by number of Services and endpoints."""

import json

NODES = 10
LARGEST_SLICE, MOST_PORTS = 1000, 100
"""Endpoints and ports of a slice that the API takes."""


def _ip(base, number):
    return ".".join(str(b) for b in (int.from_bytes(bytes(base)) + number).to_bytes(4))


def cluster_ip(number):
    return _ip((10, 96, 0, 0), number + 11)  # a real API server takes the first for itself


def pod_ip(number, endpoint):
    return _ip((10, 128, 0, 0), number * 64 + endpoint + 1)


def service(number):
    """A Service with the metadata that real ones carry."""
    address = cluster_ip(number)
    return {
        "kind": "Service",
        "apiVersion": "v1",
        "metadata": _metadata(f"service-{number}", number),
        "spec": {
            "ports": [{"name": "http", "protocol": "TCP", "port": 80, "targetPort": 8080}],
            "selector": {"app": f"service-{number}"},
            "clusterIP": address,
            "clusterIPs": [address],
            "type": "ClusterIP",
            "sessionAffinity": "None",
            "ipFamilies": ["IPv4"],
            "ipFamilyPolicy": "SingleStack",
            "internalTrafficPolicy": "Cluster",
        },
        "status": {"loadBalancer": {}},
    }


def endpoint_slice(number, endpoints, shift=0):
    """The slice of a Service; `shift` (below 59) gives its last endpoint another address."""
    metadata = _metadata(f"service-{number}-abcde", number)
    metadata["labels"] = {"kubernetes.io/service-name": f"service-{number}", "app": f"service-{number}"}
    return {
        "kind": "EndpointSlice",
        "apiVersion": "discovery.k8s.io/v1",
        "metadata": metadata,
        "addressType": "IPv4",
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
        "endpoints": [_endpoint(number, e, shift if e == endpoints - 1 else 0) for e in range(endpoints)],
    }


def crowd(endpoints, shift=0):
    """Yield the slices of one Service, each as large as the API takes it; `shift` moves all addresses."""
    for first in range(0, endpoints, LARGEST_SLICE):
        piece = endpoint_slice(0, 0)
        piece["metadata"]["name"] = f"service-0-{first}"
        numbers = range(first, min(endpoints, first + LARGEST_SLICE))
        piece["endpoints"] = [_endpoint(0, n, shift) for n in numbers]
        yield piece


def wide(number, namespace):
    """Return a Service with all ports that the API takes for a slice, and a slice with all endpoints."""
    made, piece = service(number), endpoint_slice(number, 0)
    made["metadata"]["namespace"] = piece["metadata"]["namespace"] = namespace
    ports = [{"name": f"p{port}", "protocol": "TCP", "port": 1000 + port} for port in range(MOST_PORTS)]
    made["spec"]["ports"] = piece["ports"] = ports
    piece["endpoints"] = [_endpoint(20 * number, n, 0) for n in range(LARGEST_SLICE)]
    return made, piece


def urgent():
    """The API server's own Service and DNS, with their slices, as every cluster has them."""
    services, slices = [], []
    for name, namespace, address, port, protocol in (
        ("kubernetes", "default", "10.95.0.1", 443, "TCP"),
        ("kube-dns", "kube-system", "10.95.0.10", 53, "UDP"),
    ):
        ports = [{"name": "main", "protocol": protocol, "port": port}]
        made, piece = service(0), endpoint_slice(0, 2)
        made["metadata"] |= {"name": name, "namespace": namespace}
        made["spec"] |= {"ports": ports, "clusterIP": address, "clusterIPs": [address]}
        piece["metadata"] |= {"name": f"{name}-abcde", "namespace": namespace}
        piece["metadata"]["labels"] = {"kubernetes.io/service-name": name}
        piece["ports"] = ports
        services.append(made)
        slices.append(piece)
    return services, slices


def lists(services, endpoints):
    """Both lists as raw JSON; the urgent Services come last, as the letter they begin with may have it."""
    first, pieces = urgent()
    return (
        as_list("Service", [service(n) for n in range(services)] + first),
        as_list("EndpointSlice", [endpoint_slice(n, endpoints) for n in range(services)] + pieces),
    )


def as_list(kind, items):
    return json.dumps({"kind": f"{kind}List", "apiVersion": "v1", "metadata": {}, "items": items}).encode()


def _endpoint(number, endpoint, shift):
    return {
        "addresses": [pod_ip(number, endpoint + shift)],
        "conditions": {"ready": True, "serving": True, "terminating": False},
        "nodeName": f"node{(number + endpoint) % NODES}",
        "targetRef": {"kind": "Pod", "name": f"service-{number}-{endpoint}", "namespace": "bench"},
        "zone": "zone-a",
    }


def _metadata(name, number):
    return {
        "name": name,
        "namespace": "bench",
        "uid": f"00000000-0000-4000-8000-{number:012d}",
        "resourceVersion": str(1000 + number),
        "creationTimestamp": "2026-01-01T00:00:00Z",
        "managedFields": [
            {
                "manager": "kube-controller-manager",
                "operation": "Update",
                "apiVersion": "v1",
                "time": "2026-01-01T00:00:00Z",
                "fieldsType": "FieldsV1",
                "fieldsV1": {"f:spec": {"f:ports": {".": {}, 'k:{"port":80,"protocol":"TCP"}': {".": {}}}}},
            }
        ],
    }
