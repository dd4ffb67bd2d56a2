"""Batches on the real kernel: what is there already, what is refused, what answers."""

from __future__ import annotations

import errno
import itertools
from collections.abc import Iterator

import pytest

from ipvsproxy.base.address import parse_ip
from ipvsproxy.kernel.ipvs import Ipvs
from ipvsproxy.plan.diff import IpvsStep, Verb
from ipvsproxy.plan.state import (
    USUAL,
    Destination,
    DestinationAttributes,
    FrontendKey,
    ServerAttributes,
    ServerState,
)
from tests.lab import netns
from tests.lab.lab import Lab

pytestmark = pytest.mark.needs("ip_vs")

RR, WRR, UNKNOWN = ServerAttributes("rr", 0, 0), ServerAttributes("wrr", 0, 0), ServerAttributes("nonsense", 0, 0)
TCP = 6


def frontend(number: int, family: int = 4) -> FrontendKey:
    prefix = "10.96.9." if family == 4 else "fd00:10:96:9::"
    return FrontendKey(parse_ip(f"{prefix}{number}"), TCP, 80)


def targets(count: int, family: int = 4) -> tuple[Destination, ...]:
    if family == 6:
        return tuple(Destination(parse_ip(f"fd00:10:244::{n:x}"), 8080) for n in range(1, count + 1))
    return tuple(Destination(parse_ip(f"10.244.{n // 250}.{n % 250 + 1}"), 8080) for n in range(count))


def creation(number: int, server: ServerAttributes, count: int, family: int = 4) -> IpvsStep:
    return IpvsStep(Verb.NEW_SERVICE, frontend(number, family), server, targets(count, family))


@pytest.fixture
def ipvs(session_lab: Lab) -> Iterator[Ipvs]:
    with netns.inside(session_lab.nodes[0].netns):
        opened = Ipvs()
    opened.apply([IpvsStep(Verb.DEL_SERVICE, key) for key in opened.servers()])
    yield opened
    opened.apply([IpvsStep(Verb.DEL_SERVICE, key) for key in opened.servers()])
    opened.close()


@pytest.mark.parametrize("family", [4, 6])
def test_what_is_written_is_read_back(ipvs: Ipvs, family: int) -> None:
    steps = [creation(number, RR, number, family) for number in range(1, 40)]
    assert ipvs.apply(steps) == []
    assert ipvs.observe() == {step.key: ServerState(RR, dict.fromkeys(step.destinations, USUAL)) for step in steps}
    assert ipvs.state(frontend(7, family)) == ServerState(RR, dict.fromkeys(targets(7, family), USUAL))
    assert ipvs.state(frontend(99, family)) is None


def test_what_is_there_already_is_set_and_nothing_is_lost(ipvs: Ipvs) -> None:
    ipvs.apply([creation(1, RR, 2)])
    ipvs.apply([IpvsStep(Verb.SET_DEST, frontend(1), None, targets(1), DestinationAttributes(0))])
    assert ipvs.apply([creation(1, WRR, 5), creation(2, RR, 3)]) == []
    assert ipvs.state(frontend(1)) == ServerState(WRR, dict.fromkeys(targets(5), USUAL))
    assert ipvs.state(frontend(2)) == ServerState(RR, dict.fromkeys(targets(3), USUAL))


def test_a_refused_server_affects_nothing_else_and_reports_why(ipvs: Ipvs) -> None:
    refused = ipvs.apply([creation(1, RR, 2), creation(2, UNKNOWN, 2), creation(3, RR, 2)])
    assert {item.step.key for item in refused} == {frontend(2)}
    assert [(item.destination, item.errno) for item in refused] == [
        (None, errno.ENOENT),
        *((target, errno.ESRCH) for target in targets(2)),
    ]
    assert ipvs.servers().keys() == {frontend(1), frontend(3)}
    assert ipvs.state(frontend(3)) == ServerState(RR, dict.fromkeys(targets(2), USUAL))


def test_one_refused_destination_leaves_the_others(ipvs: Ipvs) -> None:
    ipvs.apply([creation(1, RR, 3)])
    missing = targets(4)[3]
    (item,) = ipvs.apply([IpvsStep(Verb.SET_DEST, frontend(1), None, targets(4), DestinationAttributes(0))])
    assert (item.destination, item.errno) == (missing, errno.ENOENT)
    assert ipvs.destinations(frontend(1)) == dict.fromkeys(targets(3), DestinationAttributes(0))


def test_what_is_gone_already_counts_as_removed(ipvs: Ipvs) -> None:
    ipvs.apply([creation(1, RR, 2)])
    gone = [IpvsStep(Verb.DEL_DEST, frontend(1), None, targets(3)), IpvsStep(Verb.DEL_SERVICE, frontend(2))]
    assert ipvs.apply(gone) == []
    assert ipvs.destinations(frontend(1)) == {}


def test_thousands_of_destinations_and_of_errors(ipvs: Ipvs) -> None:
    assert ipvs.apply([creation(1, RR, 2000)]) == []
    assert len(ipvs.destinations(frontend(1))) == 2000
    refused = ipvs.apply([IpvsStep(Verb.NEW_DEST, frontend(2), None, targets(2000))])
    assert {item.errno for item in refused} == {errno.ESRCH}
    assert len(refused) == 2000


@pytest.mark.parametrize("family", [4, 6])
def test_a_large_server_is_read_in_pieces_while_others_are_asked_and_changed(
    session_lab: Lab, ipvs: Ipvs, family: int
) -> None:
    with netns.inside(session_lab.nodes[0].netns):
        large = creation(1, WRR, 6000, family)
        assert ipvs.apply([large, creation(2, RR, 1, family)]) == []
        listing = ipvs.each_destination(large.key)
        found = dict(itertools.islice(listing, 1000))
        assert ipvs.apply([creation(3, RR, 10, family)]) == []
        assert len(ipvs.destinations(frontend(2, family))) == 1
        found |= dict(listing)
        assert found == ipvs.destinations(large.key) == dict.fromkeys(targets(6000, family), USUAL)
        assert dict(ipvs.each_connections(large.key)) == dict.fromkeys(targets(6000, family), 0)
        next(ipvs.each_destination(large.key))  # and is left in the middle
        assert list(ipvs.each_destination(frontend(9, family))) == []
