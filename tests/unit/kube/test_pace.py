"""Pauses between requests to an API server."""

import pytest
import tenacity

from ipvsproxy.base.timer import ExponentialWait
from ipvsproxy.kube.api import RequestFailed
from ipvsproxy.kube.pace import Pace

LATEST, EARLIEST = Pace(uniform=lambda _, high: high), Pace(uniform=lambda low, _: low)


def test_pauses_have_jitter_of_half_their_length():
    assert [LATEST.pause(attempt) for attempt in (1, 2, 3, 99)] == [0.5, 1.0, 2.0, 30.0]
    assert [EARLIEST.pause(attempt) for attempt in (1, 2, 3, 99)] == [0.25, 0.5, 1.0, 15.0]


@pytest.mark.parametrize(("asked", "seconds"), [(0.0, 0.5), (0.1, 0.5), (7.0, 7.0), (1e9, 300.0)])
def test_what_the_server_asks_for_counts_within_reason(asked, seconds):
    assert LATEST.pause(1, asked) == seconds


def test_tenacity_waits_as_long_as_the_server_asked_for():
    slept = []
    failures = [RequestFailed("busy", 429, 4.0), RequestFailed("away"), RequestFailed("busy", 429, 1e9)]

    def request():
        if failures:
            raise failures.pop(0)
        return "done"

    pace = Pace(wait=ExponentialWait(0.5, 30.0), uniform=lambda _, high: high)
    assert tenacity.Retrying(wait=pace.after, sleep=slept.append)(request) == "done"
    assert slept == [4.0, 1.0, 300.0]
