"""Addresses that a Service does not get, and what it costs."""

import pytest
from build import config, node, service, slice_of

from ipvsproxy.address import format_ip, parse_ip
from ipvsproxy.plan.node import Reserved
from ipvsproxy.plan.safety import judge
from ipvsproxy.plan.wanted import plan_service

RESERVED = tuple(
    Reserved(parse_ip(address), role, port)
    for address, role, port in (
        ("192.0.2.254", "a gateway", 0),
        ("192.0.2.53", "a DNS server", 53),
        ("192.0.2.10", "the API server", 6443),
        ("192.0.2.1", "the API server", 6443),
        ("2001:db8::53", "a DNS server", 53),
    )
)
NODE = node(reserved=RESERVED, links=["192.0.2.1"])
PORTS = ((80, 30080), (53, 0, "UDP", "dns"), (6443, 0, "TCP", "api"), (22, 0, "TCP", "ssh"))


def told(svc, **settings):
    return {str(refusal) for refusal in judge(svc, NODE, config(**settings))}


def served(svc, **settings):
    frontends = plan_service(svc, [slice_of("web", "10.244.1.1")], NODE, config(**settings))
    return {(format_ip(key.address), key.port) for key in frontends}


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("0.0.0.0", "an unspecified address"),
        ("::", "an unspecified address"),
        ("127.0.0.53", "a loopback address"),
        ("::1", "a loopback address"),
        ("169.254.169.254", "a link-local address"),
        ("fe80::1", "a link-local address"),
        ("224.0.0.1", "a multicast or broadcast address"),
        ("255.255.255.255", "a multicast or broadcast address"),
        ("ff02::1", "a multicast or broadcast address"),
        ("10.244.9.9", "in the range of pods"),
        ("192.0.2.254", "the address of a gateway, which this node could not reach any more"),
        ("192.0.2.53", "the address of a DNS server, which this node could not reach any more"),
        ("2001:db8::53", "the address of a DNS server, which this node could not reach any more"),
        ("192.0.2.10", "the address of the API server, which this node could not reach any more"),
    ],
)
@pytest.mark.parametrize("kind", ["external_ips", "load_balancer_ips"])
def test_what_would_cut_the_node_off_is_refused_and_costs_only_that_address(kind, address, reason):
    svc = service(ips=("10.96.0.10", "fd00:96::10"), **{kind: [address, "198.51.100.9"]})
    assert told(svc) == {f"{address}: {reason}"}
    assert served(svc) == {("10.96.0.10", 80), ("fd00:96::10", 80), ("198.51.100.9", 80)}


@pytest.mark.parametrize("address", ["192.0.2.53", "192.0.2.10"])
def test_a_load_balancer_may_be_what_the_node_depends_on(address):
    assert ((address, 53) in served(service(ports=PORTS, load_balancer_ips=[address]))) is True
    assert ((address, 53) in served(service(ports=PORTS, external_ips=[address]))) is False


@pytest.mark.parametrize("kind", ["external_ips", "load_balancer_ips"])
def test_an_own_address_is_served_but_for_what_the_node_cannot_do_without(kind):
    svc = service(ports=PORTS, **{kind: ["192.0.2.1"]})
    assert told(svc) == {
        "192.0.2.1, port 22: the node's own address, where this port is ssh",
        "192.0.2.1, port 6443: the node's own address, where this port is the API server",
    }
    assert {port for address, port in served(svc) if address == "192.0.2.1"} == {80, 53, 30080}


def test_ranges_allow_external_ips_and_deny_both_kinds():
    svc = service(external_ips=["198.51.100.9", "198.51.100.200"], load_balancer_ips=["203.0.113.5"])
    assert told(svc) == set()
    assert told(svc, external_ip_ranges=("198.51.100.0/25", "2001:db8::/32")) == {
        "198.51.100.200: not in --external-ip-ranges"
    }
    denied = {"denied_ip_ranges": ("198.51.100.0/24", "203.0.113.0/24")}
    assert {line.partition(":")[0] for line in told(svc, **denied)} == {
        "198.51.100.9",
        "198.51.100.200",
        "203.0.113.5",
    }
    assert served(svc, **denied) == {("10.96.0.10", 80)}
    assert "198.51.100.9: in --denied-ip-ranges" in told(svc, external_ip_ranges=("198.51.100.0/24",), **denied)


@pytest.mark.parametrize("address", ["203.0.113.5", "192.0.2.53"])
def test_what_a_load_balancer_has_given_is_served_though_it_is_an_external_ip_too(address):
    svc = service(ports=PORTS, external_ips=[address], load_balancer_ips=[address])
    assert told(svc, external_ip_ranges=("198.51.100.0/24",)) == set()
    assert (address, 53) in served(svc, external_ip_ranges=("198.51.100.0/24",))


def test_an_allowed_range_of_one_family_allows_nothing_of_the_other():
    svc = service(ips=("10.96.0.10", "fd00:96::10"), external_ips=["2001:db8:198::9"])
    assert told(svc, external_ip_ranges=("198.51.100.0/24",)) == {"2001:db8:198::9: not in --external-ip-ranges"}


def test_external_ips_that_are_switched_off_are_not_told_one_by_one():
    assert told(service(external_ips=["127.0.0.1"]), allow_external_ips=False) == set()
