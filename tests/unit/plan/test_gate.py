from build import key

from ipvsproxy.plan.diff import ElementStep
from ipvsproxy.plan.gate import ready_ways
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
