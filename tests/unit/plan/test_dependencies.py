from ipvsproxy.base.address import parse_ip
from ipvsproxy.base.frontend import FrontendKey, Protocol
from ipvsproxy.plan.dependencies import guarded_servers, halves, ready_elements, ready_redirects, unneeded_elements
from ipvsproxy.plan.diff import ElementStep, IpvsStep, Verb
from ipvsproxy.plan.state import Dirty
from tests.support.build import key
from tests.support.elements import element

SERVER = FrontendKey(parse_ip("10.96.0.10"), Protocol.TCP, 32848)
WAY = ElementStep(
    element("internal_views4", "203.0.113.5 . tcp . 80"),
    FrontendKey(parse_ip("10.96.0.10"), Protocol.TCP, 32848),
    replaces=True,
)
VERDICT = ElementStep(element("frontends4", "203.0.113.5 . tcp . 80"), "drop", replaces=True)
OTHER = ElementStep(element("internal_views4", "203.0.113.6 . tcp . 80"), None)


def test_a_way_to_a_server_that_could_not_be_made_is_not_switched():
    failed = Dirty(servers={key("10.96.0.10:32848")})
    assert ready_redirects([WAY, VERDICT, OTHER], failed) == [OTHER]
    assert failed.slots == {WAY.slot, VERDICT.slot}


def test_a_way_from_a_server_that_could_not_be_changed_is_not_switched():
    failed = Dirty(servers={key("203.0.113.6:80")})
    assert ready_redirects([WAY, VERDICT, OTHER], failed) == [WAY, VERDICT]
    assert failed.slots == {OTHER.slot}


def new(*frontends):
    return [IpvsStep(Verb.NEW_SERVICE, key(text)) for text in frontends]


def test_a_frontend_waits_for_its_own_rules_and_for_those_of_its_address():
    steps = new("203.0.113.5:80", "203.0.113.5:81", "203.0.113.6:80")
    failed = Dirty(slots={VERDICT.slot})
    assert guarded_servers(steps, failed) == steps[1:]
    assert failed.servers == {key("203.0.113.5:80")}
    assert guarded_servers(steps, Dirty(slots={element("vips4", "203.0.113.5")})) == steps[2:]


def test_changes_are_cut_between_addresses_then_between_frontends_and_no_further():
    guard = ElementStep(element("vips4", "203.0.113.5"), "")
    source = ElementStep(element("allowed4", "203.0.113.5 . tcp . 80 . 198.51.100.0/24"), "")
    assert halves([VERDICT, OTHER, guard, source]) == ([VERDICT, guard, source], [OTHER])
    assert halves([VERDICT, guard, source]) == ([guard], [VERDICT, source])
    assert halves([VERDICT, source]) == ()
    assert halves([]) == ()


def test_what_frontends_share_at_an_address_comes_before_them_and_goes_after():
    """Source ranges are asked only at addresses that are known to have some."""
    ranged, no_view = element("ranged_vips4", "203.0.113.5"), element("viewed4", "203.0.113.5")
    source = ElementStep(element("ranged4", "203.0.113.5 . tcp . 80"), "")
    come, gone = ElementStep(ranged, ""), ElementStep(no_view, None)
    first, rest = halves([source, VERDICT, gone, come])
    assert first == [come]
    assert halves(rest) == ([source, VERDICT], [gone])


def test_frontends_wait_for_what_they_share_at_their_address():
    refused = Dirty(slots={element("ranged_vips4", "203.0.113.5")})
    assert ready_elements([VERDICT, OTHER], refused) == [OTHER]
    assert VERDICT.slot in refused.slots
    assert ready_elements([VERDICT, OTHER], Dirty(slots={VERDICT.slot})) == [VERDICT, OTHER]


def test_a_failed_server_of_another_frontend_of_the_address_holds_nothing_up():
    """A node's address has the NodePorts of all Services."""
    failed = Dirty(servers={key("203.0.113.5:81"), key("10.96.0.10:81")})
    assert ready_redirects([WAY, VERDICT], failed) == [WAY, VERDICT]
    assert unneeded_elements([WAY, VERDICT], failed) == [WAY, VERDICT]
    assert not failed.slots


def test_elements_wait_for_their_own_server_and_those_of_an_address_for_all_servers_there():
    guard = ElementStep(element("vips4", "203.0.113.5"), None)
    steps = [VERDICT, guard, OTHER]
    assert unneeded_elements(steps, Dirty(servers={key("203.0.113.5:80")})) == [OTHER]
    assert unneeded_elements(steps, Dirty(servers={key("203.0.113.5:81")})) == [VERDICT, OTHER]
    assert unneeded_elements(steps, Dirty(vips={parse_ip("203.0.113.5")})) == [OTHER]


def test_endpoints_of_the_short_path_stay_until_new_connections_are_led_another_way():
    """The server of the view could not be made: what leads there now needs all that it leads to."""
    view = ElementStep(element("short_views4", "203.0.113.5 . tcp . 80"), None)
    endpoints = ElementStep(element("internal_endpoints4", "203.0.113.5 . tcp . 80 . 1"), None)
    other = ElementStep(element("internal_endpoints4", "203.0.113.6 . tcp . 80 . 1"), None)
    failed = Dirty(servers={SERVER})
    assert ready_redirects([WAY, view], failed) == []
    assert unneeded_elements([endpoints, other], failed) == [other]
    assert endpoints.slot in failed.slots


def test_what_has_views_asked_for_stays_until_none_is_left():
    """The view could not be led to another server: local pods must find it where it leads now."""
    viewed, elsewhere = (ElementStep(element("viewed4", f"203.0.113.{last}"), None) for last in (5, 6))
    failed = Dirty(servers={SERVER})
    assert ready_redirects([WAY], failed) == []
    assert unneeded_elements([viewed, elsewhere], failed) == [elsewhere]
    assert viewed.slot in failed.slots
