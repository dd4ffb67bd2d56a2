"""How long the lab waits for an answer (tests/lab/waiting.py)."""

import socket

import pytest

from tests.lab import waiting
from tests.lab.waiting import STEP_SECONDS, Patience, receive


def steps(patience, clock, each):
    """Return how many steps there are if each takes so many seconds."""
    count = 0
    while patience:
        with patience.step():
            clock.now += each
        count += 1
    return count


@pytest.fixture
def clock(monkeypatch):
    class Time:
        now = 0.0

        def monotonic(self):
            return self.now

    monkeypatch.setattr(waiting, "time", Time())
    return waiting.time


@pytest.mark.parametrize("each", [STEP_SECONDS, 10.0], ids=["in time", "each time it stands still"])
def test_a_machine_that_stands_still_uses_up_no_patience(clock, each):
    assert 10 <= steps(Patience(10 * STEP_SECONDS), clock, each) <= 11


def test_what_is_there_is_received_also_without_patience(clock):
    one, other = socket.socketpair()
    with one, other:
        with pytest.raises(TimeoutError):
            receive(one, Patience(0.0))
        other.send(b"late")
        assert receive(one, Patience(0.0)) == b"late"
