"""Elements know whose they are, and which others belong to them."""

import pytest

from ipvsproxy.base.address import parse_ip
from ipvsproxy.base.frontend import FrontendKey, Protocol
from ipvsproxy.ruleset.elements import guards, needed_parts
from tests.support.elements import element

ADDRESS = parse_ip("192.0.2.1")
WEB = FrontendKey(ADDRESS, Protocol.TCP, 80)
VERDICT, INSIDE = element("frontends4", "192.0.2.1 . tcp . 80"), element("internal_views4", "192.0.2.1 . tcp . 80")
RANGED = element("ranged4", "192.0.2.1 . tcp . 80")
ALLOWED = element("allowed4", "192.0.2.1 . tcp . 80 . 10.0.0.0/8")
VIP, HAIRPIN = element("vips4", "192.0.2.1"), element("hairpin4", "192.0.2.1 . 192.0.2.1")
LINK, PORT = element("pod_interfaces", '"cni0"'), element("health_check_ports", "30000")


@pytest.mark.parametrize("slot", [VERDICT, INSIDE, RANGED, ALLOWED])
def test_elements_of_frontends(slot):
    assert (slot.owner, slot.frontend, slot.address) == (WEB, WEB, ADDRESS)


@pytest.mark.parametrize("slot", [VIP, HAIRPIN])
def test_elements_of_addresses(slot):
    assert (slot.owner, slot.frontend, slot.address) == (ADDRESS, None, ADDRESS)


@pytest.mark.parametrize("slot", [LINK, PORT, element("pod_cidrs6", "fd00::/16")])
def test_elements_of_the_node(slot):
    assert (slot.owner, slot.frontend, slot.address) == (None, None, None)


def test_source_ranges_restrict_their_frontend():
    assert RANGED.restricted_frontend == ALLOWED.restricted_frontend == VERDICT
    assert {slot.restricted_frontend for slot in (VERDICT, INSIDE, VIP, LINK)} == {None}


def test_the_verdict_and_the_internal_view_lead_to_servers():
    assert VERDICT.redirects == INSIDE.redirects == (VERDICT, INSIDE)
    of_group = element("group_views4", "192.0.2.1 . tcp . 80 . 0:10")
    assert of_group.redirects == (VERDICT, of_group)
    assert {slot.redirects for slot in (RANGED, ALLOWED, VIP, LINK)} == {()}


def test_some_elements_need_a_part_of_the_ruleset():
    assert needed_parts([VERDICT, VIP, LINK]) == frozenset()
    assert needed_parts([VERDICT, RANGED, ALLOWED]) == {"source_ranges", "source_ranges_ipvs"}
    assert needed_parts([element("view_frontends6", "fd00::1 . udp . 53")]) == {"view_invalid"}


def test_equal_elements_are_one():
    assert len({VERDICT, element("frontends4", "192.0.2.1 . tcp . 80")}) == 1
    assert len({VERDICT, RANGED}) == 2


def test_a_vip_is_guarded_and_served():
    assert guards(ADDRESS) == (VIP, element("served4", "192.0.2.1"))
