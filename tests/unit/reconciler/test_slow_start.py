"""A slow start through the loop: its steps, a restart in between, and what cannot have one."""

import math

from ipvsproxy.exchange.inbox import Changed, Kind
from tests.support.build import key, service, slice_of
from tests.support.memory_proxy import MemoryProxy, RefusalRecorder

WEB = key("10.96.0.10:80")
OLD, NEW = "10.244.1.1", "10.244.2.1"
SLOW = service(scheduler="wrr", slow_start_seconds=90.0)


class SlowStartProxy(MemoryProxy):
    def __init__(self, svc=SLOW, pods=(OLD,), node=None, now=0.0, **settings):
        super().__init__([svc], pods, heard=RefusalRecorder(), node=node, now=now, **settings)

    def pods(self, *addresses):
        self.turn(Changed(Kind.ENDPOINT_SLICE, "default/web-4", slice_of("web", *addresses)))

    def weights(self):
        found = self.node.ipvs.table[WEB].destinations
        return {str(d).split(":")[0]: attributes.weight for d, attributes in found.items()}

    def pass_time(self, seconds):
        """Let time pass, with a turn whenever the loop wants one."""
        end = self.now + seconds
        while self.now + self.loop.timeout() <= end:
            self.now += max(self.loop.timeout(), 1e-6)
            self.turn()
        self.now = end


def test_the_loop_makes_each_step_in_time():
    here = SlowStartProxy()
    here.pods(OLD, NEW)
    seen = []
    for _ in range(10):
        seen.append(here.weights()[NEW])
        here.pass_time(10.1)
    assert seen == list(range(1, 11))
    assert here.weights() == {OLD: 10, NEW: 10}


def test_a_restart_in_between_goes_on():
    here = SlowStartProxy()
    here.pods(OLD, NEW)
    here.pass_time(35)
    assert here.weights()[NEW] == 4
    again = SlowStartProxy(pods=(OLD, NEW), node=here.node, now=1000.0)
    assert again.weights() == {OLD: 10, NEW: 4}
    again.pass_time(61)
    assert again.weights() == {OLD: 10, NEW: 10}


def test_a_cold_start_has_none():
    assert SlowStartProxy(pods=(OLD, NEW)).weights() == {OLD: 10, NEW: 10}


def test_a_service_that_begins_or_ends_to_ask_for_it():
    here = SlowStartProxy(service(scheduler="wrr"))
    here.turn(Changed(Kind.SERVICE, SLOW.key, SLOW))
    assert here.weights() == {OLD: 10}
    here.pods(OLD, NEW)
    assert here.weights() == {OLD: 10, NEW: 1}
    here.turn(Changed(Kind.SERVICE, SLOW.key, service(scheduler="wrr")))
    assert here.weights() == {OLD: 1, NEW: 1}


def test_a_scheduler_that_does_not_know_weights_has_none_and_that_is_reported():
    here = SlowStartProxy(service(slow_start_seconds=90.0))
    here.pods(OLD, NEW)
    assert here.weights() == {OLD: 1, NEW: 1}
    assert here.heard.heard == [
        ("web", "a slow start has no effect with the scheduler rr, which does not know weights")
    ]


def test_a_default_of_the_node():
    here = SlowStartProxy(service(), service_defaults=(("slow-start", "90s"), ("scheduler", "wlc")))
    here.pods(OLD, NEW)
    assert here.weights() == {OLD: 10, NEW: 1}
    assert here.loop.timeout() < math.inf
