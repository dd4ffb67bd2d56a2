"""Objects of the API with something wrong in them: valid ones, mutated anywhere with whatever hurts parsers."""

import copy

from hypothesis import strategies as st

INJECTIONS = [
    "10.96.0.1 }; flush ruleset; add element inet x y { 1.1.1.1",
    '"; flush ruleset; #',
    "10.96.0.9\nflush ruleset",
    "$(reboot)",
    "' || delete table inet ipvsproxy",
    "web\r\nE1128 00:00:00.000000 1 loop.py:1] forged",
    "\x1b[2J\x00\x7f\x9b",
    "a\u2028b\u202ec",
    "%s%n{0}{event}",
    "../../etc/passwd",
]
ADDRESSES = [
    "::ffff:10.96.0.77", "010.096.000.077", "10.96.0.256", "10.96.0", "10.96.0.1/32", "fe80::1%eth0", "::",
    "255.255.255.255", "127.0.0.1", "224.0.0.1", "1" * 400, "::1", "fd00::g", " 10.96.0.9", "10.96.0.100",
    "192.0.2.1", "0.0.0.0",
]  # fmt: skip
RANGES = [
    "10.0.0.0/33",
    "0.0.0.0/0",
    "::ffff:10.0.0.0/96",
    "10.0.0.0/-1",
    "10.0.0.0/08",
    "x/8",
    "10.0.0.1/8",
    "::/129",
]
NUMBERS = [-1, 0, 65536, 2**31, 2**63, 2**70, 1.5, 80.0, 1e400, float("nan")]
OTHERS = [
    "a\ud800b",
    None,
    True,
    [],
    {},
    [[]],
    {"": {}},
    [None],
    {"a": 1},
    "",
    "x" * 100_000,
    "None",
    "TCP",
    "tcp",
    "SCTP",
    "Local",
]
EVERYTHING = [*INJECTIONS, *ADDRESSES, *RANGES, *NUMBERS, *OTHERS]
VALUES = st.sampled_from(EVERYTHING)


def service(name, ip, **spec):
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": name, "namespace": "default", "uid": "u", "creationTimestamp": "2026-01-01T00:00:00Z",
            "labels": {"a": "b"}, "annotations": {"ipvsproxy.io/drain-timeout": "30s", "x": "y"},
        },
        "spec": {
            "type": "LoadBalancer", "clusterIP": ip, "clusterIPs": [ip], "ipFamilies": ["IPv4"],
            "externalIPs": ["198.51.100.7"], "externalTrafficPolicy": "Local", "internalTrafficPolicy": "Cluster",
            "loadBalancerSourceRanges": ["10.0.0.0/8", "192.0.2.0/24"], "healthCheckNodePort": 32001,
            "ports": [
                {"name": "web", "port": 80, "nodePort": 30080, "protocol": "TCP", "targetPort": 8080},
                {"name": "dns", "port": 53, "nodePort": 30053, "protocol": "UDP"},
            ],
            "sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 600}},
            **spec,
        },
        "status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.7", "ipMode": "VIP"}, {"hostname": "lb"}]}},
    }  # fmt: skip


def endpoint_slice(name, of, *addresses):
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": name, "namespace": "default", "labels": {"kubernetes.io/service-name": of},
            "annotations": {"endpoints.kubernetes.io/last-change-trigger-time": "2026-01-01T00:00:00Z"},
        },
        "addressType": "IPv4",
        "ports": [
            {"name": "web", "port": 8080, "protocol": "TCP"},
            {"name": "dns", "port": 53, "protocol": "UDP"},
        ],
        "endpoints": [
            {
                "addresses": [address], "nodeName": "node1", "zone": "a",
                "conditions": {"ready": True, "serving": True, "terminating": False},
                "hints": {"forZones": [{"name": "a"}], "forNodes": [{"name": "node1"}]},
            }
            for address in addresses
        ],
    }  # fmt: skip


def node(name="node1"):
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": {"topology.kubernetes.io/zone": "a"}},
        "spec": {"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24"], "taints": [{"key": "a"}]},
        "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.1"}]},
    }


def places(tree, path=()):
    """Yield the path of everything in a tree."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for name, value in items:
        yield (*path, name)
        yield from places(value, (*path, name))


@st.composite
def mutated(draw, tree):
    """Return a copy with one to three places replaced, removed, doubled, or under a hostile key."""
    copied = copy.deepcopy(tree)
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(sorted(places(copied), key=str) or [()]))
        if path:
            _mutate(copied, path, draw)
    return copied


def _mutate(tree, path, draw):
    *parents, last = path
    place = tree
    for part in parents:
        place = place[part]
    how = draw(st.sampled_from(["replace", "replace", "replace", "remove", "double", "key"]))
    if how == "replace":
        place[last] = copy.deepcopy(draw(VALUES))
    elif how == "remove":
        del place[last]
    elif how == "double" and isinstance(place, list):
        place.append(copy.deepcopy(place[last]))
    elif isinstance(place, dict):
        place[draw(st.sampled_from(INJECTIONS))] = place.pop(last)
