"""When connections end whose endpoint has left a frontend on the short path."""

import math

import pytest

from ipvsproxy.config.annotation_values import UNTIL_POD_IS_GONE
from ipvsproxy.plan.planner import plan_service
from ipvsproxy.plan.short_drains import ShortDrains
from tests.support.build import config, destination, endpoint, key, node, service, slice_of

ONE, TWO, THREE = "10.244.1.1", "10.244.2.2", "10.244.2.3"
WEB = {"TCP": key("10.96.0.10:80"), "SCTP": key("10.96.0.10:80/SCTP")}


class Followed:
    """One frontend, whatever becomes of it."""

    def __init__(self, protocol="TCP", **settings):
        self.drains, self.protocol, self.settings = ShortDrains(), protocol, {"drain_seconds": 30.0, **settings}

    def put(self, now, *pods, **settings):
        svc = service(ports=((80, 0, self.protocol),), data_path="auto", **{**self.settings, **settings})
        slices = [slice_of("web", *pods, ports=((8080, self.protocol, ""),))]
        frontends = plan_service(svc, slices, node(), config())
        self.drains.note(WEB[self.protocol], frontends[WEB[self.protocol]], now)

    def cut(self, now):
        """Which pods' connections end now; None where nothing is looked at."""
        sweeps = list(self.drains.sweeps(now))
        if not sweeps:
            return None
        ((sweep_key, rule),) = sweeps[0].rules.items()
        assert sweep_key == WEB[self.protocol]
        return {pod for pod in (ONE, TWO, THREE) if rule.forbids(b"", destination(f"{pod}:8080"))}


def test_connections_end_when_the_time_of_their_endpoint_has_passed():
    followed = Followed()
    followed.put(0, ONE, TWO)
    assert followed.cut(30) == {THREE}  # of what was before nothing is known
    followed.put(100, TWO)
    followed.put(110, THREE)
    assert followed.drains.next_due == 130
    assert followed.cut(129) is None
    assert followed.cut(130) == {ONE}
    assert followed.cut(140) == {ONE, TWO}
    assert followed.drains.next_due == math.inf


def test_the_time_of_an_endpoint_begins_while_slices_list_it():
    followed = Followed()
    followed.put(0, ONE, TWO)
    assert followed.cut(30) == {THREE}
    followed.put(100, TWO, endpoint(ONE, "node1", ready=False, serving=False, terminating=True))
    assert followed.cut(130) == {ONE, THREE}


def test_an_endpoint_that_comes_back_keeps_its_connections():
    followed = Followed()
    followed.put(0, ONE, TWO)
    followed.cut(30)
    followed.put(100, TWO)
    followed.put(120, ONE, TWO)
    assert followed.cut(130) == {THREE}


def test_both_audiences_of_a_local_policy_keep_their_connections():
    drains = ShortDrains()
    svc = service(drain_seconds=30.0, external_local=True, load_balancer_ips=["203.0.113.5"], data_path="auto")
    vip = key("203.0.113.5:80")
    drains.note(vip, plan_service(svc, [slice_of("web", ONE, TWO)], node(), config())[vip], 0)
    (sweep,) = drains.sweeps(30)
    assert {str(found) for found in sweep.rules[vip].endpoints} == {f"{ONE}:8080", f"{TWO}:8080"}


def test_sctp_connections_end_with_their_endpoint():
    followed = Followed("SCTP", drain_seconds=None)
    followed.put(0, ONE, TWO)
    followed.put(5, TWO)
    assert followed.cut(5) == {ONE, THREE}


def test_without_a_timeout_nothing_is_looked_at():
    followed = Followed(drain_seconds=0.0)
    followed.put(0, ONE)
    followed.put(5, TWO)
    assert followed.drains.next_due == math.inf


def test_another_timeout_counts_from_when_the_endpoint_left():
    followed = Followed()
    followed.put(0, ONE, TWO)
    followed.cut(30)
    followed.put(100, TWO)
    followed.put(105, TWO, drain_seconds=10.0)
    assert followed.cut(109) is None
    assert followed.cut(110) == {ONE, THREE}


def test_connections_last_as_long_as_their_pod_where_that_is_wanted():
    followed = Followed(drain_seconds=UNTIL_POD_IS_GONE)
    followed.put(0, ONE, TWO)
    assert followed.cut(10) == {THREE}
    followed.put(100, endpoint(ONE, ready=False, terminating=True), TWO)
    assert followed.drains.next_due == math.inf
    followed.put(500, TWO)
    assert followed.cut(510) == {ONE, THREE}


@pytest.mark.parametrize("scheduler", ["", "lc"])
def test_what_came_by_the_short_path_ends_though_new_connections_go_by_ipvs(scheduler):
    followed = Followed()
    followed.put(0, ONE, TWO)
    followed.cut(30)
    followed.put(100, ONE, TWO, scheduler=scheduler)
    followed.put(200, TWO, scheduler=scheduler)
    assert followed.cut(230) == {ONE, THREE}


def test_a_frontend_that_is_gone_or_never_was_on_the_short_path_is_not_looked_at():
    followed = Followed()
    followed.put(0, ONE)
    followed.drains.note(WEB["TCP"], None, 5)
    assert followed.cut(100) is None
    followed.put(200, ONE, scheduler="lc")
    assert followed.drains.next_due == math.inf


def test_what_could_not_be_swept_is_swept_later():
    followed = Followed()
    followed.put(0, ONE)
    (sweep,) = followed.drains.sweeps(30)
    followed.drains.later(sweep.rules, 60)
    assert followed.drains.next_due == 60
    assert followed.cut(60) == {TWO, THREE}
