from build import key

from ipvsproxy.plan.diff import ElementStep, IpvsStep, Verb
from ipvsproxy.plan.gate import guarded_servers, halves, ready_ways
from ipvsproxy.plan.state import Slot, Touched

WAY = ElementStep(Slot("inside4", "203.0.113.5 . tcp . 80"), "10.96.0.10 . 32848", replaces=True)
VERDICT = ElementStep(Slot("frontends4", "203.0.113.5 . tcp . 80"), "drop", replaces=True)
OTHER = ElementStep(Slot("inside4", "203.0.113.6 . tcp . 80"), None)


def test_a_way_to_a_server_that_could_not_be_made_is_not_switched():
    failed = Touched(servers={key("10.96.0.10:32848")})
    assert ready_ways([WAY, VERDICT, OTHER], failed) == [OTHER]
    assert failed.slots == {WAY.slot, VERDICT.slot}


def test_a_way_from_a_server_that_could_not_be_changed_is_not_switched():
    failed = Touched(servers={key("203.0.113.6:80")})
    assert ready_ways([WAY, VERDICT, OTHER], failed) == [WAY, VERDICT]
    assert failed.slots == {OTHER.slot}


def new(*frontends):
    return [IpvsStep(Verb.NEW_SERVICE, key(text)) for text in frontends]


def test_a_frontend_waits_for_its_own_rules_and_for_those_of_its_address():
    steps = new("203.0.113.5:80", "203.0.113.5:81", "203.0.113.6:80")
    failed = Touched(slots={VERDICT.slot})
    assert guarded_servers(steps, failed) == steps[1:]
    assert failed.servers == {key("203.0.113.5:80")}
    assert guarded_servers(steps, Touched(slots={Slot("vips4", "203.0.113.5")})) == steps[2:]


def test_changes_are_cut_between_addresses_then_between_frontends_and_no_further():
    guard = ElementStep(Slot("vips4", "203.0.113.5"), "")
    source = ElementStep(Slot("allowed4", "203.0.113.5 . tcp . 80 . 198.51.100.0/24"), "")
    assert halves([VERDICT, OTHER, guard, source]) == ([VERDICT, guard, source], [OTHER])
    assert halves([VERDICT, guard, source]) == ([VERDICT, source], [guard])
    assert halves([VERDICT, source]) == ()
    assert halves([]) == ()
