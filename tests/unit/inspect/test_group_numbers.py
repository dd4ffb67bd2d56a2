"""Two processes number the groups of tenants each for itself; what they mean is found again."""

from ipvsproxy.base.address import parse_ip
from ipvsproxy.inspect.group_numbers import renumbered
from ipvsproxy.ruleset.elements import ElementKey
from ipvsproxy.ruleset.schema import AUDIENCES, REFUSALS, SHARED_GROUP, UNKNOWN_GROUP
from tests.support.elements import element

ONE, TWO = "10.96.0.1 . tcp . 80", "10.96.0.2 . tcp . 80"


def elements(members, admitted):
    found = {ElementKey(AUDIENCES[4], parse_ip(address)): group for address, group in members.items()}
    return found | {element("admitted4", f"{frontend} . 0:{group * 16:x}"): "" for frontend, group in admitted}


def test_groups_are_known_by_their_members_and_then_by_frontends():
    here = elements({"10.244.1.1": 7, "10.244.1.2": SHARED_GROUP}, [(ONE, 7), (TWO, 7), (TWO, 9)])
    wanted = elements({"10.244.1.1": 2, "10.244.1.2": SHARED_GROUP}, [(ONE, 2), (TWO, 2), (TWO, 3)])
    assert renumbered(here, wanted) == wanted


def counted(*groups):
    return {ElementKey(REFUSALS, None, group): "" for group in groups}


def test_groups_of_which_nothing_else_is_known_are_compared_by_how_many_there_are():
    members = {"10.244.1.1": 7}
    here = elements(members, []) | counted(UNKNOWN_GROUP, 7, 9, 11)
    wanted = elements({"10.244.1.1": 2}, []) | counted(UNKNOWN_GROUP, 2, 3, 4)
    assert renumbered(here, wanted) == wanted
    assert renumbered(elements(members, []) | counted(UNKNOWN_GROUP, 7, 9), wanted) != wanted


def test_what_differs_goes_on_to_differ():
    here = elements({"10.244.1.1": 7, "10.244.1.3": 7}, [(ONE, 7), (TWO, 8)])
    wanted = elements({"10.244.1.1": 2, "10.244.1.3": 3}, [(ONE, 2), (TWO, 2)])
    assert renumbered(here, wanted) == elements({"10.244.1.1": 2, "10.244.1.3": 2}, [(ONE, 2), (TWO, 8)])
