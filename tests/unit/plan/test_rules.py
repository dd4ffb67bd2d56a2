"""Words for the ruleset that no other test compares."""

import pytest

from ipvsproxy.plan.rules import admission
from ipvsproxy.plan.state import ElementKey


@pytest.mark.parametrize(
    ("slot", "rule"),
    [
        (
            ElementKey("allowed4", "192.0.2.1 . tcp . 80 . 10.0.0.0/8"),
            "ct original ip daddr 192.0.2.1 meta l4proto tcp ct original proto-dst 80 ip saddr 10.0.0.0/8 return",
        ),
        (
            ElementKey("allowed6", "2001::5 . udp . 53 . fd00::/16"),
            "ct original ip6 daddr 2001::5 meta l4proto udp ct original proto-dst 53 ip6 saddr fd00::/16 return",
        ),
        (ElementKey("ranged4", "192.0.2.1 . tcp . 80"), None),
        (ElementKey("vips4", "192.0.2.1"), None),
    ],
)
def test_a_source_range_as_a_rule(slot, rule):
    assert admission(slot) == rule
