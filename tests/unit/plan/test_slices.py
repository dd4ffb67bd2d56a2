"""What of too many steps is carried out first, and what waits for the rest."""

import pytest

from ipvsproxy.plan.diff import ElementStep, IpvsStep, Steps, Verb
from ipvsproxy.plan.slices import FEWEST, FIRST, SECONDS, Room, cut, unit_cost
from ipvsproxy.plan.state import USUAL, KernelState, ServerAttributes, ServerState, Vip, VipForm
from ipvsproxy.ruleset.elements import ElementKey, view_slot
from ipvsproxy.ruleset.schema import FRONTENDS, LOCAL
from tests.support.build import destination, key

RR = ServerAttributes("rr", 0, 0)
WEB, LARGE = key("10.96.0.10:80"), key("10.96.0.66:80")
INNER, FORMER = key("10.96.0.66:32848"), key("10.96.0.66:32849")
REDIRECT, VERDICT = view_slot(LOCAL, LARGE), ElementKey(FRONTENDS[4], LARGE)


def pods(count):
    return tuple(destination(f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}:8080") for n in range(1, count + 1))


def new(name, count):
    return IpvsStep(Verb.NEW_SERVICE, name, RR, pods(count))


def vip(name):
    return Vip(name.address, VipForm.ADDRESS)


@pytest.fixture
def room():
    made = Room()
    made.units, made.uncut = 2000.0, 100
    return made


def sizes(steps):
    return {step.key: len(step.destinations) for step in steps}


def test_what_there_is_room_for_is_not_touched(room):
    steps = Steps(added=[new(WEB, 50), new(LARGE, 900)], bound=[vip(WEB), vip(LARGE)])
    assert not cut(steps, KernelState(), room)
    assert sizes(steps.added) == {WEB: 50, LARGE: 900}
    assert len(steps.bound) == 2


def test_small_servers_come_first_and_a_large_one_begins(room):
    steps = Steps(added=[new(LARGE, 9000), new(WEB, 50)], bound=[vip(LARGE), vip(WEB)])
    left = cut(steps, KernelState(), room)
    found = sizes(steps.added)
    assert found[WEB] == 50
    assert 0 < found[LARGE] < 2000
    assert (left.servers, left.vips) == ({LARGE}, set())


def test_a_vip_waits_for_the_servers_of_its_address_that_are_not_begun(room):
    room.units = 3.0
    steps = Steps(added=[new(LARGE, 9000), new(WEB, 2)], bound=[vip(LARGE), vip(WEB)])
    left = cut(steps, KernelState(), room, [WEB])
    assert (left.servers, left.vips) == ({LARGE, WEB}, {LARGE.address})
    assert sizes(steps.added) == {WEB: 1}
    assert steps.bound == [vip(WEB)]


def test_the_server_whose_turn_it_is_gets_half_of_the_room_whatever_others_want(room):
    others = [key(f"10.96.1.{n}:80") for n in range(1, 100)]
    steps = Steps(added=[new(LARGE, 9000), *(new(name, 50) for name in others)])
    cut(steps, KernelState(), room, [LARGE])
    assert sizes(steps.added)[LARGE] * unit_cost(9000) == pytest.approx(1000, abs=unit_cost(9000))


def test_what_the_kernel_has_refused_comes_last(room):
    steps = Steps(added=[new(LARGE, 9000)])
    refused = {LARGE: set(pods(9000)[:500])}
    cut(steps, KernelState(), room, refused=refused)
    (step,) = steps.added
    assert step.destinations == pods(9000)[500 : 500 + len(step.destinations)]


@pytest.mark.parametrize("units", [0.5, 2.0])
def test_there_is_always_room_for_one_message(units, room):
    room.units = units
    steps = Steps(added=[new(LARGE, 9000), new(WEB, 200)])
    cut(steps, KernelState(), room)
    assert sum(sizes(steps.added).values()) == 1


def test_a_redirect_waits_for_all_of_its_server_and_the_former_one_stays_until_then(room):
    shadow = KernelState(
        servers={name: ServerState(RR, dict.fromkeys(pods(1), USUAL)) for name in (LARGE, FORMER)},
        elements={REDIRECT: FORMER},
    )
    steps = Steps(
        added=[new(INNER, 9000)],
        redirects=[ElementStep(REDIRECT, INNER, replaces=True)],
        removed=[IpvsStep(Verb.DEL_SERVICE, FORMER), IpvsStep(Verb.DEL_SERVICE, WEB)],
    )
    left = cut(steps, shadow, room)
    assert (left.servers, left.slots) == ({INNER, FORMER}, {REDIRECT})
    assert steps.redirects == []
    assert [step.key for step in steps.removed] == [WEB]


def test_destinations_go_when_all_new_ones_are_there_and_elements_after_them(room):
    present = pods(9000)
    shadow = KernelState(servers={LARGE: ServerState(RR, dict.fromkeys(present, USUAL))})
    verdict = ElementStep(VERDICT, None)
    leaving = IpvsStep(Verb.DEL_DEST, LARGE, None, present[:5000])
    others = tuple(destination(f"10.200.{n >> 8}.{n & 255}:8080") for n in range(5000))
    steps = Steps(
        added=[IpvsStep(Verb.NEW_DEST, LARGE, None, others)], removed=[leaving], elements_after=[verdict]
    )
    left = cut(steps, shadow, room)
    assert (left.servers, left.slots) == ({LARGE}, {verdict.slot})
    assert steps.removed == steps.elements_after == []
    steps = Steps(removed=[leaving], elements_after=[verdict])
    left = cut(steps, shadow, room)
    assert 0 < sizes(steps.removed)[LARGE] < 5000
    assert steps.elements_after == []


def test_at_the_start_each_server_has_the_room_for_itself(room):
    names = [key(f"10.96.1.{n}:80") for n in range(1, 100)]
    steps = Steps(added=[new(LARGE, 9000), *(new(name, 500) for name in names)])
    left = cut(steps, KernelState(), room, is_start=True)
    assert left.servers == {LARGE}
    assert all(sizes(steps.added)[name] == 500 for name in names)


def test_the_room_begins_small_and_grows_by_steps():
    room = Room()
    assert room.units == FIRST
    room.took(SECONDS / 100)
    assert room.units == 2 * FIRST
    room.took(SECONDS)
    assert room.units == 2 * FIRST


def test_a_slice_takes_no_less_time_than_its_preparation():
    room = Room()
    room.took(10 * SECONDS, 10 * SECONDS)
    assert room.units == FIRST
    room.took(10 * SECONDS, 20 * SECONDS)
    assert room.units == 2 * FIRST


@pytest.mark.parametrize("times", [1.25, 1.5, 2])
def test_after_one_slice_that_took_too_long_the_next_one_has_the_room_that_fits(times):
    room = Room()
    room.took(times * SECONDS)
    assert room.units == FIRST / times


def test_the_room_is_never_too_small_to_go_on():
    room = Room()
    room.took(3600.0)
    assert room.units == FEWEST
