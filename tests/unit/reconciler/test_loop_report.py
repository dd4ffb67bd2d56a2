"""What the loop tells its report: facts of a turn, and of the Services that changed in it."""

import errno
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from ipvsproxy.base import messages
from ipvsproxy.base.address import parse_ip
from ipvsproxy.exchange.inbox import Changed, Inbox, Kind, Listed, NodeAddressesChanged, Removed
from ipvsproxy.exchange.report import Report
from ipvsproxy.plan.addresses import OtherNodeAddresses
from ipvsproxy.plan.model import Endpoint, Node
from ipvsproxy.process.assembly import make_loop
from tests.support.build import config, destination, endpoint, key, service, slice_of
from tests.support.memory_kernel import MemoryNode

WEB = key("10.96.0.10:80")
OWN = Node("node1")
HELD = "198.51.100.1:80/TCP is held by the Service default/first"


class ReportRecorder(Report):
    """Writes everything down, in order."""

    def __init__(self):
        self.calls = []

    def take(self):
        calls, self.calls = self.calls, []
        return calls

    def of(self, name):
        return [arguments for called, *arguments in self.calls if called == name]

    def received(self, kind, objects, triggered):
        self.calls.append(("received", str(kind), objects, triggered))

    def node(self, *, eligible, listen, reason=""):
        self.calls.append(("node", eligible, listen, *([reason] if reason else [])))

    def local(self, service, view):
        self.calls.append(("local", service, view))

    def queued(self):
        self.calls.append(("queued",))

    def synced(self, sync):
        self.calls.append(("synced", sync))

    def failed(self):
        self.calls.append(("failed",))

    def refused(self, service, reason):
        self.calls.append(("refused", service.name, reason))

    def drains_forced(self, destinations):
        self.calls.append(("drains_forced", destinations))

    def repaired(self, objects):
        self.calls.append(("repaired", objects))


class ReportedLoop:
    def __init__(self, **settings):
        self.node = MemoryNode([parse_ip("192.0.2.1")])
        self.report = ReportRecorder()
        self.now = 1000.0
        self.loop = make_loop(config(**settings), Inbox(), self.node.kernel(), lambda: self.now, self.report)

    def list(self, *objects, node=OWN):
        kinds = {Kind.SERVICE: {}, Kind.ENDPOINT_SLICE: {}, Kind.NODE: {node.key: node} if node else {}}
        for item in objects:
            kinds[kind_of(item)][item.key] = item
        self.loop.reconcile([Listed(kind, found) for kind, found in kinds.items()])

    def change(self, item, triggered=0.0):
        self.loop.reconcile([Changed(kind_of(item), item.key, item, triggered)])

    def wait(self, seconds):
        self.now += seconds
        self.loop.reconcile([])


def kind_of(item):
    if isinstance(item, Node):
        return Kind.NODE
    return Kind.SERVICE if hasattr(item, "cluster_ips") else Kind.ENDPOINT_SLICE


@pytest.fixture
def reported():
    return ReportedLoop()


def test_the_first_sync(reported):
    reported.list(service(), slice_of("web", "10.244.1.1"))
    names = [name for name, *_ in reported.report.calls]
    assert names == ["received"] * 3 + ["queued", "node", "synced"]
    (sync,) = reported.report.of("synced")[0]
    assert (sync.services, sync.frontends, sync.pending, sync.behind) == (1, 1, 0, frozenset())
    assert sync.changes > 0


def test_nothing_is_programmed_before_the_addresses_of_other_nodes_are_known():
    asked = []
    reported = ReportedLoop()
    reported.loop = make_loop(
        config(), Inbox(), reported.node.kernel(), lambda: reported.now, reported.report,
        ask=lambda: asked.append(1) or len(asked),
    )  # fmt: skip
    # A look that fails before anything can be listed says nothing: the API server is away.
    reported.loop.reconcile([OtherNodeAddresses(None)])
    reported.list(service(load_balancer_ips=["192.0.2.2", "203.0.113.9"]))
    assert (reported.node.writes, asked) == (0, [1])
    reported.loop.reconcile([OtherNodeAddresses(frozenset([parse_ip("192.0.2.2")]))])
    # Addresses of the start have been looked at, and wait no more; the look that comes is for the moment between.
    assert len(asked) == 2
    assert {vip.address for vip in reported.node.links.present} == {parse_ip("10.96.0.10")}
    reported.change(service("more", ["10.96.0.11"], external_ips=["198.51.100.9", "192.0.2.2"]))
    assert (len(asked), key("198.51.100.9:80") in reported.node.ipvs.table) == (3, False)
    reported.change(slice_of("more", "10.244.1.1"))
    assert (len(asked), reported.report.of("refused")) == (3, [["more", "192.0.2.2: an address of another node"]])
    reported.loop.reconcile([OtherNodeAddresses(frozenset([parse_ip("192.0.2.2")]), (), 3)])
    assert key("198.51.100.9:80") in reported.node.ipvs.table


def test_services_are_served_where_nothing_is_known_of_other_nodes():
    reported = ReportedLoop()
    reported.loop = make_loop(
        config(), Inbox(), reported.node.kernel(), lambda: reported.now, reported.report, ask=lambda: 1
    )
    reported.list(service(load_balancer_ips=["203.0.113.9"]))
    assert reported.node.writes == 0
    reported.loop.reconcile([OtherNodeAddresses(None)])
    assert key("203.0.113.9:80") in reported.node.ipvs.table


def test_nothing_is_late_before_every_kind_is_listed(reported):
    reported.loop.reconcile([Listed(Kind.SERVICE, {})])
    assert [name for name, *_ in reported.report.calls] == ["received"]


def test_a_change_is_reported_by_its_own_service_only(reported):
    reported.list(*(service(f"s{n}", [f"10.96.1.{n}"], external_local=True) for n in range(1, 20)))
    reported.report.take()
    reported.change(slice_of("s7", "10.244.1.1"))
    assert [(name, rest[0]) for name, *rest in reported.report.calls if name == "local"] == [
        ("local", "default/s7")
    ]


def test_endpoints_here_and_their_end(reported):
    balanced = service(external_local=True, health_check_port=31000, load_balancer_ips=["203.0.113.5"])
    reported.list(balanced, slice_of("web", "10.244.1.1", "10.244.1.2"))
    assert reported.report.of("local")[-1][1].endpoints == {4: 2}
    reported.change(slice_of("web", "10.244.2.1"))
    view = reported.report.of("local")[-1][1]
    assert (view.endpoints, view.lacking) == ({4: 0}, {("external", 4)})
    reported.loop.reconcile([Removed(Kind.SERVICE, "default/web")])
    assert reported.report.of("local")[-1] == ["default/web", None]


def test_the_trigger_counts_only_with_a_change(reported):
    reported.list(service(), slice_of("web", "10.244.1.1"))
    reported.report.take()
    reported.change(slice_of("web", "10.244.1.2"), triggered=77.0)
    reported.change(slice_of("web", "10.244.1.2"), triggered=77.0)
    assert reported.report.of("received") == [["EndpointSlice", 1, 77.0], ["EndpointSlice", 1, 0.0]]


def test_a_refused_frontend_affects_its_service_and_not_the_health_of_the_node(reported):
    reported.node.ipvs.refuse[WEB] = errno.EPROTONOSUPPORT
    reported.list(service(), service("b", ["10.96.0.11"]))
    assert reported.report.of("refused") == [["web", "10.96.0.10:80/TCP: IPVS: Protocol not supported"]]
    (sync,) = reported.report.of("synced")[0]
    assert (sync.pending, sync.behind) == (1, frozenset())
    reported.node.ipvs.refuse.clear()
    reported.wait(1)
    assert reported.report.of("synced")[-1][0].pending == 0


def test_a_scheduler_that_the_kernel_does_not_have_is_named(reported):
    reported.node.ipvs.refuse[WEB] = errno.ENOENT
    reported.list(service(scheduler="twos"), slice_of("web", "10.244.1.1"), service("b", ["10.96.0.11"]))
    reason = "10.96.0.10:80/TCP: IPVS: the kernel has no scheduler twos (module ip_vs_twos)"
    assert reported.report.of("refused") == [["web", reason]]


def test_refused_rules_leave_their_family_behind(reported):
    reported.list(service())
    reported.report.take()
    reported.node.nft.fail_next = errno.ENOMEM
    reported.change(service("b", ["10.96.0.11"]))
    assert reported.report.of("synced")[0][0].behind == {4}
    assert [name for name, _ in reported.report.of("refused")] == ["b"]
    reported.wait(1)
    assert reported.report.of("synced")[-1][0].behind == frozenset()


def test_a_sync_that_fails_altogether(reported):
    reported.node.nft.poison, reported.node.nft.poison_code = "table", errno.ENOMEM
    reported.list(service())
    assert reported.report.of("failed") == [[]]
    assert reported.report.of("synced") == []
    reported.node.nft.poison = None
    reported.loop.reconcile([NodeAddressesChanged()])
    assert reported.report.of("synced") == []
    reported.wait(1)
    assert len(reported.report.of("synced")) == 1


def test_every_verification_is_a_sync_and_repairs_are_counted(reported):
    reported.list(service(), slice_of("web", "10.244.1.1"))
    reported.report.take()
    reported.node.ipvs.table.clear()
    reported.wait(31)
    assert reported.report.of("repaired") == [[1]]
    assert len(reported.report.of("synced")) == 1


def test_draining_is_reported_and_its_forced_end(reported):
    reported.list(service(drain_seconds=30.0), slice_of("web", "10.244.1.1", "10.244.1.2", "10.244.1.3"))
    for number in (2, 3):
        reported.node.ipvs.busy[WEB, destination(f"10.244.1.{number}:8080")] = number
    reported.change(slice_of("web", "10.244.1.1"))
    (sync,) = reported.report.of("synced")[-1]
    assert (sync.draining, sync.draining_destinations) == (1, 2)
    reported.wait(30)
    assert reported.report.of("drains_forced") == [[2]]
    (sync,) = reported.report.of("synced")[-1]
    assert (sync.draining, sync.draining_destinations, sync.changes) == (0, 0, 2)


def test_the_younger_of_two_claimants_is_reported(reported):
    first = service("first", ["10.96.0.1"], external_ips=["198.51.100.1"], created="2025-01-01T00:00:00Z")
    second = service("second", ["10.96.0.2"], external_ips=["198.51.100.1"])
    reported.list(first, second)
    assert reported.report.of("refused") == [["second", HELD]]


def test_one_that_has_to_give_way_is_reported_and_none_twice(reported):
    """What is told is a change: of the holder, not of endpoints."""
    first = service("first", ["10.96.0.1"], external_ips=["198.51.100.1"], created="2025-01-01T00:00:00Z")
    second = service("second", ["10.96.0.2"], external_ips=["198.51.100.1"])
    reported.list(second)
    reported.change(first)
    assert reported.report.of("refused") == [["second", HELD]]
    for pod in ("10.244.1.1", "10.244.1.2"):
        reported.change(slice_of("second", pod))
        reported.change(slice_of("first", pod))
    assert reported.report.of("refused") == [["second", HELD]]
    reported.loop.reconcile([Removed(Kind.SERVICE, first.key)])
    reported.change(first)
    assert reported.report.of("refused") == [["second", HELD]] * 2


def test_an_ineligible_node_and_one_that_is_gone(reported):
    reported.list()
    assert reported.report.of("node")[-1][0] is True
    reported.change(Node("node1", eligible=False))
    assert reported.report.of("node")[-1][0] is False
    reported.loop.reconcile([Removed(Kind.NODE, "node1")])
    assert reported.report.of("node")[-1][0] is False


def test_a_node_never_seen():
    reported = ReportedLoop()
    reported.list(node=None)
    assert reported.report.of("node")[-1][0] is False


def test_manifests_need_no_node(tmp_path):
    reported = ReportedLoop(manifests=tmp_path)
    reported.list(node=None)
    assert reported.report.of("node")[-1][0] is True


def test_an_address_that_is_refused_is_reported_once_for_each_change(reported):
    reported.node.links.hops = frozenset((parse_ip("192.0.2.254"),))
    reported.list(service(external_ips=["192.0.2.254", "198.51.100.9"]), slice_of("web", "10.244.1.1"))
    reported.change(slice_of("web", "10.244.1.1", "10.244.1.2"))
    reason = "192.0.2.254: the address of a gateway, which this node could not reach any more"
    assert reported.report.of("refused") == [["web", reason]]
    assert {str(vip.address) for vip in reported.node.links.present} == {
        str(parse_ip(text)) for text in ("10.96.0.10", "198.51.100.9")
    }
    reported.change(service(external_ips=["192.0.2.254", "127.0.0.1"]))
    assert reported.report.of("refused")[1:] == [["web", f"{reason}; 127.0.0.1: a loopback address"]]


def node_not_found(logs):
    return [entry for entry in logs if entry["event"] == messages.NODE_MISSING]


def test_a_node_that_is_not_there_is_reported_once_with_the_nodes_that_are(reported):
    with capture_logs() as logs:
        reported.list(service(), slice_of("web", endpoint("10.244.1.1", "node2")), node=None)
        reported.change(slice_of("web", endpoint("10.244.1.1", "node3")))
        reported.wait(31)
    (entry,) = node_not_found(logs)
    assert (entry["log_level"], entry["node"], entry["nodes"]) == ("warning", "node1", ["node2"])
    assert "--hostname-override" in entry["event"]
    assert entry["effect"] == "Local policies and topology hints find no endpoint on this node"
    eligible, _, reason = reported.report.of("node")[-1]
    assert (eligible, reason) == (False, "Node node1 not found")
    reported.change(OWN)
    assert reported.report.of("node")[-1][0] is True
    assert len(reported.report.of("node")[-1]) == 2


def test_a_node_that_is_about_to_be_deleted_is_reported_as_the_reason(reported):
    reported.list(service(), node=Node("node1", eligible=False))
    assert reported.report.of("node")[-1][2] == "Node is about to be deleted"


def test_a_folder_that_names_no_node_needs_none():
    reported = ReportedLoop(manifests=Path("/nowhere"))
    with capture_logs() as logs:
        reported.list(service(), slice_of("web", Endpoint(parse_ip("10.244.1.1"))), node=None)
        assert node_not_found(logs) == []
        reported.change(slice_of("web", endpoint("10.244.1.1", "node2")))
        reported.wait(31)
        assert len(node_not_found(logs)) == 1
    assert reported.report.of("node")[-1][0] is True


def test_a_name_that_endpoints_have_is_right_though_its_node_is_not_there():
    named = slice_of("web", endpoint("10.244.1.1", "node1"))
    reported = ReportedLoop(manifests=Path("/nowhere"))
    with capture_logs() as logs:
        reported.list(service(), named, node=None)
        assert node_not_found(logs) == []
        ReportedLoop().list(service(), named, node=None)
    (entry,) = node_not_found(logs)
    assert "Local policies" not in entry["effect"]
