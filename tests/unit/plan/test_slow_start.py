"""New endpoints get their weight step by step."""

import math

import pytest

from ipvsproxy.plan.planner import plan_service
from ipvsproxy.plan.slow_start import SlowStarts
from ipvsproxy.plan.state import DestinationAttributes, ServerAttributes, ServerState
from tests.support.build import config, destination, endpoint, key, node, service, slice_of

WEB = service(slow_start_seconds=90.0, scheduler="wrr")
FRONTEND = key("10.96.0.10:80")
OLD, NEW = "10.244.1.1", "10.244.2.1"


def pods(*addresses, ready=True):
    return [slice_of("web", *(endpoint(address, ready=ready, name=f"pod-{address}") for address in addresses))]


def weights(starts, slices, now, svc=WEB):
    """Return the weight of each endpoint by its address."""
    steps = starts.steps(svc, slices, "", now)
    wanted = plan_service(svc, slices, node(), config(), steps=steps)[FRONTEND].destinations
    return {str(d).split(":")[0]: attributes.weight for d, attributes in wanted.items()}


def kernel(**there):
    """What the kernel has: weights by address."""
    found = {destination(f"{address}:8080"): DestinationAttributes(weight) for address, weight in there.items()}
    return {FRONTEND: ServerState(ServerAttributes("wrr", 0, 0), found)}


def test_a_new_endpoint_gets_a_tenth_and_then_a_tenth_more_each_time():
    starts = SlowStarts()
    assert weights(starts, pods(OLD), 0) == {OLD: 10}
    assert starts.next == math.inf
    seen = []
    now = 1000.0
    while True:
        seen.append((now, weights(starts, pods(OLD, NEW), now)[NEW]))
        if starts.next == math.inf:
            break
        now = starts.next
        assert list(starts.due(now)) == ["default/web"]
    assert seen == [(1000.0 + 10 * step, step + 1) for step in range(10)]
    assert weights(starts, pods(OLD, NEW), now) == {OLD: 10, NEW: 10}


def test_planning_in_between_makes_no_more_steps():
    starts = SlowStarts()
    weights(starts, pods(OLD), 0)
    assert weights(starts, pods(OLD, NEW), 100.0)[NEW] == 1
    assert weights(starts, pods(OLD, NEW), 109.9)[NEW] == 1
    assert starts.next == 110.0
    assert list(starts.due(109.9)) == []
    assert weights(starts, pods(OLD, NEW), 135.0)[NEW] == 4
    assert starts.next == 140.0


def test_planning_again_and_again_takes_no_more_memory():
    starts = SlowStarts()
    weights(starts, pods(OLD), 0)
    for now in range(100, 110):
        weights(starts, pods(OLD, NEW), now)
    assert (starts.next, len(starts._agenda)) == (110.0, 1)


def test_one_that_is_not_ready_for_a_while_begins_anew():
    starts = SlowStarts()
    weights(starts, pods(OLD, NEW), 0)
    weights(starts, pods(OLD), 10)
    assert weights(starts, pods(OLD, NEW), 20) == {OLD: 10, NEW: 1}


def test_no_endpoint_is_new_at_a_cold_start():
    starts = SlowStarts()
    starts.remember({})
    assert weights(starts, pods(OLD, NEW), 0) == {OLD: 10, NEW: 10}


def test_no_endpoint_is_new_when_a_service_begins_to_ask():
    starts = SlowStarts()
    starts.remember(None)
    assert weights(starts, pods(OLD, NEW), 5) == {OLD: 10, NEW: 10}


def test_a_restart_goes_on_where_the_kernel_is():
    starts = SlowStarts()
    starts.remember(kernel(**{OLD: 10, NEW: 4}))
    assert weights(starts, pods(OLD, NEW, "10.244.3.1"), 50) == {OLD: 10, NEW: 4, "10.244.3.1": 1}
    assert starts.next == 60
    starts.remember(None)
    assert weights(starts, pods(OLD, NEW, "10.244.3.1"), 110) == {OLD: 10, NEW: 10, "10.244.3.1": 7}


@pytest.mark.parametrize("step", range(1, 11))
@pytest.mark.parametrize("weight", [1, 7, 6553, 65535])
def test_the_weight_in_the_kernel_tells_the_step(step, weight):
    svc = service(slow_start_seconds=90.0, scheduler="wrr", weights=((f"pod-{NEW}", weight),))
    starts = SlowStarts()
    weights(starts, pods(OLD), 0, svc)
    now = 10.0 * (step - 1)
    weights(starts, pods(OLD, NEW), 0, svc)
    there = weights(starts, pods(OLD, NEW), now, svc)
    again = SlowStarts()
    again.remember(kernel(**there))
    assert weights(again, pods(OLD, NEW), now, svc) == there


def test_weights_of_pods_and_of_zones_are_ten_times_as_large():
    svc = service(slow_start_seconds=90.0, scheduler="wrr", weights=((f"pod-{OLD}", 3), (f"pod-{NEW}", 0)))
    starts = SlowStarts()
    assert weights(starts, pods(OLD, NEW), 0, svc) == {OLD: 30, NEW: 0}


def test_a_service_that_has_gone_is_forgotten():
    starts = SlowStarts()
    weights(starts, pods(OLD), 0)
    weights(starts, pods(OLD, NEW), 5)
    starts.forget("default/web")
    assert starts.next == math.inf
    assert list(starts.due(1e9)) == []
