"""What doctor reports about endpoints that are reached through a tunnel."""

import pytest

from ipvsproxy.diagnosis.direct_return import TunnelView, check
from ipvsproxy.diagnosis.finding import CheckResult


def view(waiting=0, going_on=0, endpoint="10.244.1.10:80"):
    return TunnelView("203.0.113.1:80/TCP", endpoint, "ipip", waiting, going_on)


@pytest.mark.parametrize(
    ("tunnels", "verdict"),
    [
        ([], None),
        ([view()], CheckResult.NOT_CHECKED),
        ([view(waiting=3)], CheckResult.PROBLEM),
        ([view(waiting=3, going_on=1)], CheckResult.OK),
        ([view(going_on=5), view(waiting=1, endpoint="10.244.2.10:80")], CheckResult.PROBLEM),
    ],
)
def test_pods_that_answer_no_client(tunnels, verdict):
    assert [finding.verdict for finding in check(tunnels)] == ([verdict] if verdict else [])


def test_the_silent_ones_are_named():
    (finding,) = check([view(going_on=5), view(waiting=2, endpoint="10.244.2.10:80")])
    assert finding.evidence == ("10.244.2.10:80 for 203.0.113.1:80/TCP (ipip): 2 connections wait",)
    assert "init container" in finding.next
