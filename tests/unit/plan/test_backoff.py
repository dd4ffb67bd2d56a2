import math

import pytest

from ipvsproxy.base.address import parse_ip
from ipvsproxy.plan.backoff import WAITS, Backoff
from ipvsproxy.plan.state import Dirty
from ipvsproxy.ruleset.elements import ElementKey, guard
from tests.support.build import key
from tests.support.elements import element
from tests.support.work import growth

WEB, TLS, OTHER = key("203.0.113.5:80"), key("203.0.113.5:443"), key("203.0.113.6:80")
RULES = element("frontends4", "203.0.113.5 . tcp . 80")
RANGE = element("allowed4", "203.0.113.5 . tcp . 80 . 198.51.100.0/24")
VIP = parse_ip("203.0.113.5")
ALL = {RULES, RANGE, guard(VIP)}
"""Elements that are wanted."""


def failing(*names, now=0.0):
    backoff = Backoff()
    backoff.settle(Dirty(), touched(*names), now)
    return backoff


def touched(*names):
    return Dirty(
        {name for name in names if type(name) is type(WEB)},
        {name for name in names if isinstance(name, bytes)},
        {name for name in names if isinstance(name, ElementKey)},
    )


def test_what_failed_waits_twice_as_long_each_time():
    backoff, now, waits = failing(WEB), 0.0, []
    for _ in range(12):
        assert not backoff.due(backoff.next - 0.01)
        waits.append(backoff.next - now)
        now = backoff.next
        assert backoff.due(now) == touched(WEB)
        backoff.settle(touched(WEB), touched(WEB), now)
    assert waits[:3] == pytest.approx([0.1, 0.2, 0.4])
    assert WAITS.longest <= waits[-1] <= WAITS.longest + 1


def test_what_takes_long_to_fail_leaves_most_of_the_time_to_others():
    backoff = Backoff()
    backoff.settle(Dirty(), touched(WEB), 100.0, took=1.5)
    assert backoff.next == pytest.approx(115.0)
    backoff.settle(backoff.due(115.0), touched(WEB), 115.0, took=1.5)
    assert backoff.next == pytest.approx(145.0)
    backoff.settle(backoff.due(145.0), touched(WEB), 145.0, took=100.0)
    assert backoff.next == pytest.approx(145.0 + WAITS.longest)


def test_what_succeeds_is_forgotten_and_begins_anew():
    backoff = failing(WEB, RULES)
    backoff.settle(touched(WEB, RULES), touched(RULES), 1.0)
    assert backoff.due(9.0) == touched(RULES)
    backoff.settle(touched(RULES), Dirty(), 9.0)
    assert not backoff
    assert backoff.next == math.inf
    backoff.settle(touched(WEB), touched(WEB), 10.0)
    assert backoff.next == pytest.approx(10.1)


def test_the_change_of_another_object_is_no_reason_to_try_again():
    backoff = failing(WEB)
    backoff.settle(touched(OTHER), Dirty(), 0.05)
    backoff.settle(touched(TLS), touched(TLS), 0.05)
    assert not backoff.due(0.09)
    assert backoff.due(0.1) == touched(WEB)
    assert backoff.due(0.2) == touched(TLS)


def test_a_name_that_was_tried_meanwhile_is_not_due_at_its_old_time():
    backoff = failing(WEB)
    backoff.settle(touched(WEB), touched(WEB), 0.05)
    assert not backoff.due(0.1)
    assert backoff.due(0.25) == touched(WEB)


def test_long_waits_end_together():
    backoff = Backoff()
    for n in range(100):
        backoff.settle(Dirty(), touched(key(f"10.96.0.{n}:80")), n / 1000)
    now = ends = 0
    while len(backoff) and ends < 2000:
        now = backoff.next
        found = backoff.due(now)
        backoff.settle(found, found, now)
        ends += 1
        if len(found.servers) == 100:
            break
    assert len(found.servers) == 100


def test_the_other_names_of_a_frontend_are_related():
    backoff = failing(WEB, RULES, RANGE, TLS, VIP, OTHER)
    found = backoff.related(touched(RANGE), ALL)
    assert found.slots == {RULES}
    assert found.vips == {VIP}
    assert WEB in found.servers
    assert OTHER not in found.servers


def test_what_an_address_needs_is_related_to_all_its_frontends():
    backoff = failing(guard(VIP), RULES)
    assert backoff.related(touched(TLS), ALL).slots == {guard(VIP), RULES}
    assert backoff.related(touched(VIP), ALL).slots == {guard(VIP), RULES}
    assert not backoff.related(touched(OTHER), ALL)


def test_an_element_that_is_only_to_go_holds_nothing_up():
    """It may wait for the VIP of its address: both would wait for ever."""
    assert failing(RULES).related(touched(VIP), {RULES}).slots == {RULES}
    assert failing(RULES, RANGE).related(touched(VIP), set()).slots == set()
    # But what would let in too many does as long as its frontend stays.
    assert failing(RANGE).related(touched(VIP), {RULES}).slots == {RANGE}


def test_the_server_that_a_way_leads_to_is_related():
    backoff = failing(WEB)
    assert backoff.related(touched(OTHER), ALL, [WEB]).servers == {WEB}


def test_a_frontend_is_held_by_its_own_names_and_by_those_of_its_address():
    assert failing(WEB).holds(WEB)
    assert failing(RANGE).holds(WEB)
    assert failing(guard(VIP)).holds(WEB)
    assert failing(VIP).holds(WEB)
    assert not failing(TLS).holds(WEB)
    assert not failing(OTHER).holds(WEB)
    assert not Backoff().holds(WEB)


def test_families_of_elements_that_wait():
    backoff = failing(RULES, element("vips6", "fd00::1"))
    assert backoff.families == {4, 6}
    backoff.settle(touched(RULES), Dirty(), 1.0)
    assert backoff.families == {6}


def test_a_change_costs_the_same_however_many_wait_at_its_address():
    def prepare(size):
        backoff = failing(*(key(f"203.0.113.5:{n}") for n in range(1, size)))
        mine = touched(key("203.0.113.5:65000"))
        return lambda: (backoff.related(mine, ALL), backoff.settle(mine, Dirty(), 0.0), backoff.holds(WEB)) * 1

    # In proportion it would be 1.
    assert growth(prepare) < 0.2
