"""Hypothesis strategies for a small cluster full of conflicts: a few Services that want the same addresses."""

import errno

from hypothesis import strategies as st

from ipvsproxy.base.address import parse_cidr, parse_ip
from ipvsproxy.plan.model import Node, Protocol
from tests.support.build import endpoint, service, slice_of
from tests.support.memory_kernel import Fault

NODE_ADDRESS = parse_ip("192.0.2.1")
SHARED = [
    "198.51.100.1", "198.51.100.2", "203.0.113.1", "2001:db8::1",
    "10.96.0.1", "192.0.2.1", "192.0.2.2", "10.244.2.1",
]  # fmt: skip
"""External addresses, the ClusterIP of a Service, a pod's, another node's and the node's own among them."""
OWN_PODS = ("10.244.1.", "fd00:10:244:1:")
WEIGHED = "10.244.1.1"
"""A pod that may have a weight of its own; pods are named by their addresses."""
NAMES = ["EBUSY", "ENOBUFS", "EINTR", "EEXIST", "ESRCH", "ENOENT", "ENOMEM", "EBADF", "EPERM"]
CODES = [getattr(errno, name) for name in NAMES]

names = st.sampled_from(["s1", "s2", "s3", "s4"])
pods = st.sampled_from(["10.244.1.1", "10.244.1.2", "10.244.2.1"])
pods_v6 = st.sampled_from(["fd00:10:244:1::1", "fd00:10:244:2::1"])
shared = st.lists(st.sampled_from(SHARED), unique=True, max_size=2)
ways = st.sampled_from(["refused", "lost", "killed"])
faults = st.builds(Fault, ways, st.sampled_from(CODES), st.integers(0, 4))


annotated = st.one_of(
    st.just({}),
    st.fixed_dictionaries(
        {},
        optional={
            "scheduler": st.sampled_from(["wrr", "mh", "sh"]),
            "max_connections": st.sampled_from([(0, 0), (9, 0), (9, 5)]),
            "weights": st.sampled_from(
                [(("*", 3),), (("*", 0),), ((WEIGHED, 3),), ((WEIGHED, 0), ("*", 2)), ((WEIGHED, 99),)]
            ),
            "ping": st.sampled_from(["always", "when-ready", "off"]),
            "affinity_scope": st.just("service"),
            "forwarding": st.sampled_from(["ipip", "gue"]),
            "port_ranges": st.sampled_from(
                [((Protocol.TCP, 1, 99),), ((Protocol.TCP, 9, 200), (Protocol.UDP, 1, 9))]
            ),
        },
    ),
)
"""What annotations say; of a slow start nothing, since a cold start has none."""


@st.composite
def services(draw):
    name = draw(names)
    number = int(name[1:])
    ports = [(80, draw(st.sampled_from([0, 30000 + number])), "TCP", "web")]
    if draw(st.booleans()):
        ports.append((53, 0, "UDP", "dns"))
    ips = [f"10.96.0.{number}"] + [f"fd00:10:96::{number}"] * draw(st.integers(0, 1))
    return service(
        name,
        ips,
        ports,
        created=draw(st.sampled_from(["2024", "2025"])),
        external_local=draw(st.booleans()),
        internal_local=draw(st.booleans()),
        affinity_seconds=draw(st.sampled_from([0, 600])),
        external_ips=draw(shared),
        load_balancer_ips=draw(shared),
        data_path=draw(st.sampled_from(["", "", "auto", "ipvs"])),
        source_ranges=draw(st.sampled_from([[], ["10.0.0.0/8"], ["10.0.0.0/9", "192.0.2.0/24"]])),
        **draw(annotated),
    )


@st.composite
def slices(draw):
    name, six = draw(names), draw(st.booleans())
    found = draw(st.lists(pods_v6 if six else pods, unique=True))
    made = [
        endpoint(a, "node1" if a.startswith(OWN_PODS) else "node2", ready=draw(st.booleans()), name=a)
        for a in found
    ]
    ports = ((draw(st.sampled_from([8080, 80])), "TCP", "web"), (5353, "UDP", "dns"))
    return slice_of(name, *made, ports=ports, name=f"{name}-{'v6' if six else draw(st.sampled_from('ab'))}")


nodes = st.builds(
    lambda cidr, address: Node("node1", (address,), (parse_cidr(cidr),)),
    st.sampled_from(["10.244.1.0/24", "10.244.9.0/24"]),
    st.sampled_from([NODE_ADDRESS, parse_ip("192.0.2.7")]),
)
other_nodes = st.builds(
    lambda address, cidr: Node("node2", (parse_ip(address),), (parse_cidr(cidr),)),
    st.sampled_from(["192.0.2.2", "198.51.100.2"]),
    st.sampled_from(["10.244.2.0/24", "203.0.113.0/24"]),
)
link_addresses = st.sets(st.sampled_from([*SHARED, "192.0.2.7", "10.244.1.254"])).map(
    lambda found: frozenset({NODE_ADDRESS, *map(parse_ip, found)})
)
