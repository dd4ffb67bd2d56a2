"""With which groups of sources the kernel is behind."""

import pytest

from ipvsproxy.plan.groups_behind import UP_TO_DATE, Behind, groups_behind
from ipvsproxy.ruleset.elements import ElementKey
from ipvsproxy.ruleset.schema import ADMITTED, AUDIENCES, BY_AUDIENCE, FRONTENDS, GROUP_VIEWS, RESTRICTED
from tests.support.build import key

WEB, GROUP = key("10.96.0.10:80"), 3
SHARE, VIEW = ElementKey(ADMITTED[4], WEB, GROUP), ElementKey(GROUP_VIEWS[4], WEB, GROUP)
FRONTEND = {ElementKey(FRONTENDS[4], WEB): ""}


def test_a_share_that_ends_lets_its_group_in_until_it_is_gone():
    assert groups_behind([SHARE], {}, {SHARE: ""}) == Behind(frozenset({GROUP}))
    # One that is lacking lets nobody in.
    assert groups_behind([SHARE], {SHARE: ""}, {}) == UP_TO_DATE


def test_a_view_that_leads_a_group_to_another_server_than_it_is_to():
    assert groups_behind([VIEW], {}, {VIEW: "old"}) == Behind(frozenset({GROUP}))
    assert groups_behind([VIEW], {VIEW: "new"}, {VIEW: "old"}) == Behind(frozenset({GROUP}))
    # One that is lacking leads nobody away, and pods need not wait for it.
    assert groups_behind([VIEW], {VIEW: "new"}, {}) == UP_TO_DATE


@pytest.mark.parametrize("kind", [RESTRICTED, BY_AUDIENCE])
def test_a_frontend_that_is_not_restricted_yet_is_open_to_all(kind):
    slot = ElementKey(kind[4], WEB)
    assert groups_behind([slot], {slot: ""}, FRONTEND) == Behind(all=True)
    assert groups_behind([slot], {slot: ""}, {}) == UP_TO_DATE
    assert groups_behind([slot], {}, FRONTEND) == UP_TO_DATE


def test_members_of_groups_keep_no_one_waiting():
    slot = ElementKey(AUDIENCES[4], WEB.address)
    assert groups_behind([slot], {slot: GROUP}, {}) == UP_TO_DATE
