import pytest

from ipvsproxy.plan.state import Destination
from ipvsproxy.plan.topology import choose
from tests.support.build import endpoint


def pick(*endpoints, node="node1", zone=""):
    choice = choose({Destination(e.address, 80): e for e in endpoints}, node, zone)
    return (
        {d.address[3] for d in choice.cluster},
        {d.address[3] for d in choice.local},
        choice.exists,
    )


READY_HERE = endpoint("10.244.1.1")
READY_THERE = endpoint("10.244.2.2")
LEAVING_HERE = endpoint("10.244.1.3", ready=False, terminating=True)
LEAVING_THERE = endpoint("10.244.2.4", ready=False, terminating=True)
GONE_HERE = endpoint("10.244.1.5", ready=False, serving=False, terminating=True)
STARTING_HERE = endpoint("10.244.1.6", ready=False, serving=False)


@pytest.mark.parametrize(
    ("endpoints", "cluster", "local", "exists"),
    [
        ([], set(), set(), False),
        ([READY_HERE, READY_THERE], {1, 2}, {1}, True),
        ([READY_THERE], {2}, set(), True),
        ([READY_THERE, LEAVING_HERE], {2}, {3}, True),
        ([READY_HERE, LEAVING_HERE], {1}, {1}, True),
        ([LEAVING_HERE, LEAVING_THERE], {3, 4}, {3}, True),
        ([LEAVING_THERE], {4}, set(), True),
        ([GONE_HERE, STARTING_HERE], set(), set(), False),
        ([GONE_HERE, READY_THERE], {2}, set(), True),
    ],
)
def test_conditions_and_policies(endpoints, cluster, local, exists):
    assert pick(*endpoints) == (cluster, local, exists)


def zoned(address, *zones, **settings):
    return endpoint(address, zone_hints=zones, **settings)


def test_zone_hints_choose_endpoints_of_the_zone():
    assert pick(zoned("10.244.1.1", "a"), zoned("10.244.2.2", "b"), zone="b")[0] == {2}


@pytest.mark.parametrize(
    ("endpoints", "zone"),
    [
        ([zoned("10.244.1.1", "a"), zoned("10.244.2.2")], "a"),  # one has no hint
        ([zoned("10.244.1.1", "a"), zoned("10.244.2.2", "b")], "c"),  # none is for us
        ([zoned("10.244.1.1", "a"), zoned("10.244.2.2", "b")], ""),  # the node has no zone
    ],
)
def test_zone_hints_are_ignored(endpoints, zone):
    assert pick(*endpoints, zone=zone)[0] == {1, 2}


def test_hints_of_endpoints_that_are_not_ready_do_not_count():
    unready = zoned("10.244.3.3", ready=False)
    assert pick(zoned("10.244.1.1", "a"), zoned("10.244.2.2", "b"), unready, zone="a")[0] == {1}


def test_node_hints_come_before_zone_hints():
    one = endpoint("10.244.1.1", node_hints=("node1",), zone_hints=("b",))
    two = endpoint("10.244.2.2", node_hints=("node2",), zone_hints=("a",))
    assert pick(one, two, zone="a")[0] == {1}
    assert pick(one, two, node="node3", zone="a")[0] == {2}


def test_topology_never_affects_local_policy():
    assert pick(zoned("10.244.1.1", "b"), zoned("10.244.2.2", "a"), zone="a") == ({2}, {1}, True)


def test_an_unnamed_node_has_no_local_endpoints():
    assert pick(endpoint("10.244.1.1", on="x"), node="")[1] == set()
