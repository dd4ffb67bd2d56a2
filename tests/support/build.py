"""Short ways to make the values of the plan, with addresses as text.

Addresses follow one convention: pods 10.244.N.x on node N, ClusterIPs 10.96.0.x, load balancers 203.0.113.x,
external IPs 198.51.100.x, node N 192.0.2.N; the same ideas in fd00::/8 and 2001:db8::/32 for IPv6.
"""

from ipvsproxy.base.address import family, parse_cidr, parse_ip
from ipvsproxy.config import Config
from ipvsproxy.config.annotations import DEFAULTS
from ipvsproxy.plan.model import Endpoint, EndpointSlice, Protocol, Service, ServicePort, SlicePort
from ipvsproxy.plan.node import NodeFacts
from ipvsproxy.plan.state import Destination, DestinationAttributes, FrontendKey


def config(**settings):
    return Config(**{"node_name": "node1", **settings})


def node(**settings):
    links = frozenset(map(parse_ip, settings.pop("links", ["192.0.2.1", "10.244.1.1"])))
    cidrs = tuple(map(parse_cidr, settings.pop("pod_cidrs", ["10.244.0.0/16", "fd00:10:244::/48"])))
    return NodeFacts(
        **{
            "name": "node1",
            "addresses": (parse_ip("192.0.2.1"),),
            "link_addresses": links,
            "nodeport_addresses": tuple(sorted(links)),
            "pod_cidrs": cidrs,
            **settings,
        }
    )


def service(name="web", ips=("10.96.0.10",), ports=((80, 0),), **settings):
    """`ports` are (port, nodePort) or (port, nodePort, protocol) or (port, nodePort, protocol, name)."""
    built = tuple(
        ServicePort(rest[1] if rest[1:] else "", Protocol[rest[0] if rest else "TCP"], port, node_port)
        for port, node_port, *rest in ports
    )
    addresses = {key: tuple(map(parse_ip, settings.pop(key, ()))) for key in ("external_ips", "load_balancer_ips")}
    return Service(
        namespace="default",
        name=name,
        annotated=tuple(row.field for row in DEFAULTS.values() if row.field in settings),
        created=settings.pop("created", "2026-01-01T00:00:00Z"),
        cluster_ips=tuple(map(parse_ip, ips)),
        ports=built,
        source_ranges=tuple(map(parse_cidr, settings.pop("source_ranges", ()))),
        **addresses,
        **settings,
    )


def endpoint(address, on="", **settings):
    return Endpoint(parse_ip(address), on or f"node{address.split('.')[2]}", **settings)


def slice_of(service_name, *endpoints, ports=((8080, "TCP", ""),), name=None):
    """`ports` are (number, protocol, name)."""
    pods = tuple(e if isinstance(e, Endpoint) else endpoint(e) for e in endpoints)
    number = family(pods[0].address) if pods else 4
    return EndpointSlice(
        namespace="default",
        name=name or f"{service_name}-{number}",
        service=f"default/{service_name}",
        family=number,
        ports=tuple(SlicePort(port_name, Protocol[protocol], port) for port, protocol, port_name in ports),
        endpoints=pods,
    )


def key(text):
    """Read `address:port/PROTOCOL` (IPv6 in brackets)."""
    rest, _, protocol = text.partition("/")
    address, _, port = rest.rpartition(":")
    return FrontendKey(parse_ip(address.strip("[]")), Protocol[protocol or "TCP"].value, int(port))


def destination(text):
    address, _, port = text.rpartition(":")
    return Destination(parse_ip(address.strip("[]")), int(port))


def weights(state):
    """Return the weight of each destination of a server."""
    return {destination: attributes.weight for destination, attributes in state.destinations.items()}


def weighted(weights):
    """Return destinations that have nothing special but these weights."""
    return {destination: DestinationAttributes(weight) for destination, weight in weights.items()}
