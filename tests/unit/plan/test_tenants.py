"""Which group an address is in, who may connect to a Service, and in which order both change."""

import pytest

from ipvsproxy.base.address import parse_ip
from ipvsproxy.plan.model import Namespace, Pod
from ipvsproxy.plan.tenants import SHARED, Tenants
from ipvsproxy.ruleset.schema import LARGEST_GROUP, SHARED_GROUP
from tests.support.build import service, slice_of

LABEL = "ipvsproxy.io/tenant"
ONE, TWO = parse_ip("10.244.1.1"), parse_ip("10.244.1.2")


def namespace(name, tenant=SHARED):
    return Namespace(name, {LABEL: tenant} if tenant else {"other": "label"})


def pod(space, name, *addresses, node="node1"):
    return Pod(space, name, node, addresses)


def in_namespace(space, **settings):
    made = service("web", **settings)
    return type(made)(**{name: getattr(made, name) for name in made.__struct_fields__} | {"namespace": space})


@pytest.fixture(name="tenants")
def _tenants():
    made = Tenants(LABEL, "node1")
    for name, tenant in (("a", "blue"), ("b", "green"), ("plain", SHARED)):
        made.set_namespace(name, namespace(name, tenant))
    made.join(settled=True)
    return made


def groups_of(tenants, *addresses):
    return [tenants.members.get(address, 0) for address in addresses]


def test_pods_are_in_the_group_of_their_tenant(tenants):
    assert tenants.set_pod("a/one", pod("a", "one", ONE))
    assert tenants.set_pod("plain/two", pod("plain", "two", TWO))
    assert tenants.join(settled=False) == {ONE: tenants.group("blue"), TWO: SHARED_GROUP}
    assert not tenants.set_pod("a/one", pod("a", "one", ONE))
    assert not tenants.set_pod("a/far", pod("a", "far", parse_ip("10.244.2.1"), node="node2"))


def test_who_may_connect_to_a_service(tenants):
    blue, green = tenants.group("blue"), tenants.group("green")
    assert tenants.admitted(in_namespace("plain")) is None
    assert tenants.admitted(in_namespace("a")) == (blue,)
    assert tenants.admitted(in_namespace("a", share_with=("green", "red"))) == tuple(sorted((blue, green)))
    assert tenants.admitted(in_namespace("a", share_with=("*",))) is None
    # Nothing is known of its namespace: nobody is let in, whoever it is to be shared with but all.
    assert tenants.admitted(in_namespace("new", share_with=("green",))) == ()
    assert Tenants("", "node1").admitted(in_namespace("a")) is None


def test_a_tenant_that_comes_into_being_is_named(tenants):
    """Services may have been shared with it before."""
    assert tenants.set_namespace("c", namespace("c", "red")) == ("red",)
    assert tenants.set_namespace("c", namespace("c", "blue")) == ("red",)
    assert tenants.set_namespace("c", namespace("c", "blue")) is None
    assert tenants.set_namespace("c", None) == ()


def test_the_group_of_a_tenant_that_is_gone_is_given_to_another_one_when_no_one_is_in_it(tenants):
    green = tenants.group("green")
    tenants.set_pod("b/one", pod("b", "one", ONE))
    tenants.join(settled=True)
    assert tenants.set_namespace("b", None) == ("green",)
    assert (tenants.group("green"), tenants.has_ended_groups, tenants.release_groups()) == (None, True, [])
    assert tenants.set_namespace("c", namespace("c", "red")) == ("red",)
    assert tenants.group("red") != green
    tenants.leave()
    tenants.release_groups()
    assert not tenants.has_ended_groups
    tenants.set_namespace("d", namespace("d", "grey"))
    assert tenants.group("grey") == green


def test_a_pod_of_an_unknown_namespace_is_in_no_group(tenants):
    tenants.set_pod("new/one", pod("new", "one", ONE))
    assert tenants.join(settled=True) == {}
    tenants.set_namespace("new", namespace("new"))
    assert tenants.join(settled=True) == {ONE: SHARED_GROUP}
    tenants.set_namespace("new", None)
    assert tenants.leave() == [ONE]


def test_an_address_that_two_pods_claim_is_in_no_group_unless_both_are_of_one_tenant(tenants):
    tenants.set_pod("a/one", pod("a", "one", ONE))
    tenants.join(settled=True)
    tenants.set_pod("b/heir", pod("b", "heir", ONE))
    assert tenants.leave() == [ONE]
    assert tenants.join(settled=True) == {}
    tenants.set_pod("a/one", None)
    assert tenants.join(settled=True) == {ONE: tenants.group("green")}
    tenants.set_pod("b/other", pod("b", "other", ONE))
    assert not tenants.has_leaving


def test_a_group_is_left_at_once_and_joined_when_all_services_are_settled(tenants):
    tenants.set_pod("a/one", pod("a", "one", ONE))
    tenants.set_pod("b/two", pod("b", "two", TWO))
    tenants.join(settled=True)
    tenants.set_namespace("a", namespace("a", "green"))
    assert tenants.has_leaving
    assert (tenants.leave(), groups_of(tenants, ONE, TWO)) == ([ONE], [0, tenants.group("green")])
    assert not tenants.can_join(settled=False)
    assert tenants.join(settled=False) == {}
    assert tenants.can_join(settled=True)
    assert tenants.join(settled=True) == {ONE: tenants.group("green")}


def test_only_those_wait_whose_new_group_the_kernel_is_behind_with(tenants):
    tenants.set_pod("a/one", pod("a", "one", ONE))
    tenants.set_pod("b/two", pod("b", "two", TWO))
    tenants.join(settled=True)
    tenants.set_namespace("red", namespace("red", "red"))
    for name, new in (("a", "green"), ("b", "red")):
        tenants.set_namespace(name, namespace(name, new))
    tenants.leave()
    # b was the last namespace of green, which goes on with the group of a.
    green, red = tenants.group("green"), tenants.group("red")
    assert tenants.can_join(settled=True, behind={green})
    assert tenants.join(settled=True, behind={green}) == {TWO: red}
    assert (tenants.take_delayed(), tenants.can_join(settled=True, behind={green})) == ({TWO}, False)
    assert tenants.join(settled=True) == {ONE: green}


def test_a_pod_that_starts_does_not_wait_for_the_services_of_others(tenants):
    tenants.set_namespace("b", namespace("b", "red"))
    tenants.set_pod("a/one", pod("a", "one", ONE))
    assert tenants.can_join(settled=False)
    assert tenants.join(settled=False) == {ONE: tenants.group("blue")}


def test_a_pod_that_starts_waits_while_the_kernel_is_behind_with_its_group_and_with_no_other(tenants):
    blue, green = tenants.group("blue"), tenants.group("green")
    tenants.set_pod("a/one", pod("a", "one", ONE))
    tenants.set_pod("b/two", pod("b", "two", TWO))
    assert not tenants.is_decided(ONE, planned=True)
    assert tenants.can_join(settled=False, behind={blue})
    assert tenants.join(settled=False, behind={blue}) == {TWO: green}
    # Nothing is done until that changes. What it has open is judged by the group that it will join.
    assert not tenants.can_join(settled=True, behind={blue})
    assert (tenants.members.get(ONE), tenants.is_decided(ONE, planned=False), tenants.group_at(ONE)) == (
        None,
        True,
        blue,
    )
    assert tenants.can_join(settled=False)
    assert tenants.join(settled=False) == {ONE: blue}
    assert (tenants.take_delayed(), tenants.are_settled, tenants.group_at(ONE)) == ({ONE}, True, blue)


def test_a_pod_that_waits_for_the_kernel_and_ends_waits_no_more(tenants):
    blue = tenants.group("blue")
    tenants.set_pod("a/one", pod("a", "one", ONE))
    tenants.join(settled=True, behind={blue})
    tenants.set_pod("a/one", None)
    assert tenants.can_join(settled=False, behind={blue})
    assert tenants.join(settled=False, behind={blue}) == {}
    assert (tenants.are_settled, tenants.take_delayed()) == (True, {ONE})


def test_a_pod_that_waits_for_the_kernel_waits_for_services_when_its_namespace_changes(tenants):
    blue, green = tenants.group("blue"), tenants.group("green")
    tenants.set_pod("a/one", pod("a", "one", ONE))
    tenants.join(settled=True, behind={blue})
    tenants.set_namespace("a", namespace("a", "green"))
    assert (tenants.is_decided(ONE, planned=False), tenants.can_join(settled=False)) == (False, False)
    assert (tenants.is_decided(ONE, planned=True), tenants.group_at(ONE)) == (True, green)
    assert tenants.join(settled=True, behind={blue}) == {ONE: green}


def test_an_address_that_is_in_its_group_stays_there_while_the_kernel_is_behind_with_it(tenants):
    tenants.set_pod("a/one", pod("a", "one", ONE))
    tenants.join(settled=True)
    tenants.set_pod("a/heir", pod("a", "heir", ONE))
    tenants.set_pod("a/one", None)
    assert tenants.leave() == []
    assert tenants.join(settled=True, behind={tenants.group("blue")}) == {}
    assert (tenants.are_settled, groups_of(tenants, ONE)) == (True, [tenants.group("blue")])


def test_a_pod_that_is_gone_leaves_its_group(tenants):
    tenants.set_pod("a/one", pod("a", "one", ONE, TWO))
    tenants.join(settled=True)
    tenants.set_pod("a/one", pod("a", "one", ONE))
    assert tenants.leave() == [TWO]
    tenants.set_pod("a/one", None)
    assert tenants.leave() == [ONE]
    assert (len(tenants.pods), tenants.members, tenants.has_leaving) == (0, {}, False)


def test_endpoints_that_are_pods_of_another_tenant_are_left_out(tenants):
    tenants.set_pod("a/one", pod("a", "one", ONE))
    tenants.set_pod("plain/two", pod("plain", "two", TWO))
    piece = slice_of("web", "10.244.1.1", "10.244.1.2", "10.244.2.9")
    left, foreign = tenants.own_endpoints(in_namespace("b"), [piece])
    assert (foreign, [end.address for end in left[0].endpoints]) == ([ONE], [TWO, parse_ip("10.244.2.9")])
    for space in ("a", "plain", "unknown"):
        assert tenants.own_endpoints(in_namespace(space), [piece]) == ([piece], [])


def test_tenants_above_the_limit_have_no_group():
    tenants = Tenants(LABEL, "node1")
    for number in range(LARGEST_GROUP):
        tenants.set_namespace(f"n{number}", namespace(f"n{number}", f"t{number}"))
    assert tenants.lacks_groups
    assert tenants.group(f"t{LARGEST_GROUP - 2}") == LARGEST_GROUP
    assert tenants.group(f"t{LARGEST_GROUP - 1}") is None
    last = f"n{LARGEST_GROUP - 1}"
    tenants.set_pod(f"{last}/one", pod(last, "one", ONE))
    assert tenants.join(settled=True) == {}
    assert tenants.admitted(in_namespace(last)) == ()
    # One that goes makes room.
    tenants.set_namespace("n0", None)
    assert tenants.release_groups() == [f"t{LARGEST_GROUP - 1}"]
    assert (tenants.lacks_groups, tenants.join(settled=True)) == (False, {ONE: SHARED_GROUP + 1})


def test_endpoints_that_are_pods_of_another_tenant_on_other_nodes_are_left_out_if_these_are_known():
    piece = slice_of("web", "10.244.2.1", "10.244.2.2", "10.244.2.9")
    far = [parse_ip("10.244.2.1"), parse_ip("10.244.2.2")]
    for knows in (True, False):
        tenants = Tenants(LABEL, "node1", all_pods=knows)
        for name, tenant in (("a", "blue"), ("b", "green"), ("plain", SHARED)):
            tenants.set_namespace(name, namespace(name, tenant))
        for name, space, address in (("one", "a", far[0]), ("two", "plain", far[1])):
            tenants.set_pod(f"{space}/{name}", pod(space, name, address, node="node2"))
        left, foreign = tenants.own_endpoints(in_namespace("b"), [piece])
        assert foreign == ([far[0]] if knows else [])
        assert len(left[0].endpoints) == (2 if knows else 3)
        # A pod of another node is in no group: what comes from it is judged on its own node.
        assert tenants.join(settled=True) == {}
        # An address that pods of two tenants claim is not judged.
        tenants.set_pod("b/heir", pod("b", "heir", far[0], node="node3"))
        assert tenants.own_endpoints(in_namespace("b"), [piece]) == ([piece], [])
