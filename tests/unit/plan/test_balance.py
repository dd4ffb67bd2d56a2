"""Which attributes the destinations of a Service get."""

import msgspec
import pytest

from ipvsproxy.plan.planner import plan_service
from ipvsproxy.plan.state import DestinationAttributes
from ipvsproxy.plan.tally import Tally
from tests.support.build import config, endpoint, key, node, service, slice_of

CLUSTER, NODE_PORT = key("10.96.0.10:80"), key("192.0.2.1:30080")
PODS = {"10.244.1.1": "web-0", "10.244.1.2": "web-1", "10.244.2.1": "web-canary-x"}


def pods(**settings):
    found = slice_of("web", *(endpoint(address, name=name) for address, name in PODS.items()))
    return msgspec.structs.replace(found, **settings)


def planned(svc, *slices, tally=None):
    """The attributes of each pod at a ClusterIP, by its name."""
    frontends = plan_service(svc, slices or [pods()], node(), config(), tally)
    return {
        PODS[str(destination).split(":")[0]]: attributes
        for destination, attributes in frontends[CLUSTER].destinations.items()
    }


def weights(svc, *slices):
    return {name: attributes.weight for name, attributes in planned(svc, *slices).items()}


def test_without_a_wish_all_are_alike():
    assert set(planned(service()).values()) == {DestinationAttributes()}


def test_weights_by_name():
    assert weights(service(weights=(("web-0", 3), ("web-1", 0), ("other", 7)))) == {
        "web-0": 3, "web-1": 0, "web-canary-x": 1,
    }  # fmt: skip


def test_a_name_comes_before_the_longest_beginning():
    wish = (("web-*", 5), ("web-canary-*", 2), ("*", 9), ("web-1", 0))
    assert weights(service(weights=wish)) == {"web-0": 5, "web-1": 0, "web-canary-x": 2}


def test_the_annotation_of_a_slice_comes_first():
    svc = service(weights=(("web-0", 3), ("web-1", 4)))
    assert weights(svc, pods(weights=(("web-0", 0),))) == {"web-0": 0, "web-1": 4, "web-canary-x": 1}


def test_a_slice_may_have_one_weight_for_all():
    svc = service(weights=(("web-1", 4), ("web-canary-*", 9)))
    assert weights(svc, pods(weight=2)) == {"web-0": 2, "web-1": 4, "web-canary-x": 2}
    assert weights(svc, pods(weight=0)) == {"web-0": 0, "web-1": 4, "web-canary-x": 0}


def test_the_weight_of_a_slice_is_that_of_its_own_endpoints():
    own = slice_of("web", endpoint("10.244.1.1"), name="web-a")
    other = slice_of("web", endpoint("10.244.1.2"), name="web-b")
    assert weights(service(), msgspec.structs.replace(own, weight=7), other) == {"web-0": 7, "web-1": 1}


def test_all_frontends_have_the_weights():
    frontends = plan_service(service(ports=((80, 30080),), weights=(("web-0", 3),)), [pods()], node(), config())
    assert frontends[NODE_PORT].destinations == frontends[CLUSTER].destinations


def zoned(**settings):
    """Two pods in zone a, one in b."""
    zones = dict(zip(PODS, ("a", "a", "b"), strict=True))
    found = slice_of("web", *(endpoint(address, name=PODS[address], zone=zone) for address, zone in zones.items()))
    svc = service(scheduler="wrr", **settings)
    return lambda zone: {
        PODS[str(destination).split(":")[0]]: attributes.weight
        for destination, attributes in plan_service(svc, [found], node(zone=zone), config())[
            CLUSTER
        ].destinations.items()
    }


def test_endpoints_in_the_zone_of_the_node_get_more():
    by_zone = zoned(same_zone_weight=10)
    assert by_zone("a") == {"web-0": 10, "web-1": 10, "web-canary-x": 1}
    assert by_zone("b") == {"web-0": 1, "web-1": 1, "web-canary-x": 10}
    assert set(by_zone("").values()) == set(by_zone("c").values()) == {1}


def test_the_weight_of_the_zone_multiplies_that_of_the_pod():
    by_zone = zoned(same_zone_weight=1000, weights=(("web-0", 3), ("web-1", 0), ("web-c*", 100)))
    assert by_zone("a") == {"web-0": 3000, "web-1": 0, "web-canary-x": 100}
    assert by_zone("b") == {"web-0": 3, "web-1": 0, "web-canary-x": 65535}


def test_a_limit_of_connections_goes_to_every_destination():
    limited = DestinationAttributes(1, upper_threshold=100, lower_threshold=80)
    assert set(planned(service(max_connections=(100, 80))).values()) == {limited}
    weighted = planned(service(max_connections=(100, 80), weights=(("web-0", 3),)))
    assert weighted["web-0"] == DestinationAttributes(3, 100, 80)
    assert weighted["web-1"] == limited


@pytest.mark.parametrize(
    ("scheduler", "wish", "said"),
    [
        ("rr", (("web-0", 3),), True),
        ("lc", (("web-*", 3),), True),
        ("", (("web-0", 3),), True),  # the configured one is rr
        ("rr", (("web-0", 0), ("web-1", 1)), False),
        ("wrr", (("web-0", 3),), False),
        ("mh", (("web-0", 3),), False),
    ],
)
def test_weights_that_have_no_effect_are_reported(scheduler, wish, said):
    tally = Tally(10**6)
    planned(service(scheduler=scheduler, weights=wish), tally=tally)
    assert [("scheduler" in complaint) for complaint in tally.complaints] == [True] * said
