"""Ports behind one server for a whole address belong to their Service, as ports with servers of their own do."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipvsproxy.base.address import parse_ip
from ipvsproxy.plan.addresses import Addresses
from ipvsproxy.plan.model import Protocol, ServicePort
from ipvsproxy.plan.planner import plan_service
from ipvsproxy.plan.port_claims import PortClaims
from ipvsproxy.plan.safety import judge
from ipvsproxy.plan.state import Claim
from ipvsproxy.plan.waiting import RankedService
from tests.support.build import config, node, service, slice_of
from tests.support.work import instructions

OLD, NEW = "2026-01-01T00:00:00Z", "2026-02-01T00:00:00Z"
SHARED = "203.0.113.7"
RANGE = (Protocol.TCP, 30000, 30010)
TWO = ((80, 0, "TCP", "a"), (81, 0, "TCP", "b"))
ONE_AFFINITY = {"affinity_seconds": 60, "affinity_scope": "service"}


def planned(svc, *numbers):
    """Return the Service with its frontends; its endpoints have ports by the numbers of the Service, or these."""
    ports = [(port.port, port.protocol.name, port.name) for port in svc.ports]
    owner = RankedService(svc.created, svc.key)
    return owner, plan_service(
        svc, [slice_of(svc.name, "10.244.1.1", ports=numbers or ports)], node(), config()
    ).values()


def known(*services):
    found = Addresses()
    for svc in services:
        found.service(svc.key, None, svc)
        found.claim_ports(*planned(svc))
    return found


def refused(svc, *others):
    return {str(item) for item in judge(svc, node(), config(), known(svc, *others))}


def asking(address, *ports, created=NEW, **settings):
    numbers = [(port, 0, "TCP", f"p{port}") for port in ports]
    return service("asks", ["10.96.0.99"], numbers, external_ips=[address], created=created, **settings)


def having(*, ports=TWO, created=OLD, **settings):
    return service("has", ports=ports, created=created, **settings)


@pytest.mark.parametrize(
    ("ports", "settings"),
    [((80, 81), ONE_AFFINITY), ((30000, 30010), {"port_ranges": (RANGE,)}), ((21,), {"port_ranges": (RANGE,)})],
)
def test_no_external_ip_takes_a_port_of_a_cluster_ip_from_the_server_for_all(ports, settings):
    """IPVS asks a server of one port first, and for high TCP ports also that of FTP."""
    other = having(created="2026-03-01T00:00:00Z", **settings)
    assert refused(asking("10.96.0.10", *ports, 29999, 443), other) == {
        f"10.96.0.10, port {port}: another Service has this port" for port in ports
    }


def test_ports_without_one_affinity_and_without_ranges_are_a_matter_of_the_ledger():
    assert refused(asking("10.96.0.10", 80), having(affinity_seconds=60)) == set()
    assert refused(asking("10.96.0.10", 80), having(affinity_scope="service")) == set()


def test_one_affinity_may_be_the_default_of_the_node():
    other = having(affinity_seconds=60)
    default = {"affinity_scope": "service"}
    assert refused(asking("10.96.0.10", 80), other.with_defaults(default))
    chosen = having(affinity_seconds=60, affinity_scope="port")
    assert not refused(asking("10.96.0.10", 80), chosen.with_defaults(default))


@pytest.mark.parametrize(
    "settings",
    [
        {"port_ranges": (RANGE,), "external_local": True, "internal_local": True},
        {**ONE_AFFINITY, "external_local": True},
        {**ONE_AFFINITY, "affinity_seconds": 0},
    ],
)
def test_ranges_that_are_not_served_keep_no_other_service_from_a_port(settings):
    assert refused(asking("10.96.0.10", 80, 30005), having(**settings)) == set()


def test_ports_that_endpoints_do_not_have_by_their_numbers_are_not_claimed():
    found, asks, other = known(), asking("10.96.0.10", 80), having(**ONE_AFFINITY)
    found.service(asks.key, None, asks)
    assert found.claim_ports(*planned(other)) == {"default/asks"}
    assert judge(asks, node(), config(), found)
    assert found.claim_ports(*planned(other, (8080, "TCP", "a"), (81, "TCP", "b"))) == {"default/asks"}
    assert not judge(asks, node(), config(), found)


@pytest.mark.parametrize(
    ("mine", "theirs", "kind", "is_refused"),
    [(NEW, OLD, "external_ips", True), (OLD, NEW, "external_ips", False), (OLD, NEW, "load_balancer_ips", True)],
)
def test_of_two_external_addresses_that_of_a_load_balancer_or_the_older_one_has_the_port(
    mine, theirs, kind, is_refused
):
    other = having(created=theirs, port_ranges=(RANGE,), **{kind: [SHARED]})
    found = refused(asking(SHARED, 30005, created=mine), other)
    assert any("another" in text for text in found) is is_refused


def test_where_several_have_ranges_the_one_that_is_served_counts():
    first = having(port_ranges=(RANGE,), external_ips=[SHARED])
    second = service(
        "second", created="2026-01-02T00:00:00Z", external_ips=[SHARED], port_ranges=((Protocol.TCP, 1, 100),)
    )
    assert refused(asking(SHARED, 80, 30005), first, second) == {
        f"{SHARED}, port 30005: another Service has this port"
    }


def test_other_protocols_the_own_service_and_load_balancers_with_source_ranges_do_not_matter():
    udp = having(port_ranges=((Protocol.UDP, 30000, 30010),), external_ips=[SHARED])
    assert refused(asking(SHARED, 30005), udp) == set()
    own = asking(SHARED, 30005, port_ranges=(RANGE,))
    assert refused(own) == set()
    limited = having(port_ranges=(RANGE,), load_balancer_ips=[SHARED], source_ranges=["192.0.2.0/24"])
    claims = PortClaims()
    claims.replace(*planned(limited))
    port = ServicePort("", Protocol.TCP, 30005)
    assert not claims.is_taken(parse_ip(SHARED), port, Claim.LOAD_BALANCER, RankedService(NEW, "default/asks"))


def test_ranges_of_another_protocol_are_served_beside_a_port_that_is_refused():
    svc = asking(SHARED, 30005, port_ranges=((Protocol.UDP, 30000, 30010),))
    refusals = judge(svc, node(), config(), known(svc, having(port_ranges=(RANGE,), external_ips=[SHARED])))
    found = plan_service(svc, [slice_of("asks", "10.244.1.1")], node(), config(), refusals=refusals)
    assert {str(key) for key in found if key.address == parse_ip(SHARED)} == {f"{SHARED}:0/UDP"}


def test_those_who_ask_are_planned_again_when_ports_come_and_go():
    asks, plain = asking(SHARED, 30005), having(external_ips=[SHARED])
    ranged = having(external_ips=[SHARED], port_ranges=(RANGE,))
    found = known(asks, plain)
    assert found.claim_ports(*planned(plain)) == set()
    assert found.claim_ports(*planned(ranged)) == {"default/asks"}
    assert found.claim_ports(*planned(ranged)) == set()
    assert found.claim_ports(RankedService("", "default/has"), ()) == {"default/asks"}


services = st.builds(
    lambda name, created, external, balancers, ranges, affinity: service(
        name, ["10.96.0.10"], TWO, created=created, external_ips=external, load_balancer_ips=balancers,
        port_ranges=ranges, affinity_seconds=affinity, affinity_scope="service",
    ),
    st.sampled_from("abc"),
    st.sampled_from([OLD, NEW]),
    *[st.lists(st.sampled_from([SHARED, "203.0.113.8"]), unique=True)] * 2,
    st.sampled_from([(), (RANGE,), ((Protocol.UDP, 1, 100), RANGE)]),
    st.sampled_from([0, 60]),
)  # fmt: skip


@given(st.lists(st.tuples(services, st.booleans()), max_size=12))
def test_any_history_leaves_what_the_last_objects_give(history):
    found, last = PortClaims(), {}
    for item, gone in history:
        owner, frontends = planned(item)
        last[item.key] = owner, () if gone else tuple(frontends)
        found.replace(*last[item.key])
    cold = PortClaims()
    for item in last.values():
        cold.replace(*item)
    assert found.__dict__ == cold.__dict__


def test_a_service_costs_the_same_beside_few_and_many_that_claim_ranges_of_one_address():
    def cost(number):
        claims = PortClaims()
        for other in range(number):
            ranges = ((Protocol.TCP, 1000 + other, 1001 + other),)
            claims.replace(*planned(service(f"s{other}", external_ips=[SHARED], port_ranges=ranges, ips=())))
        owner, frontends = planned(having(external_ips=[SHARED], port_ranges=(RANGE,)))
        return instructions(lambda: (claims.replace(owner, frontends), claims.replace(owner, ())))

    assert cost(400) < 1.2 * cost(10)
