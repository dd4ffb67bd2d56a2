"""Shares by scheduler; which source masquerading chooses. What packets get: tests/integration/test_explain.py."""

import pytest

from ipvsproxy.base.address import format_ip, parse_ip
from ipvsproxy.inspect.spread import describe, shares
from ipvsproxy.kernel.read.masquerade_source import Own, masquerade_source
from ipvsproxy.plan.records import Counters, DestinationRecord
from ipvsproxy.plan.state import Destination, DestinationAttributes

ONE, TWO, THREE = (Destination(bytes([10, 244, 0, number]), 80) for number in (1, 2, 3))


def reals(*weights, active=(0, 0, 0)):
    return [
        DestinationRecord(to, DestinationAttributes(weight), busy, 0, 0, Counters())
        for to, weight, busy in zip((ONE, TWO, THREE), weights, active, strict=False)
    ]


@pytest.mark.parametrize(
    ("scheduler", "wanted"),
    [
        ("rr", {ONE: 0.5, TWO: 0.5}),
        ("wrr", {ONE: 0.75, TWO: 0.25}),
        ("sh", {ONE: 0.75, TWO: 0.25}),
        ("dh", {ONE: 0.5, TWO: 0.5}),
        ("fo", {ONE: 1.0}),
        ("ovf", {TWO: 1.0}),
        ("one-of-tomorrow", {ONE: 0.75, TWO: 0.25}),
    ],
)
def test_shares(scheduler, wanted):
    assert shares(scheduler, reals(3, 1, 0, active=(4, 0, 0))) == wanted


@pytest.mark.parametrize("scheduler", ["rr", "wrr", "sh", "fo"])
def test_an_endpoint_at_its_upper_threshold_gets_nothing(scheduler):
    full = DestinationRecord(ONE, DestinationAttributes(3, upper_threshold=5), 3, 2, 0, Counters())
    almost = DestinationRecord(TWO, DestinationAttributes(1, upper_threshold=5), 3, 1, 0, Counters())
    assert shares(scheduler, [full, almost]) == {TWO: 1.0}


def test_no_endpoint_that_takes_connections():
    assert shares("rr", reals(0, 0)) == shares("fo", reals(0)) == shares("ovf", reals(1, active=(2,))) == {}


def test_what_is_to_be_known_of_shares():
    assert describe("rr") == describe("wrr") == ""
    assert describe("mh").startswith("mh chooses by the client")
    assert "refused" in describe("dh")


OWN = [
    Own(1, parse_ip("10.77.0.1"), 32), Own(2, parse_ip("192.0.2.1"), 24), Own(2, parse_ip("198.51.100.1"), 24),
]  # fmt: skip


@pytest.mark.parametrize(
    ("link", "towards", "wanted"),
    [
        (2, "192.0.2.2", "192.0.2.1"),
        (2, "198.51.100.7", "198.51.100.1"),
        (2, "203.0.113.9", "192.0.2.1"),
        (3, "10.244.1.5", "10.77.0.1"),
    ],
)
def test_the_source_of_masquerading(link, towards, wanted):
    found = masquerade_source(OWN, link, parse_ip(towards))
    assert found is not None
    assert format_ip(found) == wanted
    assert masquerade_source([], link, parse_ip(towards)) is None
