"""Addresses that a Service does not get, and what it costs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipvsproxy.base.address import Ranges, format_ip, parse_cidr, parse_ip
from ipvsproxy.plan.addresses import Addresses, OtherNodeAddresses
from ipvsproxy.plan.metadata import METADATA_SERVICES
from ipvsproxy.plan.model import Node, Protocol
from ipvsproxy.plan.node import Reserved
from ipvsproxy.plan.planner import plan_service
from ipvsproxy.plan.safety import judge, without
from tests.support.build import config, node, service, slice_of

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
    found = judge(svc, NODE, config(**settings))
    frontends = plan_service(svc, [slice_of("web", "10.244.1.1")], NODE, config(**settings), refusals=found)
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


def test_external_ips_that_are_switched_off_are_not_reported_one_by_one():
    assert told(service(external_ips=["127.0.0.1"]), allow_external_ips=False) == set()


def others(*nodes, pods=(), balancers=()):
    """What is known of other nodes, of pods, and of the load balancer addresses of other Services."""
    known = Addresses()
    known.neighbours(OtherNodeAddresses(frozenset(map(parse_ip, nodes))))
    known.slice(None, slice_of("other", *pods))
    known.service("default/other", None, service("other", load_balancer_ips=balancers))
    return known


def refused(svc, known, on=NODE, **settings):
    return [(str(refusal), refusal.quiet) for refusal in judge(svc, on, config(**settings), known)]


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("192.0.2.2", "an address of another node"),
        ("10.9.1.7", "the address of a pod"),
        ("203.0.113.9", "the load balancer address of another Service"),
    ],
)
def test_no_external_ip_takes_what_belongs_to_others(address, reason):
    known = others("192.0.2.2", pods=["10.9.1.7"], balancers=["203.0.113.9"])
    svc = service(external_ips=[address, "198.51.100.9"])
    assert refused(svc, known) == [(f"{address}: {reason}", False)]
    assert refused(svc, known, trusted_ip_ranges=(f"{address}/32",)) == []
    assert refused(svc, known, trusted_ip_ranges=("198.51.100.0/24",)) == [(f"{address}: {reason}", False)]


@pytest.mark.parametrize("kind", ["external_ips", "load_balancer_ips"])
@pytest.mark.parametrize("address", sorted(map(format_ip, METADATA_SERVICES)))
def test_metadata_services_of_clouds_are_not_for_services(kind, address):
    svc = service(ips=("10.96.0.10", "fd00:96::10"), **{kind: [address]})
    assert [text.partition(": ")[2].split(" that ")[0] for text in told(svc)] == ["the address of a service"]
    assert told(svc, trusted_ip_ranges=(f"{address}/{32 if '.' in address else 128}",)) == set()


def test_a_load_balancer_that_lists_nodes_is_served_with_the_address_of_this_node_alone():
    """As ServiceLB of k3s does; an address of a node that nobody has told of yet stands in the same list."""
    own = frozenset((parse_ip("192.0.2.1"),))
    here = node(reserved=RESERVED, links=["192.0.2.1"], reported=own, own_addresses=own)
    svc = service(load_balancer_ips=["192.0.2.1", "192.0.2.2", "192.0.2.10", "192.0.2.77"])
    expected = [(f"192.0.2.{n}: another node's, listed by a load balancer", True) for n in (2, 10, 77)]
    assert refused(svc, others("192.0.2.2", "192.0.2.10"), on=here) == expected
    elsewhere = service(load_balancer_ips=["192.0.2.2", "192.0.2.77"])
    assert refused(elsewhere, others("192.0.2.2"), on=here) == [expected[0], expected[2]]
    assert refused(service(load_balancer_ips=["192.0.2.77"]), others("192.0.2.2"), on=here) == []


def test_an_address_that_was_put_on_a_link_by_hand_does_not_make_a_list_of_nodes():
    """The other one of a dual-stack load balancer may be on another node at the moment."""
    here = node(links=["192.0.2.1", "203.0.113.8"], own_addresses=frozenset((parse_ip("203.0.113.8"),)))
    svc = service(load_balancer_ips=["203.0.113.8", "203.0.113.9"])
    assert refused(svc, others("192.0.2.2"), on=here) == []


def test_the_address_of_this_node_is_for_load_balancers_alone():
    here = node(links=["192.0.2.1", "203.0.113.8"], own_addresses=frozenset((parse_ip("192.0.2.1"),)))
    svc = service(external_ips=["192.0.2.1", "203.0.113.8"])
    assert refused(svc, others(), on=here) == [("192.0.2.1: an address of this node", False)]
    assert refused(svc, others(), on=here, trusted_ip_ranges=("192.0.2.0/24",)) == []
    assert refused(service(load_balancer_ips=["192.0.2.1"]), others(), on=here) == []


@pytest.mark.parametrize("kind", ["external_ips", "load_balancer_ips"])
def test_a_port_in_use_on_this_host_is_refused_for_its_protocol(kind):
    """Of an address that another program has put on a link, or that a load balancer has given."""
    taken = frozenset({(Protocol.TCP.value, 443), (Protocol.UDP.value, 80)})
    here = node(links=["192.0.2.1"], ports_in_use=taken)
    svc = service(ports=((80, 0, "TCP", "a"), (443, 0, "TCP", "b"), (443, 0, "UDP", "c")), **{kind: ["192.0.2.1"]})
    found = judge(svc, here, config())
    assert [str(r) for r in found] == ["192.0.2.1, port 443: the node's own address, where this port is in use"]
    ports = (("8080", "TCP", name) for name in "ab")
    slices = [slice_of("web", "10.244.1.1", ports=(*ports, (8080, "UDP", "c")))]
    frontends = plan_service(svc, slices, here, config(), refusals=found)
    mine = {(key.protocol, key.port) for key in frontends if format_ip(key.address) == "192.0.2.1"}
    assert mine == {(Protocol.TCP.value, 80), (Protocol.UDP.value, 443)}


def test_an_address_that_is_not_known_yet_waits_without_a_word():
    known = others()
    known.looks_up = True
    svc = service(external_ips=["198.51.100.9"])
    known.service(svc.key, None, svc)
    assert refused(svc, known) == [("198.51.100.9: not yet known whether it belongs to a node", True)]
    assert refused(svc, known, trusted_ip_ranges=("198.51.100.0/24",)) == []
    assert without(svc, judge(svc, NODE, config(), known)).external_ips == ()
    known.asked(1)
    known.neighbours(OtherNodeAddresses(frozenset((parse_ip("198.51.100.9"),)), (), 1))
    assert refused(svc, known) == [("198.51.100.9: an address of another node", False)]


def test_a_pod_range_of_any_node_is_refused_where_the_range_of_all_pods_is_not_known():
    known = others()
    known.own_node(None, Node("node1", (), (parse_cidr("10.9.1.0/24"),)))
    known.other_node(None, Node("node2", (parse_ip("192.0.2.2"),), (parse_cidr("10.9.2.0/24"),)))
    svc = service(load_balancer_ips=["10.9.1.4", "10.9.2.4", "10.9.3.4"])
    here = node(pod_cidrs=[])
    assert refused(svc, known, on=here) == [(f"10.9.{n}.4: in the range of pods", False) for n in (1, 2)]


class CountedGateways:
    """Counts how many gateways are looked at."""

    looked = 0

    def __init__(self, known):
        self.known = known

    def __iter__(self):
        for one in self.known:
            CountedGateways.looked += 1
            yield one


@pytest.mark.parametrize("size", [100, 1000])
def test_judging_looks_at_each_gateway_once_however_many_addresses_there_are(size):
    gateways = [Reserved((0xCB007100 + n).to_bytes(4), "a gateway") for n in range(size)]
    here = node(reserved=CountedGateways(gateways))
    CountedGateways.looked = 0
    svc = service(external_ips=[format_ip((0xCB007100 + n).to_bytes(4)) for n in range(2 * size)])
    assert len(judge(svc, here, config())) == size
    assert CountedGateways.looked == size


ranges = st.builds(
    lambda number, prefix: parse_cidr(f"{format_ip(number.to_bytes(4))}/{prefix}"),
    st.integers(0xC6336400, 0xC63364FF),
    st.integers(22, 32),
)


@given(st.lists(ranges, max_size=12), st.integers(0xC6336300, 0xC63365FF))
def test_a_set_of_ranges_has_what_one_of_them_has(found, number):
    address = number.to_bytes(4)
    assert (address in Ranges(found)) == any(address in cidr for cidr in found)
    assert address + bytes(12) not in Ranges(found)
    assert bool(Ranges(found)) == bool(found)
