"""When draining destinations are looked at and when they end, with a clock of the test's own."""

import math
from itertools import pairwise

import pytest

from ipvsproxy.config.annotation_values import UNTIL_POD_IS_GONE
from ipvsproxy.plan.drain import LATEST, LOOKS_AT_ONCE, READ_A_SECOND, READ_AT_ONCE, Drains, Ended, draining
from ipvsproxy.plan.planner import plan_service
from ipvsproxy.plan.state import FrontendKey, ServerAttributes, ServerState
from tests.support.build import config, destination, endpoint, key, node, service, slice_of, weighted

WEB = key("10.96.0.10:80")
ONE, TWO, THREE = (destination(f"10.244.{n}.{n}:8080") for n in (1, 2, 3))
WANTED = plan_service(service(), [slice_of("web", "10.244.1.1")], node(), config())[WEB]


def state(**weights):
    names = {"one": ONE, "two": TWO, "three": THREE}
    return ServerState(
        ServerAttributes("rr", 0, 0), weighted({names[name]: weight for name, weight in weights.items()})
    )


def timed(seconds):
    made = service(drain_seconds=seconds)
    return plan_service(made, [slice_of("web", "10.244.1.1")], node(), config())[WEB]


def test_only_unwanted_destinations_of_weight_0_drain():
    assert draining(WANTED, state(one=1, two=0, three=1)) == [TWO]
    assert draining(WANTED, state(one=0)) == []


def test_looks_come_soon_and_then_less_and_less_often():
    drains = Drains()
    drains.note(WEB, WANTED, state(one=1, two=0), 1000.0)
    looks = []
    while not looks or looks[-1] < 3 * 86400:
        now = drains.next_look
        assert drains.due(now) == [WEB]
        looks.append(now - 1000)
    pauses = [later - earlier for earlier, later in pairwise(looks)]
    assert looks[:5] == [1, 2, 3, 4, 5]
    assert all(later >= earlier - 0.001 for earlier, later in pairwise(pauses))
    assert all(pause <= max(1, earlier / 4) + 0.001 for pause, earlier in zip(pauses, looks, strict=False))
    assert len([look for look in looks if look < 1200]) < 35
    assert pauses[-1] == pytest.approx(LATEST)


def test_it_ends_when_its_last_connection_has_ended():
    drains = Drains()
    drains.note(WEB, WANTED, state(one=1, two=0, three=0), 0.0)
    assert drains.ended(WEB, {ONE: 0, TWO: 0, THREE: 1}, 1.0) == [Ended(TWO, 0)]
    assert drains.ended(WEB, {ONE: 0}, 1.0) == []  # the kernel did not name them
    drains.note(WEB, WANTED, state(one=1, three=0), 1.0)
    assert drains.destinations == 1


def test_the_deadline_is_looked_at_in_time_and_ends_it_with_its_connections():
    drains = Drains()
    drains.note(WEB, timed(90), state(one=1, two=0), 0.0)
    now = 0.0
    while now < 90:
        now = drains.next_look
        assert drains.due(now) == [WEB]
        assert drains.ended(WEB, {TWO: 7}, now) == ([Ended(TWO, 7)] if now == 90 else [])
    assert now == 90
    assert drains.next_look > 90  # what the kernel refuses to delete is tried again, but not at once


@pytest.mark.parametrize(("seconds", "ends"), [(30, 1030.0), (5, 1010.0), (0, None)])
def test_a_timeout_that_changes_counts_from_the_beginning_of_the_drain(seconds, ends):
    drains = Drains()
    drains.note(WEB, timed(3600), state(one=1, two=0), 1000.0)
    drains.note(WEB, timed(seconds), state(one=1, two=0), 1010.0)
    if ends is None:
        assert drains.ended(WEB, {TWO: 1}, 1e9) == []
    else:
        assert drains.next_look <= ends
        assert drains.ended(WEB, {TWO: 1}, 1010.0) == ([Ended(TWO, 1)] if seconds == 5 else [])
        assert drains.ended(WEB, {TWO: 1}, ends) == [Ended(TWO, 1)]


def test_a_later_drain_of_the_same_server_has_an_age_of_its_own():
    drains = Drains()
    drains.note(WEB, timed(100), state(one=1, two=0), 0.0)
    for now in (1, 50):
        drains.due(now)
    drains.note(WEB, timed(100), state(one=1, two=0, three=0), 60.0)
    assert drains.next_look == 61
    assert drains.ended(WEB, {TWO: 1, THREE: 1}, 100.0) == [Ended(TWO, 1)]


def test_one_that_returns_and_leaves_again_starts_anew():
    drains = Drains()
    drains.note(WEB, timed(100), state(one=1, two=0), 0.0)
    drains.note(WEB, timed(100), state(one=1, two=1), 50.0)
    assert (drains.destinations, drains.servers) == (0, 0)
    assert drains.due(99.0) == []
    assert drains.next_look == math.inf
    drains.note(WEB, timed(100), state(one=1, two=0), 99.0)
    assert drains.ended(WEB, {TWO: 1}, 150.0) == []


def test_a_server_that_is_gone_drains_nothing():
    drains = Drains()
    drains.note(WEB, WANTED, state(one=1, two=0), 0.0)
    drains.note(WEB, None, state(one=1, two=0), 1.0)
    drains.note(WEB, WANTED, None, 1.0)
    assert drains.due(10.0) == []
    assert drains.ended(WEB, {TWO: 0}, 10.0) == []


def test_a_rolling_update_of_thousands_asks_only_so_many_times_a_second():
    drains = Drains()
    keys = [FrontendKey(number.to_bytes(4, "big"), 6, 80) for number in range(3 * LOOKS_AT_ONCE)]
    for name in keys:
        drains.note(name, WANTED, state(one=1, two=0), 0.0)
    asked = []
    for second in (1.0, 2.0, 3.0):
        assert drains.next_look == second
        asked.append(drains.due(second))
        assert drains.due(second + 0.5) == []
    assert [len(part) for part in asked] == [LOOKS_AT_ONCE] * 3
    assert sorted(name for part in asked for name in part) == keys  # nobody waits for ever


def crowd(size):
    """Return a server with one destination that drains among so many."""
    others = (destination(f"10.{16 + (n >> 16)}.{n >> 8 & 255}.{n & 255}:8080") for n in range(size - 1))
    return ServerState(ServerAttributes("rr", 0, 0), weighted({TWO: 0} | dict.fromkeys(others, 1)))


@pytest.mark.parametrize("size", [READ_A_SECOND, 10 * READ_A_SECOND])
def test_what_is_read_of_a_large_server_in_one_second_does_not_grow_with_it(size):
    drains, read, looks = Drains(), 0, 0
    drains.note(WEB, WANTED, crowd(size), 0.0)
    while drains.next_look <= 60:
        drains.due(drains.next_look)
        read, looks = read + size, looks + 1
    assert looks > 0
    assert read <= 60 * READ_A_SECOND


def test_large_servers_are_not_all_looked_at_at_once():
    drains, size = Drains(), READ_AT_ONCE // 2
    keys = [FrontendKey(number.to_bytes(4, "big"), 6, 80) for number in range(6)]
    for name in keys:
        drains.note(name, WANTED, crowd(size), 0.0)
    asked = []
    while len(asked) < 3:
        asked.append(drains.due(drains.next_look))
    assert [len(part) for part in asked] == [2, 2, 2]
    assert sorted(name for part in asked for name in part) == keys


def of_pods(*pods):
    """A Service whose endpoints keep connections as long as their pods are there."""
    made = service(drain_seconds=UNTIL_POD_IS_GONE)
    return plan_service(made, [slice_of("web", *pods)], node(), config())[WEB]


def test_connections_go_on_as_long_as_the_pod_is_there():
    drains = Drains()
    ending = endpoint("10.244.2.2", ready=False, serving=False, terminating=True)
    drains.note(WEB, of_pods("10.244.1.1", ending), state(one=1, two=0), 0.0)
    assert drains.ended(WEB, {TWO: 7}, 86400.0) == []
    gone = of_pods("10.244.1.1")
    drains.note(WEB, gone, state(one=1, two=0), 90000.0)
    assert drains.ended(WEB, {TWO: 7}, 90009.0) == []
    drains.note(WEB, gone, state(one=1, two=0), 90005.0)
    assert drains.next_look <= 90010
    assert drains.ended(WEB, {TWO: 7}, 90010.0) == [Ended(TWO, 7)]


def test_a_pod_that_moves_from_one_slice_to_another_is_not_gone():
    drains = Drains()
    drains.note(WEB, of_pods("10.244.1.1"), state(one=1, two=0), 0.0)
    ending = endpoint("10.244.2.2", ready=False, serving=False, terminating=True)
    drains.note(WEB, of_pods("10.244.1.1", ending), state(one=1, two=0), 5.0)
    assert drains.ended(WEB, {TWO: 7}, 3600.0) == []
