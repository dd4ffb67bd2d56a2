"""Scenarios of tenants for flows-more.json (see write_more.py).

`namespaces` with their labels, and `pods` of the node, are an addition to the format.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from tests.conformance.extras import (
    BOTH,
    BOTH6,
    CLIENT,
    CLIENT6,
    DETECTORS,
    FAR,
    FAR6,
    LB,
    LOCAL,
    LOCAL6,
    NODE_IP,
    NODE_IP6,
    REMOTE,
    REMOTE6,
    VIP,
    VIP6,
    endpoint,
    flow,
    scenario,
    service,
)
from tests.support.api_object import ApiObject

LABEL = "ipvsproxy.io/tenant"
BLUE, GREEN, UNKNOWN, PLAIN = (f"10.64.3.{number}" for number in (31, 32, 33, 34))
BLUE6, GREEN6, UNKNOWN6, PLAIN6 = (f"fd00:64:3::{number}" for number in (31, 32, 33, 34))
LB6, EXTERNAL, EXTERNAL6 = "2001:db8:113::50", "198.51.100.50", "2001:db8:51::50"
OTHER, OTHER6 = "10.99.0.31", "fd00:99::31"
DNS, DNS6, OWN_DNS, OWN_DNS6 = "10.99.0.53", "fd00:99::53", "10.99.0.54", "fd00:99::54"
NODE_PORT = 31080
PROTOCOLS = ("TCP", "UDP", "SCTP")
TENANTS: ApiObject = {
    "namespaces": {"app": {LABEL: "blue"}, "green": {LABEL: "green"}, "plain": {}, "kube-system": {}},
    "pods": [
        {"namespace": namespace, "name": f"{namespace}-{family}", "address": address}
        for namespace, addresses in (
            ("app", (BLUE, BLUE6)),
            ("green", (GREEN, GREEN6)),
            ("plain", (PLAIN, PLAIN6)),
        )
        for family, address in zip((4, 6), addresses, strict=True)
    ],
}


class TenantClient(NamedTuple):
    """Who asks in both families, and what becomes of it at a Service of tenant blue."""

    sender: str
    source: str
    source6: str
    expect: str


ASKERS = (
    TenantClient("pod", BLUE, BLUE6, "endpoints"),
    TenantClient("pod", GREEN, GREEN6, "reject"),
    TenantClient("pod", UNKNOWN, UNKNOWN6, "drop"),
    TenantClient("pod", PLAIN, PLAIN6, "endpoints"),
    # Of another node, where it is judged; here it is in the pod ranges, and not known.
    TenantClient("remote-pod", FAR, FAR6, "drop"),
    # Not judged.
    TenantClient("external", CLIENT, CLIENT6, "endpoints"),
    TenantClient("node", NODE_IP, NODE_IP6, "endpoints"),
)
WAYS = ((f"{VIP} 80", f"{VIP6} 80"), (f"{LB} 80", f"{LB6} 80"), (f"{EXTERNAL} 80", f"{EXTERNAL6} 80"))
WAYS += ((f"{NODE_IP} {NODE_PORT}", f"{NODE_IP6} {NODE_PORT}"),)


def tenants() -> Iterator[ApiObject]:
    yield _tenants()
    yield _dropped()
    yield _unknown_namespace()
    yield from map(_dns, (True, False))
    yield _dns_fallback()


def _settings(**more: Any) -> ApiObject:
    return DETECTORS["cluster-cidr"] | {"tenantLabel": LABEL} | more


def _balanced(**more: Any) -> ApiObject:
    """A Service with addresses of every kind in both families, over all protocols."""
    ports = [
        {"name": name.lower(), "port": 80, "protocol": name, "targetPort": name.lower(), "nodePort": NODE_PORT}
        for name in PROTOCOLS
    ]
    ingress = [{"ip": address, "ipMode": "VIP"} for address in (LB, LB6)]
    return service(
        type="LoadBalancer", ports=ports, loadBalancerIngress=ingress, externalIPs=[EXTERNAL, EXTERNAL6], **more
    )


def _members(*addresses: str, service: str = "app/web", protocols: Iterable[str] = PROTOCOLS) -> list[ApiObject]:
    ports = [{"name": name.lower(), "port": 8080, "protocol": name} for name in protocols]
    return [endpoint(address, service=service) | {"ports": ports} for address in addresses]


def _sent(asker: TenantClient, way: tuple[str, str], proto: str) -> Iterator[ApiObject]:
    """Yield the flows of an asker by one way, in both families."""
    for source, to, ends in zip((asker.source, asker.source6), way, (BOTH, BOTH6), strict=True):
        if asker.expect == "endpoints":
            keeps_source = asker.sender == "pod" and to.split()[0] in (VIP, VIP6)
            yield flow(asker.sender, source, to, ends, not keeps_source, proto=proto)
        else:
            yield flow(asker.sender, source, to, (), None, proto=proto, expect=asker.expect)


def _tenants() -> ApiObject:
    """A Service of tenant blue, by every way: its own pods, those of others, and who is no pod."""
    flows = [
        made
        for asker, way, proto in itertools.product(ASKERS, WAYS, PROTOCOLS)
        for made in _sent(asker, way, proto)
    ]
    return scenario(
        "tenants", _settings(), [_balanced()], flows, endpoints=_members(LOCAL, REMOTE, LOCAL6, REMOTE6), **TENANTS
    )


def _dropped() -> ApiObject:
    """Others get no answer if so set; a Service can be shared with one tenant, or with all."""
    mine = {"annotations": {"ipvsproxy.io/share-with": "green"}}
    everyone = service(82, name="all", clusterIP="10.99.0.32", clusterIPs=["10.99.0.32"])
    everyone |= {"annotations": {"ipvsproxy.io/share-with": "*"}}
    services = [
        _balanced(**mine),
        service(81, name="other", clusterIP=OTHER, clusterIPs=[OTHER, OTHER6]),
        everyone,
    ]
    flows = [
        *(made for way in WAYS for made in _sent(TenantClient("pod", GREEN, GREEN6, "endpoints"), way, "TCP")),
        flow("pod", GREEN, f"{OTHER} 81", (), None, expect="drop"),
        flow("pod", GREEN6, f"{OTHER6} 81", (), None, expect="drop"),
        flow("pod", BLUE, f"{OTHER} 81", [f"{LOCAL}:8080"], False),
        flow("pod", BLUE6, f"{OTHER6} 81", [f"[{LOCAL6}]:8080"], False),
        flow("pod", GREEN, "10.99.0.32 82", [f"{LOCAL}:8080"], False),
        flow("pod", UNKNOWN, "10.99.0.32 82", [f"{LOCAL}:8080"], False),
    ]
    members = _members(LOCAL, REMOTE, LOCAL6, REMOTE6)
    members += [endpoint(address, service="app/other") for address in (LOCAL, LOCAL6)]
    members += [endpoint(LOCAL, service="app/all")]
    config = _settings(tenantRefusal="drop")
    return scenario("tenants-dropped", config, services, flows, endpoints=members, **TENANTS)


def _unknown_namespace() -> ApiObject:
    """A namespace that is not known: its Services are for pods of shared ones, its pods reach shared Services."""
    spaces = {name: labels for name, labels in TENANTS["namespaces"].items() if name != "app"}
    shared = service(83, namespace="plain", name="shared", clusterIP=OTHER, clusterIPs=[OTHER, OTHER6])
    flows = [
        flow("pod", BLUE, f"{VIP} 80", (), None, expect="drop"),
        flow("pod", GREEN, f"{VIP} 80", (), None, expect="reject"),
        flow("pod", PLAIN, f"{VIP} 80", BOTH, False),
        flow("pod", PLAIN6, f"{VIP6} 80", BOTH6, False),
        flow("pod", BLUE, f"{OTHER} 83", [f"{REMOTE}:8080"], False),
        flow("pod", BLUE6, f"{OTHER6} 83", [f"[{REMOTE6}]:8080"], False),
    ]
    members = [endpoint(address) for address in (LOCAL, REMOTE, LOCAL6, REMOTE6)]
    members += [endpoint(address, service="plain/shared") for address in (REMOTE, REMOTE6)]
    made = {"endpoints": members, "namespaces": spaces, "pods": TENANTS["pods"]}
    return scenario("tenants-unknown-namespace", _settings(), [service(), shared], flows, **made)


# DNS by tenant.

CLUSTER_DNS, CLUSTER_DNS6, BLUE_DNS, BLUE_DNS6 = LOCAL, LOCAL6, REMOTE, REMOTE6
WHO_ASKS = (
    ("pod", GREEN, GREEN6),
    ("pod", PLAIN, PLAIN6),
    ("pod", UNKNOWN, UNKNOWN6),
    ("node", NODE_IP, NODE_IP6),
)
DNS_PROTOCOLS = ("UDP", "TCP")


def _dns_service(namespace: str, name: str, *addresses: str, **more: Any) -> ApiObject:
    ports = [
        {"name": proto.lower(), "port": 53, "protocol": proto, "targetPort": proto.lower()}
        for proto in DNS_PROTOCOLS
    ]
    where = {"namespace": namespace, "name": name, "clusterIP": addresses[0], "clusterIPs": list(addresses)}
    return service(53, ports=ports) | where | more


def _asked(sender: str, sources: tuple[str, str], answering: tuple[str, str]) -> Iterator[ApiObject]:
    """Yield the questions to the cluster's DNS, in both families, over UDP and TCP."""
    for proto in DNS_PROTOCOLS:
        for source, server, host in zip(sources, (DNS, DNS6), answering, strict=True):
            name = f"[{host}]:8080" if ":" in host else f"{host}:8080"
            yield flow(sender, source, f"{server} 53", [name], sender == "node", proto=proto)


def _dns_scenario(name: str, flows: Iterable[ApiObject], *, has_endpoint: bool, **settings: Any) -> ApiObject:
    annotations = {"ipvsproxy.io/tenant-dns": "true"}
    services = [
        _dns_service("kube-system", "kube-dns", DNS, DNS6),
        _dns_service("app", "dns", OWN_DNS, OWN_DNS6, annotations=annotations),
    ]
    members = _members(CLUSTER_DNS, CLUSTER_DNS6, service="kube-system/kube-dns", protocols=DNS_PROTOCOLS)
    if has_endpoint:
        members += _members(BLUE_DNS, BLUE_DNS6, service="app/dns", protocols=DNS_PROTOCOLS)
    return scenario(name, _settings(**settings), services, list(flows), endpoints=members, **TENANTS)


def _dns(has_endpoint: bool) -> ApiObject:
    """The cluster's DNS Service, in place of which that of tenant blue answers blue's pods, or refuses them."""
    cluster = (CLUSTER_DNS, CLUSTER_DNS6)
    flows = [made for sender, *sources in WHO_ASKS for made in _asked(sender, (sources[0], sources[1]), cluster)]
    own = _asked("pod", (BLUE, BLUE6), (BLUE_DNS, BLUE_DNS6))
    if has_endpoint:
        flows += own
        flows += [flow("pod", GREEN, f"{OWN_DNS} 53", (), None, proto="UDP", expect="reject")]
        flows += [flow("pod", GREEN6, f"{OWN_DNS6} 53", (), None, expect="reject")]
    else:
        flows += [made | {"expect": "reject", "endpoints": [], "masquerade": None} for made in own]
    name = "tenant-dns" if has_endpoint else "tenant-dns-without-endpoint"
    return _dns_scenario(name, flows, has_endpoint=has_endpoint)


def _dns_fallback() -> ApiObject:
    """Without an endpoint the cluster's DNS answers, if so set."""
    flows = _asked("pod", (BLUE, BLUE6), (CLUSTER_DNS, CLUSTER_DNS6))
    return _dns_scenario("tenant-dns-fallback", flows, has_endpoint=False, tenantDNSFallback="true")
