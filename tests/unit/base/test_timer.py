"""The program's one exponential backoff, and that tenacity's is the same."""

import pytest
import tenacity

from ipvsproxy.base.timer import ExponentialWait, Timer

WAITS = ExponentialWait(0.25, 3.0)


def test_waits_double_from_the_first_to_the_longest():
    assert [WAITS.seconds(attempt) for attempt in range(1, 7)] == [0.25, 0.5, 1.0, 2.0, 3.0, 3.0]
    assert WAITS.seconds(10**9) == 3.0


def test_each_wait_follows_from_the_one_before_it():
    found, wait = [], 0.0
    for _ in range(6):
        wait = WAITS.after(wait)
        found.append(wait)
    assert found == [WAITS.seconds(attempt) for attempt in range(1, 7)]


def test_a_longest_wait_below_the_first_is_the_only_one():
    waits = ExponentialWait(5.0, 1.0)
    assert (waits.seconds(1), waits.after(0.0), waits.after(1.0)) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize("attempt", [1, 2, 3, 20, 5000])
def test_tenacity_waits_as_long(attempt):
    state = tenacity.RetryCallState(tenacity.Retrying(), None, (), {})
    state.attempt_number = attempt
    theirs = tenacity.wait_exponential(multiplier=WAITS.first, max=WAITS.longest)
    assert theirs(state) == WAITS.seconds(attempt)


def test_a_timer_moves_away_until_it_is_reset():
    now = [10.0]
    timer = Timer(lambda: now[0], *WAITS)
    assert timer.at <= now[0]
    ends = []
    for _ in range(5):
        timer.later()
        ends.append(timer.at - now[0])
        assert timer.at > now[0]
    assert ends == [0.25, 0.5, 1.0, 2.0, 3.0]
    timer.now()
    assert timer.at <= now[0]
    timer.reset()
    timer.later()
    assert timer.at - now[0] == 0.25
