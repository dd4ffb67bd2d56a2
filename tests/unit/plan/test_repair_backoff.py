"""Repairs at once, ever rarer in a fight, and at once again after it."""

import pytest

from ipvsproxy.plan.repair_backoff import BURST, CALM_SECONDS, RepairBackoff


def fight(patience, seconds, now=0.0):
    """Count the repairs in so many seconds against somebody who undoes each at once."""
    end, count = now + seconds, 0
    while (now := max(now, patience.next)) < end:
        patience.repaired(now)
        count += 1
    return count


@pytest.mark.parametrize("pause", [2, 60, 3600])
def test_single_damages_are_repaired_at_once(pause):
    patience = RepairBackoff(30)
    for number in range(100):
        now = 1000 + number * pause
        assert patience.next <= now
        patience.repaired(now)
        assert not patience.is_contended


def test_contention_costs_ever_less_and_never_stops():
    patience = RepairBackoff(30)
    assert fight(patience, 1) <= BURST + 3
    assert patience.is_contended
    assert fight(patience, 3600, 1) <= 3600 / 30 + 10
    assert fight(patience, 3600, 3601) >= 3600 / 30 - 1


def test_a_shorter_longest_wait_is_kept():
    patience = RepairBackoff(1)
    fight(patience, 100)
    assert fight(patience, 100, 101) == pytest.approx(100, abs=2)


def test_calm_ends_contention():
    patience = RepairBackoff(30)
    fight(patience, 100)
    patience.look(patience.next + CALM_SECONDS - 1)
    assert patience.is_contended
    patience.look(patience.next + CALM_SECONDS + 1)
    assert not patience.is_contended
    patience.repaired(10_000)
    assert patience.next == 10_000
