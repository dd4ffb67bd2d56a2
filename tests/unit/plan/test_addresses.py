"""Who has which address, and for which Services that matters."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipvsproxy.base.address import parse_cidr, parse_ip
from ipvsproxy.plan.addresses import Addresses, OtherNodeAddresses
from ipvsproxy.plan.model import Endpoint, Node
from tests.support.build import service, slice_of

A, B, C = map(parse_ip, ("198.51.100.1", "198.51.100.2", "203.0.113.3"))


@pytest.fixture
def known():
    found = Addresses()
    found.service("default/asks", None, service("asks", external_ips=["198.51.100.1"]))
    found.service("default/web", None, service("web", load_balancer_ips=["198.51.100.2"]))
    return found


def nodes(*addresses, ranges=(), answers=0):
    return OtherNodeAddresses(frozenset(map(parse_ip, addresses)), tuple(map(parse_cidr, ranges)), answers)


def test_a_pod_counts_as_long_as_any_slice_has_it(known):
    first, second = slice_of("a", "198.51.100.1", "10.244.1.2"), slice_of("b", "198.51.100.1")
    assert known.slice(None, first) == {"default/asks"}
    assert known.slice(None, second) == set()
    assert known.slice(first, slice_of("a", "10.244.1.2")) == set()
    assert known.is_pod(A)
    assert known.slice(second, None) == {"default/asks"}
    assert (known.is_pod(A), known.is_pod(parse_ip("10.244.1.2"))) == (False, True)


def test_an_endpoint_on_no_node_is_no_pod(known):
    assert known.slice(None, slice_of("a", Endpoint(A))) == set()
    assert not known.is_pod(A)


def test_the_address_of_a_load_balancer_matters_to_those_who_wrote_it_as_external_ip(known):
    victim = service("victim", load_balancer_ips=["198.51.100.1"])
    assert known.service("default/victim", None, victim) == {"default/asks"}
    assert known.is_given(A)
    # A second one with the same address changes nothing for them, nor the end of the first.
    assert known.service("default/second", None, victim) == set()
    assert known.service("default/victim", victim, None) == set()
    assert known.service("default/second", victim, None) == {"default/asks"}
    assert not known.is_given(A)


def test_a_service_that_is_given_what_it_asked_for_stands_in_nobodys_way(known):
    both = service("asks", external_ips=["198.51.100.1"], load_balancer_ips=["198.51.100.1"])
    assert known.service("default/asks", service("asks", external_ips=["198.51.100.1"]), both) == set()
    assert known.is_given(A)
    assert known.service("default/asks", both, None) == set()
    assert not known.is_given(A)


def test_other_nodes_are_known_by_their_objects_and_ours_only_by_its_ranges(known):
    other, own = (Node(name, (A,), (parse_cidr(f"10.244.{n}.0/24"),)) for n, name in ((2, "node2"), (1, "node1")))
    assert known.other_node(None, other) == {"default/asks", "default/web"}
    assert known.own_node(None, own) == {"default/asks", "default/web"}
    assert known.is_node(A)
    assert known.in_pod_range(parse_ip("10.244.1.9"))
    assert known.in_pod_range(parse_ip("10.244.2.9"))
    moved = Node("node2", (B,), other.pod_cidrs)
    assert known.other_node(other, moved) == {"default/asks", "default/web"}
    assert (known.is_node(A), known.is_node(B)) == (False, True)
    known.other_node(moved, None)
    assert (known.is_node(B), known.in_pod_range(parse_ip("10.244.2.9"))) == (False, False)


def test_a_look_at_the_nodes_that_fails_changes_nothing_of_what_was_known(known):
    assert known.neighbours(nodes("198.51.100.1", "192.0.2.2", ranges=["10.244.2.0/24"])) == {
        "default/asks",
        "default/web",
    }
    assert known.neighbours(OtherNodeAddresses(None)) == set()
    assert known.is_node(A)
    assert known.in_pod_range(parse_ip("10.244.2.1"))
    assert known.neighbours(nodes("198.51.100.2", ranges=["10.244.2.0/24"])) == {"default/asks", "default/web"}
    assert (known.is_node(A), known.is_node(B)) == (False, True)


def test_a_new_address_is_unknown_until_a_look_that_began_later(known):
    known.looks_up = True
    new = service("new", external_ips=["203.0.113.3", "198.51.100.1"])
    known.service("default/new", None, new)
    assert (known.is_unknown(C), known.is_unknown(A), known.has_questions) == (True, False, True)
    known.asked(7)
    assert (known.is_unknown(C), known.has_questions) == (True, False)
    assert known.neighbours(nodes(answers=6)) == set()
    assert known.is_unknown(C)
    assert known.neighbours(nodes(answers=7)) == {"default/new"}
    assert not known.is_unknown(C)


def test_a_look_that_fails_settles_questions_as_well(known):
    known.looks_up = True
    known.service("default/new", None, service("new", external_ips=["203.0.113.3"]))
    known.asked(1)
    assert known.neighbours(OtherNodeAddresses(None, answers=1)) == {"default/new"}
    assert not known.is_unknown(C)


def test_an_address_that_no_one_asks_for_any_more_is_forgotten_and_asked_about_again(known):
    known.looks_up = True
    new = service("new", external_ips=["203.0.113.3"])
    known.service("default/new", None, new)
    known.asked(1)
    known.service("default/new", new, None)
    assert not known.is_unknown(C)
    known.service("default/new", None, new)
    assert known.has_questions


services = st.builds(
    lambda name, external, balancers: service(name, external_ips=external, load_balancer_ips=balancers),
    st.sampled_from("abc"),
    *[st.lists(st.sampled_from(["198.51.100.1", "198.51.100.2", "203.0.113.3"]), unique=True)] * 2,
)
slices = st.builds(
    lambda name, pods: slice_of(name, *pods),
    st.sampled_from("abc"),
    st.lists(st.sampled_from(["198.51.100.1", "198.51.100.2", "203.0.113.3"]), unique=True),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.one_of(services, slices), st.booleans()), max_size=15))
def test_any_history_leaves_what_the_last_objects_give(history):
    found, last = Addresses(), {}
    for item, gone in history:
        place = (type(item).__name__, item.key)
        new = None if gone else item
        take(found, place[1], last.get(place), new, kind=place[0])
        last[place] = new
    cold = Addresses()
    for place, item in last.items():
        take(cold, place[1], None, item, kind=place[0])
    for address in (A, B, C):
        assert found.is_pod(address) == cold.is_pod(address)
        assert found.is_given(address) == cold.is_given(address)
    assert vars(found) | {"ports": vars(found.ports)} == vars(cold) | {"ports": vars(cold.ports)}


def take(found, key, old, new, *, kind):
    if kind == "Service":
        found.service(key, old, new)
    else:
        found.slice(old, new)


class CountingSet(set):
    """A set that counts how many members were looked through."""

    looked = 0

    def __iter__(self):
        CountingSet.looked += len(self)
        return super().__iter__()


@pytest.mark.parametrize("others", [10, 1000])
def test_a_slice_costs_the_same_however_many_services_ask_for_addresses(others):
    found = Addresses()
    for number in range(others):
        name = f"s{number}"
        found.service(f"default/{name}", None, service(name, load_balancer_ips=["198.51.100.1"]))
    # One Service more that a load balancer gives the same address concerns none of the others.
    found._given[A] = CountingSet(found._given[A])
    CountingSet.looked = 0
    found.service("default/more", None, service("more", load_balancer_ips=["198.51.100.1"]))
    found.slice(None, slice_of("a", "10.244.1.1"))
    assert CountingSet.looked == 0
