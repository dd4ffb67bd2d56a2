"""Scenarios of our own for flows-more.json (see write_more.py). Addresses are others than those of flows.json."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

from tests.support.api_object import ApiObject

NODE_IP, NODE_IP6, SECOND_IP = "172.16.5.4", "2001:db8:5::4", "172.16.6.4"
POD, FAR, CLIENT = "10.64.3.7", "10.64.9.7", "198.51.100.77"
POD6, FAR6, CLIENT6 = "fd00:64:3::7", "fd00:64:9::7", "2001:db8:77::1"
LOCAL, REMOTE = "10.64.3.20", "10.64.8.20"
LOCAL6, REMOTE6 = "fd00:64:3::20", "fd00:64:8::20"
VIP, VIP6, LB = "10.99.0.30", "fd00:99::30", "203.0.113.50"
BOTH, BOTH6 = (f"{LOCAL}:8080", f"{REMOTE}:8080"), (f"[{LOCAL6}]:8080", f"[{REMOTE6}]:8080")
DETECTORS = {
    "cluster-cidr": {"detectLocalMode": "ClusterCIDR", "clusterCIDRs": ["10.64.0.0/16", "fd00:64::/32"]},
    "node-cidr": {"detectLocalMode": "NodeCIDR"},
    "bridge": {"detectLocalMode": "BridgeInterface", "detectLocal": {"bridgeInterface": "cbr7"}},
    "prefix": {"detectLocalMode": "InterfaceNamePrefix", "detectLocal": {"interfaceNamePrefix": "cali"}},
}
HOST_PORT = """
table inet hostport {
	chain prerouting {
		type nat hook prerouting priority dstnat;
		fib daddr type local tcp dport 8443 dnat ip to 10.64.3.99:80
	}
	chain output {
		type nat hook output priority -100;
		fib daddr type local tcp dport 8443 dnat ip to 10.64.3.99:80
	}
}
"""
FORWARD_DROP = """
table ip filter {
	chain FORWARD { type filter hook forward priority filter; policy drop; }
}
table ip6 filter {
	chain FORWARD { type filter hook forward priority filter; policy drop; }
}
"""


def scenario(
    name: str, config: ApiObject, services: Sequence[ApiObject], flows: Sequence[ApiObject], **more: Any
) -> ApiObject:
    """Put a scenario together; `more` adds or replaces whole keys."""
    node = {
        "name": "worker-a",
        "zone": None,
        "primary_ips": [NODE_IP, NODE_IP6],
        "pod_cidrs": ["10.64.3.0/24", "fd00:64:3::/64"],
        "interfaces": {"lo": ["127.0.0.1", "::1"], "ens3": [NODE_IP, NODE_IP6], "ens4": [SECOND_IP]},
    }
    numbered = [flow | {"id": f"{name}/{number:02}"} for number, flow in enumerate(flows, 1)]
    made = {"id": name, "title": name, "family": "IPv4", "node": node, "config": {"scheduler": "rr"} | config}
    members = [endpoint(address) for address in (LOCAL, REMOTE, LOCAL6, REMOTE6)]
    return made | {"services": list(services), "endpoints": members, "flows": numbered} | copy.deepcopy(more)


def endpoint(address: str, *, service: str = "app/web", port: int = 8080) -> ApiObject:
    local = address in (LOCAL, LOCAL6, NODE_IP, "10.64.3.99")
    conditions = {"ready": True, "serving": True, "terminating": False}
    ports = [{"name": "web", "port": port, "protocol": "TCP"}]
    where = {"node": "worker-a" if local else "worker-b", "local": local}
    return {"service": service, "address": address, "ports": ports} | where | conditions


def service(port: int = 80, **more: Any) -> ApiObject:
    ports = [{"name": "web", "port": port, "protocol": "TCP", "targetPort": "web"}]
    made = {"namespace": "app", "name": "web", "type": "ClusterIP", "clusterIP": VIP, "ports": ports}
    return made | {"clusterIPs": [VIP, VIP6]} | more


def balanced(port: int = 80, **more: Any) -> ApiObject:
    """A Service of type LoadBalancer with a NodePort."""
    made = service(port, type="LoadBalancer", loadBalancerIngress=[{"ip": LB, "ipMode": "VIP"}], **more)
    made["ports"][0]["nodePort"] = 31080
    return made


def flow(
    sender: str, source: str, to: str, endpoints: Sequence[str], masquerade: bool | None, **more: Any
) -> ApiObject:
    """Make a flow to ADDRESS PORT, delivered to the endpoints."""
    address, _, port = to.partition(" ")
    made = {
        "name": f"{sender} to {to}",
        "from": sender,
        "src_ip": source,
        "dst_ip": address,
        "dst_port": int(port),
    }
    wanted = {"expect": "endpoints", "endpoints": list(endpoints), "masquerade": masquerade}
    return made | {"proto": "TCP"} | wanted | more


def extras() -> Iterator[ApiObject]:
    yield from map(_detector, DETECTORS)
    yield from map(_remote_pods, DETECTORS)
    yield _masquerade_all()
    yield from map(_scheduler, ("lc", "sh", "mh"))
    yield _host_network()
    yield _host_port()
    yield _forward_drop()
    yield _second_interface()


def _detector(mode: str) -> ApiObject:
    """Everyone to a dual-stack ClusterIP; only a detector of addresses takes pods elsewhere for local ones."""
    far = mode != "cluster-cidr"
    flows = [
        flow("pod", POD, f"{VIP} 80", BOTH, False),
        flow("pod", POD6, f"{VIP6} 80", BOTH6, False),
        flow("remote-pod", FAR, f"{VIP} 80", BOTH, far),
        flow("remote-pod", FAR6, f"{VIP6} 80", BOTH6, far),
        flow("external", CLIENT, f"{VIP} 80", BOTH, True),
        flow("external", CLIENT6, f"{VIP6} 80", BOTH6, True),
        flow("node", NODE_IP, f"{VIP} 80", BOTH, True),
        flow("node", NODE_IP6, f"{VIP6} 80", BOTH6, True),
    ]
    return scenario(f"detector-{mode}", DETECTORS[mode], [service()], flows)


def _remote_pods(mode: str) -> ApiObject:
    """Pods elsewhere against a Local policy: inside for a detector of addresses, else outside."""
    mine = BOTH if mode == "cluster-cidr" else BOTH[:1]
    flows = [
        flow("remote-pod", FAR, f"{LB} 80", mine, False),
        flow("remote-pod", FAR, f"{NODE_IP} 31080", mine, False),
        flow("pod", POD, f"{LB} 80", BOTH, False),
        flow("external", CLIENT, f"{LB} 80", BOTH[:1], False),
    ]
    local = balanced(externalTrafficPolicy="Local", healthCheckNodePort=32100)
    return scenario(f"remote-pods-{mode}", DETECTORS[mode], [local], flows)


def _masquerade_all() -> ApiObject:
    flows = [
        flow("pod", POD, f"{VIP} 80", BOTH, True),
        flow("pod", POD6, f"{VIP6} 80", BOTH6, True),
        flow("remote-pod", FAR, f"{VIP} 80", BOTH, True),
        flow("external", CLIENT, f"{LB} 80", BOTH, True),
    ]
    return scenario("masquerade-all", DETECTORS["cluster-cidr"] | {"masqueradeAll": True}, [balanced()], flows)


def _scheduler(name: str) -> ApiObject:
    flows = [
        flow("pod", POD, f"{VIP} 80", BOTH, False),
        flow("external", CLIENT, f"{NODE_IP} 31080", BOTH, True),
        flow("node", NODE_IP6, f"{VIP6} 80", BOTH6, True),
    ]
    return scenario(f"scheduler-{name}", DETECTORS["cluster-cidr"] | {"scheduler": name}, [balanced()], flows)


def _host_network() -> ApiObject:
    """The API server as its own Service sees it: the endpoint is a process of this node.

    What is delivered to the host itself passes no postrouting hook, with any proxy: nothing to masquerade.
    """
    own = [f"{NODE_IP}:6443"]
    api = service(443, clusterIPs=[VIP])
    flows = [
        flow("pod", POD, f"{VIP} 443", own, False),
        flow("remote-pod", FAR, f"{VIP} 443", own, False),
        flow("external", CLIENT, f"{VIP} 443", own, None),
        flow("node", NODE_IP, f"{VIP} 443", own, None),
    ]
    members = [endpoint(NODE_IP, port=6443)]
    return scenario("host-network-endpoint", DETECTORS["cluster-cidr"], [api], flows, endpoints=members)


def _host_port() -> ApiObject:
    """A hostPort that another program DNATs on every local address, and a Service on the same port number."""
    flows = [
        flow("external", CLIENT, f"{NODE_IP} 8443", ["10.64.3.99:80"], False) | {"by_others": True},
        flow("pod", POD, f"{VIP} 8443", BOTH, False),
        flow("external", CLIENT, f"{VIP} 8443", BOTH, True),
        flow("external", CLIENT, f"{LB} 8443", BOTH, True),
        flow("node", NODE_IP, f"{VIP} 8443", BOTH, True),
    ]
    owner = service(service="app/owner", name="owner", clusterIP="None", clusterIPs=["None"])
    members = [endpoint(LOCAL), endpoint(REMOTE), endpoint("10.64.3.99", service="app/owner", port=80)]
    services = [balanced(8443, clusterIPs=[VIP]), owner]
    config = DETECTORS["cluster-cidr"]
    return scenario("host-port", config, services, flows, endpoints=members, host_rules=HOST_PORT)


def _forward_drop() -> ApiObject:
    flows = [
        flow("pod", POD, f"{VIP} 80", BOTH, False),
        flow("pod", POD6, f"{VIP6} 80", BOTH6, False),
        flow("external", CLIENT, f"{NODE_IP} 31080", BOTH, True),
        flow("external", CLIENT, f"{LB} 80", BOTH, True),
        flow("node", NODE_IP, f"{VIP} 80", BOTH, True),
    ]
    return scenario("forward-drop", DETECTORS["cluster-cidr"], [balanced()], flows, host_rules=FORWARD_DROP)


def _second_interface() -> ApiObject:
    """NodePorts on one of two interfaces."""
    passes: ApiObject = {"expect": "passes-through"}
    flows = [
        flow("external", CLIENT, f"{SECOND_IP} 31080", BOTH, True),
        flow("pod", POD, f"{SECOND_IP} 31080", BOTH, True),
        flow("node", NODE_IP, f"{SECOND_IP} 31080", BOTH, True),
        flow("external", CLIENT, f"{NODE_IP} 31080", (), None, **passes),
        flow("localhost", "127.0.0.1", "127.0.0.1 31080", (), None, **passes),
    ]
    config = DETECTORS["cluster-cidr"] | {"nodePortAddresses": ["172.16.6.0/24"]}
    return scenario("second-interface", config, [balanced()], flows)
