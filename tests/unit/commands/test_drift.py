"""What differs counts only if it still does when it is looked at again."""

from ipvsproxy.commands import drift
from ipvsproxy.config import Config
from ipvsproxy.inspect.difference import Action, Change

LOST = Change(Action.ADD, "VIP", "10.96.0.10")
CHURN = [Change(Action.ADD, "endpoint", f"10.244.1.{number}:80", "10.96.0.10:80/TCP") for number in range(3)]
BACK_AND_FORTH = Change(Action.REMOVE, "endpoint", "10.244.1.9:80", "10.96.0.10:80/TCP")


def confirmed(monkeypatch, suspected, *looks):
    paused, left = [], list(looks)
    monkeypatch.setattr(drift, "_look", lambda _: left.pop(0))
    found = drift.confirmed(Config("n", min_sync_period=1.0), suspected, paused.append)
    assert left == []
    return found, paused


def test_what_was_only_on_its_way_is_no_drift(monkeypatch):
    assert confirmed(monkeypatch, [CHURN[0]], {CHURN[1]}) == ([], [2.0])


def test_what_stays_is_drift_and_what_changes_beside_it_is_not(monkeypatch):
    found, paused = confirmed(monkeypatch, [CHURN[0], LOST], {LOST, CHURN[1]}, {LOST, CHURN[2]}, {LOST})
    assert (found, len(paused)) == ([LOST], 3)


def test_what_changes_back_and_forth_is_looked_at_a_third_time(monkeypatch):
    assert confirmed(monkeypatch, [BACK_AND_FORTH], {BACK_AND_FORTH}, set())[0] == []


def test_a_large_change_is_looked_at_for_as_long_as_less_differs_each_time(monkeypatch):
    looks = [CHURN[:2], CHURN[:2], CHURN[:1], set()]
    assert confirmed(monkeypatch, CHURN, *looks) == ([], [2.0] * 4)


def test_looks_at_a_change_that_takes_very_long_end(monkeypatch):
    many = [Change(Action.ADD, "VIP", f"10.96.0.{number}") for number in range(100)]
    looks = [many[: 99 - number] for number in range(drift.MOST_LOOKS)]
    found, paused = confirmed(monkeypatch, many, *looks)
    assert (found, len(paused)) == (many[: 100 - drift.MOST_LOOKS], drift.MOST_LOOKS)


def test_a_node_in_order_is_looked_at_once(monkeypatch):
    assert confirmed(monkeypatch, []) == ([], [])


def test_a_look_that_fails_takes_nothing_back(monkeypatch):
    assert confirmed(monkeypatch, [LOST], None, {LOST}) == ([LOST], [2.0, 2.0])
