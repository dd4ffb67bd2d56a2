"""What is told about Local policies: endpoints here, and the lack of them."""

import pytest

from ipvsproxy.plan.local import listen_addresses, local_view
from ipvsproxy.plan.planner import plan_service
from tests.support.build import config, endpoint, node, service, slice_of


def view(item, *slices, **facts):
    here = node(**facts)
    return local_view(item, slices, plan_service(item, slices, here, config()), here.name)


def lb(**settings):
    settings = {"external_local": True, "health_check_port": 31000, **settings}
    return service(ports=((80, 30080),), load_balancer_ips=["203.0.113.5"], **settings)


def test_no_local_policy_no_view():
    assert view(service(), slice_of("web", "10.244.1.1")) is None


def test_ready_endpoints_here_count_once_for_all_ports():
    two_ports = ((8080, "TCP", ""), (9090, "TCP", "admin"))
    told = view(lb(uid="u1"), slice_of("web", "10.244.1.1", "10.244.1.2", "10.244.2.1", ports=two_ports))
    assert told.endpoints == {4: 2}
    assert (told.service, told.uid, told.health_check_port) == ("default/web", "u1", 31000)


@pytest.mark.parametrize(
    ("conditions", "count"),
    [({}, 1), ({"ready": False}, 0), ({"ready": False, "terminating": True}, 0)],
)
def test_serving_terminating_endpoints_do_not_count(conditions, count):
    assert view(lb(), slice_of("web", endpoint("10.244.1.1", **conditions))).endpoints == {4: count}


def test_families_count_on_their_own():
    dual = lb(ips=("10.96.0.10", "fd00:96::10"))
    told = view(dual, slice_of("web", "10.244.1.1"), slice_of("web", endpoint("fd00:10:244:2::1", "node2")))
    assert told.endpoints == {4: 1, 6: 0}
    assert told.lacking == set()  # no IPv6 address of the load balancer, so nobody is turned away


def test_nothing_is_lacking_where_nothing_exists():
    assert view(lb()).lacking == set()


@pytest.mark.parametrize("policy", ["internal", "external"])
@pytest.mark.parametrize(
    ("internal", "external", "where", "lacking"),
    [
        (True, False, "10.244.1.1", set()),
        (True, False, "10.244.2.1", {"internal"}),
        (False, True, "10.244.2.1", {"external"}),
        (True, True, "10.244.1.1", set()),
        (True, True, "10.244.2.1", {"internal", "external"}),
    ],
)
def test_lacking(internal, external, where, lacking, policy):
    item = service(ports=((80, 30080),), internal_local=internal, external_local=external)
    told = view(item, slice_of("web", where), links=["192.0.2.1"])
    assert ((policy, 4) in told.lacking) == (policy in lacking)


def test_only_families_of_the_host_are_listened_on():
    chosen = config(families=frozenset((4,)))
    assert listen_addresses(chosen, node()).keys() == {4}


@pytest.mark.parametrize(
    ("settings", "listening"),
    [
        ((), {4: ["0.0.0.0"], 6: ["::"]}),
        (("0.0.0.0/0", "::/0"), {4: ["0.0.0.0"], 6: ["::"]}),
        (("192.0.2.0/24",), {4: ["192.0.2.1"], 6: ["::"]}),
        (("198.51.100.0/24",), {4: [], 6: ["::"]}),
    ],
)
def test_where_health_check_ports_listen(settings, listening):
    from ipvsproxy.base.address import format_ip, parse_ip
    from ipvsproxy.plan.node import facts

    chosen = config(nodeport_addresses=settings)
    here = facts(chosen, None, [parse_ip("192.0.2.1"), parse_ip("2001:db8::1")])
    found = listen_addresses(chosen, here)
    assert {number: list(map(format_ip, addresses)) for number, addresses in found.items()} == listening
