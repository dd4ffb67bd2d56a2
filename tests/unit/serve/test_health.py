"""When /healthz and /livez say 200 and when 503, and the exact words."""

import json

import msgspec
import pytest

from ipvsproxy.exchange.report import Sync
from ipvsproxy.serve.board import Board
from ipvsproxy.serve.health import Health, responder, stamp
from ipvsproxy.serve.http import Request
from tests.support.clock import Clock


@pytest.fixture
def clock():
    return Clock(1_790_000_000.25)


@pytest.fixture
def health(clock):
    """Synced in both families, on an eligible node; 30 s between syncs."""
    made = Health(30, (4, 6), clock, clock)
    made.succeeded()
    made.node(eligible=True)
    return made


def codes(health):
    return health.healthz()[0], health.livez()[0]


def test_nothing_queued(health):
    assert codes(health) == (200, 200)


def test_queued_for_less_than_two_periods(health, clock):
    health.queued()
    clock.now += 59.9
    assert codes(health) == (200, 200)


def test_one_family_late(health, clock):
    health.queued((4,))
    clock.now += 60
    assert codes(health) == (503, 503)
    status = json.loads(health.livez()[1])["status"]
    assert {name: family["healthy"] for name, family in status.items()} == {"IPv4": False, "IPv6": True}
    assert not health.healthy


def test_only_the_other_family_synced(health, clock):
    health.queued((4, 6))
    clock.now += 60
    health.succeeded(behind=(6,))
    assert codes(health) == (503, 503)


def test_late_family_synced(health, clock):
    health.queued()
    clock.now += 600
    health.succeeded()
    assert codes(health) == (200, 200)


def test_the_oldest_moment_counts(health, clock):
    for _ in range(7):
        health.queued()
        clock.now += 10
    assert codes(health) == (503, 503)


def test_a_loop_that_hangs_is_noticed(health, clock):
    clock.now += 89
    assert codes(health) == (200, 200)
    clock.now += 1
    assert codes(health) == (503, 503)
    health.succeeded()
    assert codes(health) == (200, 200)


def test_setting_the_clock_makes_no_node_unhealthy():
    wall, steady = Clock(1_790_000_000.25), Clock(1_790_000_000.25)
    health = Health(30, (4, 6), wall, steady)
    health.queued()
    wall.now += 1_000_000
    assert health.healthy


def test_node_not_eligible(health):
    health.node(eligible=False)
    assert codes(health) == (503, 200)
    body = json.loads(health.healthz()[1])
    assert body["healthy"] is True
    assert body["nodeEligible"] is False


def test_waiting_for_the_first_lists_is_alive_and_not_ready(clock):
    health = Health(30, (4, 6), clock, clock)
    health.node(eligible=True)
    clock.now += 3600
    assert codes(health) == (503, 200)
    assert health.healthz()[1] == (
        b'{"lastUpdated":"0001-01-01T00:00:00Z","currentTime":"2026-09-21T15:13:20.25Z",'
        b'"nodeEligible":true,"healthy":false}'
    )


def test_the_exact_body(health, clock):
    clock.now += 1.5
    times = '{"lastUpdated":"2026-09-21T14:13:20.25Z","healthy":true}'
    assert health.healthz()[1].decode() == (
        '{"lastUpdated":"2026-09-21T14:13:21.75Z","currentTime":"2026-09-21T14:13:21.75Z","nodeEligible":true,'
        f'"healthy":true,"status":{{"IPv4":{times},"IPv6":{times}}}}}'
    )
    assert b"nodeEligible" not in health.livez()[1]


def test_a_sick_answer_has_the_newest_update(health, clock):
    health.queued()
    clock.now += 100
    body = json.loads(health.livez()[1])
    assert body["lastUpdated"] == "2026-09-21T14:13:20.25Z"
    assert body["currentTime"] == "2026-09-21T14:15:00.25Z"


def test_stamps():
    assert stamp(0) == "0001-01-01T00:00:00Z"
    assert stamp(1_790_000_000) == "2026-09-21T14:13:20Z"


def test_other_paths_are_unknown_and_answers_are_counted(health):
    counted = []
    respond = responder(health, lambda path, code: counted.append((path, code)))
    assert respond(Request("GET", "/metrics", {}, {})).status == 404
    health.node(eligible=False)
    assert respond(Request("DELETE", "/healthz", {}, {})).status == 503
    assert respond(Request("GET", "/livez", {}, {})).content_type == "application/json"
    assert counted == [("/healthz", 503), ("/livez", 200)]


def test_one_that_waits_for_another_proxy_is_ready_and_reports_it(clock):
    health = Health(30, (4, 6), clock, clock)
    health.standby("process 7")
    clock.now += 1000
    status, body = health.healthz()
    assert (status, json.loads(body)["waitingFor"]) == (200, "process 7")
    assert health.livez()[0] == 200
    health.standby("")
    assert health.healthz()[0] == 503


def test_rules_that_no_one_asked_for_and_that_are_refused_make_ill(health, clock):
    """As after a repair: nothing was queued, and yet a family has not got what it should have."""
    board = Board(30, lambda _: None)
    board.health = health
    sync = Sync(seconds=0.1, changes=1, services=1, frontends=1, draining=0, pending=1, behind=frozenset((6,)))
    board.synced(sync)
    clock.now += 59.9
    assert codes(health) == (200, 200)
    board.synced(sync)
    clock.now += 0.1
    assert codes(health) == (503, 503)
    assert json.loads(health.livez()[1])["status"]["IPv4"]["healthy"] is True
    board.server.close()


def test_why_a_node_is_not_eligible_is_reported_while_it_is_so(health):
    health.node(eligible=False, reason="Node n was not found")
    assert json.loads(health.healthz()[1])["reason"] == "Node n was not found"
    health.node(eligible=True)
    assert "reason" not in json.loads(health.healthz()[1])


def test_much_work_at_once_is_no_reason_for_a_restart(health, clock):
    """As long as a part of it is done now and then; others are told that not all is done."""
    health.queued()
    for _ in range(10):
        clock.now += 30
        health.progressed()
    assert codes(health) == (503, 200)
    assert not health.healthy
    clock.now += 60
    assert codes(health) == (503, 503)
    health.succeeded()
    assert codes(health) == (200, 200)


def test_a_slice_is_progress_and_no_success(clock):
    board = Board(30.0, lambda _: None)
    board.health = Health(30, (4, 6), clock, clock)
    board.node(eligible=True, listen={})
    sync = Sync(seconds=0.0, changes=0, services=0, frontends=0, draining=0, pending=0)
    board.synced(sync)
    board.queued()
    clock.now += 61
    board.synced(msgspec.structs.replace(sync, backlog=5))
    assert codes(board.health) == (503, 200)
    board.synced(sync)
    assert codes(board.health) == (200, 200)
