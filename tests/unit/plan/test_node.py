import json
from pathlib import Path

import msgspec
import pytest

from ipvsproxy.base.address import family, format_ip, parse_cidr, parse_ip
from ipvsproxy.config import DetectLocalMode
from ipvsproxy.plan.model import Node
from ipvsproxy.plan.node import blindness, facts, missing
from tests.support.build import config

LINKS = [parse_ip(t) for t in ("127.0.0.1", "192.0.2.1", "192.168.7.1", "2001:db8::1", "fe80::1", "::1")]
NODE = Node(
    "node1",
    (parse_ip("192.0.2.1"), parse_ip("2001:db8::1")),
    (parse_cidr("10.244.1.0/24"), parse_cidr("fd00:10:244:1::/64")),
    "a",
)


def nodeports(*addresses):
    found = facts(config(nodeport_addresses=addresses), NODE, LINKS).nodeport_addresses
    return [format_ip(address) for address in found]


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ((), ["192.0.2.1", "192.168.7.1", "2001:db8::1"]),
        (("0.0.0.0/0",), ["192.0.2.1", "192.168.7.1", "2001:db8::1"]),
        (("192.0.2.0/24", "::/0"), ["192.0.2.1", "2001:db8::1"]),
        (("192.168.0.0/16", "2001:db8::/64"), ["192.168.7.1", "2001:db8::1"]),
        (("192.168.0.0/16",), ["192.168.7.1", "2001:db8::1"]),
        (("primary",), ["192.0.2.1", "2001:db8::1"]),
        (("198.51.100.0/24", "2001:db8:1::/64"), []),
        (("127.0.0.0/8", "::1/128"), []),
        (("127.0.0.0/8",), ["2001:db8::1"]),
        (("primary", "127.0.0.0/8", "::1/128"), ["192.0.2.1", "2001:db8::1"]),
    ],
)
def test_nodeport_addresses(setting, expected):
    assert sorted(nodeports(*setting)) == sorted(expected)


def test_loopback_and_link_local_are_no_node_addresses():
    links = facts(config(), NODE, LINKS).link_addresses
    assert {format_ip(a) for a in links} == {"192.0.2.1", "192.168.7.1", "2001:db8::1"}


def test_detectors():
    def detector(**settings):
        found = facts(config(**settings), NODE, LINKS)
        return [str(c) for c in found.pod_cidrs], found.pod_interfaces, found.detects

    assert detector() == ([], (), frozenset())
    assert detector(cluster_cidrs=("10.0.0.0/8", "10.9.0.0/16")) == (["10.0.0.0/8"], (), {4})
    node_cidrs = (["10.244.1.0/24", "fd00:10:244:1::/64"], (), {4, 6})
    assert detector(detect_local_mode=DetectLocalMode.NODE_CIDR) == node_cidrs
    bridge = detector(detect_local_mode=DetectLocalMode.BRIDGE_INTERFACE, pod_bridge_interface="cni0")
    assert bridge == ([], ("cni0",), {4, 6})
    prefix = detector(detect_local_mode=DetectLocalMode.INTERFACE_NAME_PREFIX, pod_interface_name_prefix="veth")
    assert prefix == ([], ("veth*",), {4, 6})


@pytest.mark.parametrize(("length", "star"), [(1, "*"), (14, "*"), (15, "")])
def test_a_prefix_as_long_as_a_name_is_one(length, star):
    """nftables refuses the star behind 15 characters, and with it the whole ruleset."""
    settings = config(
        detect_local_mode=DetectLocalMode.INTERFACE_NAME_PREFIX, pod_interface_name_prefix="x" * length
    )
    assert facts(settings, NODE, LINKS).pod_interfaces == ("x" * length + star,)


NODE_CIDR = {"detect_local_mode": DetectLocalMode.NODE_CIDR}


@pytest.mark.parametrize(
    ("settings", "pod_cidrs", "expected"),
    [
        (NODE_CIDR, ["10.244.1.0/24"], ""),
        (NODE_CIDR, [], "Node node1 has no spec.podCIDRs of IPv4"),
        (NODE_CIDR, ["fd00:10:244:1::/64"], "Node node1 has no spec.podCIDRs of IPv4"),
        (NODE_CIDR | {"bind_address": parse_ip("2001:db8::1")}, ["fd00:10:244:1::/64"], ""),
        ({"cluster_cidrs": ("10.0.0.0/8",)}, [], ""),
        ({}, ["10.244.1.0/24"], "clusterCIDR has no IPv4 range"),
        ({"cluster_cidrs": ("fd00::/8",)}, [], "clusterCIDR has no IPv4 range"),
    ],
)
def test_a_detector_that_sees_nothing_is_reported(settings, pod_cidrs, expected):
    node = msgspec.structs.replace(NODE, pod_cidrs=tuple(map(parse_cidr, pod_cidrs)))
    said = blindness(config(**settings), facts(config(**settings), node, LINKS))
    assert expected in said
    assert bool(said) is bool(expected)


def test_without_a_node_object_the_links_stand_in():
    found = facts(config(), None, LINKS)
    assert {format_ip(a) for a in found.addresses} == {"192.0.2.1", "192.168.7.1", "2001:db8::1"}
    assert found.zone == ""


@pytest.mark.parametrize("node", [None, Node("node1")])
def test_without_node_ips_primary_means_all_addresses(node):
    """Which of a host's links has its primary address cannot be known."""
    found = facts(config(nodeport_addresses=("primary",)), node, LINKS).nodeport_addresses
    assert {format_ip(a) for a in found} == {"192.0.2.1", "192.168.7.1", "2001:db8::1"}
    bound = facts(config(nodeport_addresses=("primary",), bind_address=parse_ip("192.168.7.1")), node, LINKS)
    assert {format_ip(a) for a in bound.nodeport_addresses} == {"192.168.7.1", "2001:db8::1"}


IDENTITY = json.loads((Path(__file__).parents[2] / "conformance" / "flows.json").read_text())["node_ip_detection"]


@pytest.mark.parametrize("case", IDENTITY["cases"])
def test_node_ips_follow_the_node_and_the_bind_address(case):
    node = msgspec.structs.replace(NODE, addresses=tuple(map(parse_ip, case["node_ips"])))
    found = facts(config(bind_address=parse_ip(case["bind"] or "0.0.0.0")), node, ()).addresses
    first = {family(address): address for address in reversed(found)}
    assert first.get(4, parse_ip("127.0.0.1")) == parse_ip(case["v4"])
    assert first.get(6, parse_ip("::1")) == parse_ip(case["v6"])
    assert (family(found[0]) if found else 4) == int(case["primary"].removeprefix("IPv"))


def test_only_the_first_address_of_a_family_is_a_node_ip():
    """An ExternalIP within the source ranges of a load balancer lets no process of the node in."""
    reported = ["192.0.2.1", "192.0.2.2", "2001:db8::1", "203.0.113.7"]
    node = msgspec.structs.replace(NODE, addresses=tuple(map(parse_ip, reported)))
    assert list(map(format_ip, facts(config(), node, LINKS).addresses)) == ["192.0.2.1", "2001:db8::1"]


@pytest.mark.parametrize(
    ("name", "nodes", "named", "likely"),
    [
        ("192.0.2.1", [NODE], (), ("node1",)),  # its name is an address of the Node
        ("host", [NODE], (), ("node1",)),  # the Node has an address of this host
        ("node1", [], ("Node1", "node2"), ("Node1",)),
        ("node1", [], ("node1.example.com", "node10"), ("node1.example.com",)),
        ("node1.example.com", [Node("node1")], (), ("node1",)),
        ("192.0.2.1", [], ("192.0.2.2", "192.example.com"), ()),
        ("node1", [], (), ()),
    ],
)
def test_a_node_of_another_name_that_may_be_meant(name, nodes, named, likely):
    found = missing(name, nodes, named, LINKS)
    assert found.likely == likely
    assert set(found.others) == {*named, *(node.name for node in nodes)}


def test_of_many_names_a_few_are_shown_those_that_may_be_meant_first():
    found = missing("n99", [], [f"n{number}" for number in range(99)] + ["n99.example.com"], [])
    assert (found.shown[0], len(found.shown)) == ("n99.example.com", 10)
    assert found.summary()["more"] == 90
