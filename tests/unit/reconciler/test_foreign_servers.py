"""Virtual servers of other programs: which are removed, and what is said of them."""

import pytest
import structlog

from ipvsproxy.base import messages
from ipvsproxy.base.budget import LOGGED_AT_ONCE
from ipvsproxy.exchange.inbox import Inbox, Kind, Listed
from ipvsproxy.exchange.report import Report
from ipvsproxy.plan.diff import IpvsStep, Verb
from ipvsproxy.plan.model import Node
from ipvsproxy.plan.state import ServerAttributes, ServerState
from ipvsproxy.process.assembly import make_loop
from ipvsproxy.reconciler.foreign_servers import ForeignServers
from ipvsproxy.serve.board import Board
from tests.support.build import config, key, service, slice_of
from tests.support.memory_kernel import MemoryNode

KUBE_VIP = key("192.0.2.50:6443")
REMOVED = messages.FOREIGN_REMOVED
REMEDY = "--ipvs-exclude-cidrs=192.0.2.50/32 (ipvs.excludeCIDRs)"


class ForeignServerReports(Report):
    def __init__(self):
        self.notes = []

    def foreign_server(self, node, note):
        self.notes.append((node, note))


class NodeWithForeignServers:
    """A node with one Service, and another program that makes virtual servers there."""

    def __init__(self, *before, **settings):
        self.node, self.report, self.now = MemoryNode(), ForeignServerReports(), 1000.0
        for server in before:
            self.make(server)
        settings = config(sync_period=30.0, **settings)
        self.loop = make_loop(settings, Inbox(), self.node.kernel(), lambda: self.now, self.report)

    def start(self):
        node, web, ends = Node("node1"), service(), slice_of("web", "10.244.1.1")
        for kind, item in ((Kind.NODE, node), (Kind.SERVICE, web), (Kind.ENDPOINT_SLICE, ends)):
            self.loop.reconcile([Listed(kind, {item.key: item})])

    def make(self, server=KUBE_VIP):
        self.node.ipvs.apply([IpvsStep(Verb.NEW_SERVICE, server, ServerAttributes("wlc", 0, 0))])

    def verify(self):
        """Return what is logged of removed servers."""
        self.now += 30.0
        with structlog.testing.capture_logs() as said:
            self.loop.reconcile([])
        return [line for line in said if line["event"] == REMOVED]


@pytest.fixture
def shared():
    shared = NodeWithForeignServers()
    shared.start()
    return shared


def test_a_foreign_server_is_removed_and_named_with_what_keeps_it(shared):
    shared.make()
    (line,) = shared.verify()
    assert KUBE_VIP not in shared.node.ipvs.servers()
    assert line == {
        "event": REMOVED, "log_level": "warning", "address": "192.0.2.50", "port": 6443, "protocol": "TCP",
        "scheduler": "wlc", "times": 1, "keptBy": REMEDY,
    }  # fmt: skip
    assert shared.report.notes == []


def test_one_that_is_made_again_is_an_event_from_the_second_time_on(shared):
    for times in (1, 2, 3):
        shared.make()
        assert [line["times"] for line in shared.verify()] == [times]
        assert len(shared.report.notes) == times - 1
    node, note = shared.report.notes[0]
    assert node == "node1"
    assert note == (
        "virtual server 192.0.2.50:6443/TCP (scheduler wlc), which no Service asks for, was removed 2 times:"
        f" another program makes it again. {REMEDY} leaves it alone"
    )


def test_one_that_is_there_at_the_start_is_named_too():
    shared = NodeWithForeignServers(KUBE_VIP)
    with structlog.testing.capture_logs() as said:
        shared.start()
    assert [line["keptBy"] for line in said if line["event"] == REMOVED] == [REMEDY]
    assert KUBE_VIP not in shared.node.ipvs.servers()


def test_an_excluded_one_stays_and_nothing_is_reported():
    shared = NodeWithForeignServers(KUBE_VIP, exclude_cidrs=("192.0.2.0/24",))
    shared.start()
    assert shared.verify() == []
    assert KUBE_VIP in shared.node.ipvs.servers()


def test_servers_of_services_come_and_go_without_a_word(shared):
    with structlog.testing.capture_logs() as said:
        shared.loop.reconcile([Listed(Kind.SERVICE, {})])
    assert shared.node.ipvs.servers() == {}
    assert [line for line in said if line["event"] == REMOVED] == []


def test_a_server_of_ours_that_was_changed_is_repaired_and_not_called_foreign(shared):
    ours = key("10.96.0.10:80")
    shared.node.ipvs.apply([IpvsStep(Verb.SET_SERVICE, ours, ServerAttributes("wlc", 0, 0))])
    assert shared.verify() == []
    assert shared.node.ipvs.servers()[ours].scheduler == "rr"


def test_one_that_cannot_be_removed_is_named_when_it_is(shared):
    shared.make()
    steps = [IpvsStep(Verb.DEL_SERVICE, KUBE_VIP)]
    shadow = {KUBE_VIP: ServerState(ServerAttributes("wlc", 0, 0), {})}
    foreign = ForeignServers(shared.report, "node1")
    foreign.found(shadow)
    with structlog.testing.capture_logs() as said:
        foreign.removed(foreign.among(steps, shadow), {KUBE_VIP})
    assert said == []
    with structlog.testing.capture_logs() as said:
        foreign.removed(foreign.among(steps, shadow), set())
    assert [line["event"] for line in said] == [REMOVED]


def test_of_very_many_only_some_are_named(shared):
    servers = {key(f"192.0.2.{n}:80"): ServerState(ServerAttributes("wlc", 0, 0), {}) for n in range(1, 101)}
    foreign = ForeignServers(shared.report, "node1")
    foreign.found(servers)
    with structlog.testing.capture_logs() as said:
        foreign.removed(foreign.among([IpvsStep(Verb.DEL_SERVICE, one) for one in servers], servers), set())
    assert len(said) == LOGGED_AT_ONCE + 1
    assert said[-1]["count"] == 100 - LOGGED_AT_ONCE


def test_the_event_is_one_of_the_node():
    notices = []
    Board(30.0, notices.append, [4]).foreign_server("node1", "words")
    (notice,) = notices
    assert (notice.subject.kind, notice.subject.name) == ("Node", "node1")
    assert (notice.reason, notice.note) == ("ForeignVirtualServer", "words")
