"""Nodes do not all start at the same endpoint: the spread of the first one over 50 simulated nodes."""

import collections

import pytest

from ipvsproxy.plan.planner import plan_service
from tests.support.build import config, key, node, service, slice_of

NODES = 50
PATTERNS = ("node{}", "node-{:02}", "ip-10-0-0-{}.ec2.internal", "worker{}.example.com", "gke-pool-a-{}x")
# The value of chi-square that chance exceeds once in a hundred times, by degrees of freedom (from any textbook).
# An order that is the same everywhere gives 50 times the number of endpoints less one.
CRITICAL = {1: 6.6, 2: 9.2, 3: 11.3, 4: 13.3, 6: 16.8, 7: 18.5, 15: 30.6}


def order(name, endpoints, **settings):
    pods = [f"10.244.1.{number + 1}" for number in range(endpoints)]
    frontends = plan_service(service(), [slice_of("web", *pods)], node(name=name), config(**settings))
    return tuple(frontends[key("10.96.0.10:80")].destinations)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("endpoints", [freedom + 1 for freedom in CRITICAL])
def test_every_endpoint_is_the_first_of_about_as_many_nodes(pattern, endpoints):
    firsts = collections.Counter(order(pattern.format(n), endpoints)[0] for n in range(1, NODES + 1))
    expected = NODES / endpoints
    missing = endpoints - len(firsts)
    chi_square = sum((count - expected) ** 2 / expected for count in firsts.values()) + missing * expected
    assert chi_square < CRITICAL[endpoints - 1], firsts


def test_a_node_keeps_its_order():
    assert order("node7", 5) == order("node7", 5)
    assert set(order("node7", 5)) == set(order("node8", 5))


@pytest.mark.parametrize("scheduler", ["sh", "mh", "dh"])
def test_schedulers_that_hash_have_one_order_on_all_nodes(scheduler):
    assert len({order(f"node{n}", 5, scheduler=scheduler) for n in range(NODES)}) == 1
