import msgspec
import pytest

from ipvsproxy.base.address import parse_ip
from ipvsproxy.plan.model import Protocol
from ipvsproxy.plan.node import NodeFacts
from ipvsproxy.plan.planner import plan_service
from ipvsproxy.plan.state import (
    ONE_PACKET,
    PERSISTENT,
    SCHED_1,
    SCHED_2,
    Claim,
    ServerAttributes,
    View,
)
from ipvsproxy.ruleset.elements import Masquerade, PacketVerdict
from ipvsproxy.ruleset.schema import LOCAL
from tests.support.build import config, endpoint, key, node, service, slice_of

CLUSTER = "10.96.0.10:80"
BALANCER = "203.0.113.5:80"
EXTERNAL = "198.51.100.9:80"
NODEPORT = "192.0.2.1:30080"
HERE, THERE = "10.244.1.10:8080", "10.244.2.10:8080"


def plan(svc, *slices, on=None, **settings):
    return plan_service(svc, slices, on or node(), config(**settings))


def both():
    return slice_of("web", "10.244.1.10", "10.244.2.10")


def everything(**settings):
    return service(
        ports=((80, 30080),), load_balancer_ips=["203.0.113.5"], external_ips=["198.51.100.9"], **settings
    )


def at(frontends, text):
    return frontends[key(text)]


def internal(text):
    """Return the views of a frontend that leads local pods and the node to another one."""
    return (View(LOCAL, key(text)),)


def targets(frontend):
    return {str(d) for d in frontend.destinations}


def test_cluster_policy_serves_every_way_in_with_all_endpoints():
    frontends = plan(everything(), both())
    assert {str(k) for k in frontends} == {
        f"{way}/TCP" for way in (CLUSTER, BALANCER, EXTERNAL, NODEPORT, "10.244.1.1:30080")
    }
    assert all(targets(f) == {HERE, THERE} for f in frontends.values())
    assert all(f.verdict is PacketVerdict.ACCEPT for f in frontends.values())
    assert all(not f.views for f in frontends.values())


def test_masquerade_by_way_in():
    frontends = plan(everything(), both())
    assert at(frontends, CLUSTER).masquerade is Masquerade.UNLESS_LOCAL_POD
    assert {at(frontends, way).masquerade for way in (BALANCER, EXTERNAL, NODEPORT)} == {Masquerade.ALWAYS}


def test_masquerade_of_cluster_ips_follows_the_settings():
    assert at(plan(everything(), both(), masquerade_all=True), CLUSTER).masquerade is Masquerade.ALWAYS
    blind = node(pod_cidrs=[])
    assert at(plan(everything(), both(), on=blind), CLUSTER).masquerade is Masquerade.NEVER


def test_only_vips_that_no_other_link_holds_are_bound():
    frontends = plan(everything(), both(), on=node(links=["192.0.2.1", "203.0.113.5"]))
    assert at(frontends, CLUSTER).bind
    assert at(frontends, EXTERNAL).bind
    assert not at(frontends, BALANCER).bind
    assert not at(frontends, NODEPORT).bind


def test_external_local_gives_two_views():
    frontends = plan(everything(external_local=True), both())
    for way in (BALANCER, EXTERNAL, NODEPORT):
        assert targets(at(frontends, way)) == {HERE}
        assert at(frontends, way).views == internal(CLUSTER)
        assert at(frontends, way).masquerade is Masquerade.NEVER
    assert targets(at(frontends, CLUSTER)) == {HERE, THERE}


def test_external_local_without_local_endpoint_drops_outsiders_but_serves_insiders():
    frontends = plan(everything(external_local=True), slice_of("web", "10.244.2.10"))
    assert at(frontends, BALANCER).verdict is PacketVerdict.DROP
    assert at(frontends, BALANCER).views == internal(CLUSTER)
    assert at(frontends, CLUSTER).verdict is PacketVerdict.ACCEPT


def test_no_endpoint_at_all_refuses_everywhere():
    for svc in (everything(), everything(external_local=True), everything(internal_local=True)):
        frontends = plan(svc, slice_of("web"))
        assert {f.verdict for f in frontends.values()} == {PacketVerdict.REFUSE}
        assert all(not f.views for f in frontends.values())


def test_internal_local_never_falls_back():
    frontends = plan(everything(internal_local=True), slice_of("web", "10.244.2.10"))
    assert at(frontends, CLUSTER).verdict is PacketVerdict.DROP
    assert targets(at(frontends, CLUSTER)) == set()
    assert targets(at(frontends, BALANCER)) == {THERE}


def test_both_policies_local_need_a_server_for_the_internal_view():
    frontends = plan(everything(internal_local=True, external_local=True), both())
    inside = at(frontends, f"10.96.0.10:{80 ^ 0x8000}")
    assert targets(inside) == {HERE, THERE}
    assert inside.verdict is PacketVerdict.INSIDE_ONLY
    assert at(frontends, BALANCER).views == (View(LOCAL, inside.key),)
    assert targets(at(frontends, CLUSTER)) == {HERE}


def test_inside_ports_avoid_the_ports_of_the_service():
    svc = service(
        ports=((80, 30080, "TCP", "a"), (80 ^ 0x8000, 0, "TCP", "b"), (32768, 0, "TCP", "c")),
        internal_local=True,
        external_local=True,
    )
    slices = slice_of("web", "10.244.1.10", ports=((1, "TCP", "a"), (2, "TCP", "b"), (3, "TCP", "c")))
    assert at(plan(svc, slices), NODEPORT).views[0].server.port == (80 ^ 0x8000) + 1


def test_affinity_and_scheduler_flags():
    sticky = everything(affinity_seconds=600)
    assert at(plan(sticky, both()), CLUSTER).server == ServerAttributes("rr", PERSISTENT, 600)
    assert at(plan(everything(), both(), scheduler="mh"), CLUSTER).server == ServerAttributes(
        "mh", SCHED_1 | SCHED_2, 0
    )
    assert at(plan(everything(), both(), scheduler="sh"), CLUSTER).server == ServerAttributes("sh", SCHED_1, 0)


def test_a_service_with_a_scheduler_of_its_own():
    for own, configured in (("mh", "rr"), ("mh", "sh")):
        frontends = plan(everything(scheduler=own), both(), scheduler=configured)
        assert at(frontends, CLUSTER).server == ServerAttributes("mh", SCHED_1 | SCHED_2, 0)


def test_its_own_scheduler_decides_about_the_order():
    def order(node, **own):
        slices = slice_of("web", *(f"10.244.1.{n}" for n in range(1, 8)))
        return tuple(at(plan(everything(**own), slices, on=NodeFacts(f"node{node}")), CLUSTER).destinations)

    assert len({order(n) for n in range(20)}) > 1
    assert len({order(n, scheduler="mh") for n in range(20)}) == 1


def test_one_packet_is_for_udp_alone():
    svc = service(ports=((80, 0, "TCP", "t"), (80, 0, "UDP", "u")), one_packet=True)
    frontends = plan(svc, slice_of("web", "10.244.1.10", ports=((8080, "TCP", "t"), (8080, "UDP", "u"))))
    assert {key.protocol: frontend.server for key, frontend in frontends.items()} == {
        Protocol.TCP: ServerAttributes("rr", 0, 0),
        Protocol.UDP: ServerAttributes("rr", ONE_PACKET, 0),
    }


def test_source_ranges_apply_to_load_balancer_vips_only():
    frontends = plan(everything(source_ranges=["192.0.2.64/26", "2001:db8::/32"]), both())
    assert [str(cidr) for cidr in at(frontends, BALANCER).ranges] == ["192.0.2.64/26"]
    assert {at(frontends, way).ranges for way in (CLUSTER, EXTERNAL, NODEPORT)} == {()}


def test_the_vip_itself_is_allowed_when_the_node_is():
    ranges = at(plan(everything(source_ranges=["192.0.2.0/24"]), both()), BALANCER).ranges
    assert [str(cidr) for cidr in ranges] == ["192.0.2.0/24", "203.0.113.5/32"]


def test_nested_ranges_collapse():
    ranges = at(plan(everything(source_ranges=["10.0.0.0/8", "10.1.0.0/16"]), both()), BALANCER).ranges
    assert [str(cidr) for cidr in ranges] == ["10.0.0.0/8"]


def test_the_same_address_as_external_ip_and_load_balancer_keeps_its_ranges():
    svc = service(load_balancer_ips=["203.0.113.5"], external_ips=["203.0.113.5"], source_ranges=["192.0.2.64/26"])
    assert at(plan(svc, both()), BALANCER).ranges


@pytest.mark.parametrize("kind", ["external_ips", "load_balancer_ips"])
@pytest.mark.parametrize("internal_local", [False, True])
def test_an_external_address_that_is_the_own_cluster_ip_stays_one(kind, internal_local):
    svc = service(external_local=True, internal_local=internal_local, health_check_port=31000)
    plain = plan(svc, slice_of("web", "10.244.2.10"))
    frontends = plan(msgspec.structs.replace(svc, **{kind: svc.cluster_ips}), slice_of("web", "10.244.2.10"))
    assert at(frontends, CLUSTER) == at(plain, CLUSTER)


@pytest.mark.parametrize("order", [slice(None), slice(None, None, -1)])
def test_a_node_port_is_no_other_port_of_an_external_ip(order):
    ports = ((80, 30080, "TCP", "a"), (30080, 0, "TCP", "b"))[order]
    pieces = slice_of("web", "10.244.1.10", ports=((1, "TCP", "a"), (2, "TCP", "b")))
    frontends = plan(service(ports=ports, external_ips=["192.0.2.1"]), pieces)
    assert targets(at(frontends, NODEPORT)) == {"10.244.1.10:1"}
    assert at(frontends, NODEPORT).claim is Claim.ALLOCATED


def test_a_cluster_ip_has_the_source_ranges_of_a_load_balancer_with_that_address():
    svc = service(load_balancer_ips=["10.96.0.10"], source_ranges=["192.0.2.64/26"])
    assert [str(cidr) for cidr in at(plan(svc, both()), CLUSTER).ranges] == ["192.0.2.64/26"]


def test_hairpins_are_the_local_endpoints():
    assert at(plan(everything(), both()), CLUSTER).hairpins == (parse_ip("10.244.1.10"),)


def test_families_do_not_mix():
    svc = service(ips=["10.96.0.10", "fd00:10:96::10"], load_balancer_ips=["203.0.113.5", "2001:db8:203::5"])
    six = slice_of("web", endpoint("fd00:10:244:1::10", on="node1"))
    frontends = plan(svc, both(), six)
    assert targets(at(frontends, "[fd00:10:96::10]:80")) == {"[fd00:10:244:1::10]:8080"}
    assert targets(at(frontends, "[2001:db8:203::5]:80")) == {"[fd00:10:244:1::10]:8080"}
    assert targets(at(frontends, BALANCER)) == {HERE, THERE}


def test_only_families_of_the_host_are_served():
    svc = service(ips=("10.96.0.10", "fd00:96::10"))
    assert {len(key.address) for key in plan(svc, both())} == {4, 16}
    assert {len(key.address) for key in plan(svc, both(), families=frozenset((4,)))} == {4}


def test_external_ips_can_be_switched_off():
    svc = everything()
    with_them, without = plan(svc, both()), plan(svc, both(), allow_external_ips=False)
    assert with_them.keys() - without.keys() == {key(EXTERNAL)}


def test_slices_match_by_port_name_and_protocol():
    svc = service(ports=((53, 0, "UDP", "dns"), (53, 0, "TCP", "dns-tcp")))
    pieces = slice_of("web", "10.244.1.10", ports=((5353, "UDP", "dns"), (5354, "TCP", "dns-tcp")))
    frontends = plan(svc, pieces)
    assert targets(at(frontends, "10.96.0.10:53/UDP")) == {"10.244.1.10:5353"}
    assert targets(at(frontends, "10.96.0.10:53/TCP")) == {"10.244.1.10:5354"}


def test_of_two_slices_with_one_address_the_ready_one_counts():
    dying = slice_of("web", endpoint("10.244.1.10", ready=False, terminating=True), name="a")
    alive = slice_of("web", endpoint("10.244.1.10"), name="b")
    for order in ((dying, alive), (alive, dying)):
        assert targets(at(plan(everything(), *order), CLUSTER)) == {HERE}


def test_nodes_start_at_different_endpoints():
    pods = slice_of("web", *(f"10.244.9.{n}" for n in range(1, 11)))
    firsts = {
        next(iter(at(plan(service(), pods, on=node(name=f"node{n}")), CLUSTER).destinations)) for n in range(50)
    }
    assert len(firsts) >= 8


@pytest.mark.parametrize("number", [0, 30080])
def test_node_port_zero_means_none(number):
    frontends = plan(service(ports=((80, number),)), both())
    assert (len(frontends) == 1) is (number == 0)
