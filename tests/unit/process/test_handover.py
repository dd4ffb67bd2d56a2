"""How long a handover waits for a kube-proxy, and what it says meanwhile."""

import errno

import pytest
from structlog.testing import capture_logs

from ipvsproxy.base import messages
from ipvsproxy.kernel.wire.netlink import KernelError
from ipvsproxy.process import handover
from tests.support.build import key

BOTH = {4: "nftables", 6: "nftables"}


class LeftServers:
    def servers(self):
        return dict.fromkeys((key("10.96.0.1:443"), key("[fd00::1]:80")))


class HandedTables:
    """The tables of our name."""

    found = {"inet": "ipvsproxy 0.2.0"}  # noqa: RUF012

    def __init__(self, _name):
        pass

    def tables(self):
        return self.found


class Kept:
    """Counts how often what is kept was looked after."""

    looks = 0
    released = 0
    errors = ()

    @classmethod
    def secured(cls):
        return cls()

    def put_back(self):
        type(self).looks += 1
        if type(self).looks <= len(self.errors):
            raise KernelError("link", self.errors[type(self).looks - 1])

    def release(self):
        type(self).released += 1


@pytest.fixture
def clock(monkeypatch):
    """Time passes while somebody sleeps; returns all the sleeps."""
    slept = []
    monkeypatch.setattr(Kept, "looks", 0)
    monkeypatch.setattr(Kept, "released", 0)
    monkeypatch.setattr(HandedTables, "found", HandedTables.found)
    monkeypatch.setattr(handover, "KeptState", Kept)
    monkeypatch.setattr(handover, "Ruleset", HandedTables)
    monkeypatch.setattr(handover.time, "monotonic", lambda: sum(slept))
    monkeypatch.setattr(handover.time, "sleep", slept.append)
    monkeypatch.setattr(handover, "Ipvs", LeftServers)
    return slept


@pytest.fixture
def find(monkeypatch, clock):
    """Say what each look at the kernel finds; the last one for ever."""

    def find(*looks):
        left = list(looks)
        monkeypatch.setattr(handover, "programmed", lambda: left.pop(0) if len(left) > 1 else left[0])

    return find


@pytest.mark.parametrize("looks", [[{}, {}, {4: "nftables"}, BOTH], [BOTH]])
def test_every_family_that_is_served_is_waited_for(find, clock, looks):
    find(*looks)
    assert handover.await_kube_proxy() == BOTH
    assert len(clock) == Kept.looks == len(looks) - 1
    assert Kept.released == 1


def test_where_no_table_of_ours_is_servers_are_those_of_others_and_not_kept(find, clock):
    HandedTables.found = {}
    find({}, {}, BOTH)
    assert handover.await_kube_proxy() == BOTH
    assert (len(clock), Kept.looks) == (2, 0)


def test_a_family_that_kube_proxy_does_not_serve_is_not_waited_for_without_end(find, clock):
    find({}, {4: "iptables"})
    assert handover.await_kube_proxy() == {4: "iptables"}
    assert sum(clock) == pytest.approx(handover.OTHER_FAMILY_SECONDS + handover.LOOK_SECONDS, abs=1)


def test_a_node_without_any_server_is_programmed_when_one_family_is(find, clock, monkeypatch):
    def missing():
        raise KernelError("looking up netlink family IPVS", errno.ENOENT)

    monkeypatch.setattr(handover, "Ipvs", missing)
    find({}, {6: "nftables"})
    assert handover.await_kube_proxy() == {6: "nftables"}


def test_a_kube_proxy_that_has_lost_its_rules_again_is_waited_for_anew(find, clock):
    find({4: "iptables"}, {}, *[{4: "iptables"}] * 20, {4: "iptables", 6: "iptables"})
    assert len(handover.await_kube_proxy()) == 2


def test_it_is_reported_now_and_then_that_it_still_waits(find, clock):
    find(*[{}] * 1000, BOTH)
    with capture_logs() as said:
        handover.await_kube_proxy()
    waiting = [line for line in said if line["event"] == messages.NO_RULES_YET]
    assert len(waiting) == pytest.approx(sum(clock) / handover.REMINDER_SECONDS, abs=1)
    assert waiting[0]["families"] == [4, 6]


def test_what_could_not_be_put_back_is_tried_again(find, clock, monkeypatch):
    """What was secured is nowhere else: a kube-proxy that starts makes and deletes the same objects meanwhile."""
    monkeypatch.setattr(Kept, "errors", (errno.EEXIST, errno.EEXIST, errno.ENOBUFS))
    find({}, {}, {}, {}, BOTH)
    with capture_logs() as logs:
        assert handover.await_kube_proxy() == BOTH
    assert Kept.looks == 4
    said = [line for line in logs if line["event"] == messages.NOT_PUT_BACK]
    assert len(said) == 2
    assert Kept.released == 1
