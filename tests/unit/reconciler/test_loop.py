"""The loop against the kernel in memory: what comes in through the inbox, what the kernel has afterwards."""

import errno

import pytest
from structlog.testing import capture_logs

import ipvsproxy.reconciler.planning
from ipvsproxy.base import messages
from ipvsproxy.base.address import parse_cidr, parse_ip
from ipvsproxy.base.errors import Fatal
from ipvsproxy.config import DetectLocalMode, VipMode
from ipvsproxy.config.annotation_values import UNTIL_POD_IS_GONE
from ipvsproxy.exchange.inbox import (
    ApiServers,
    Changed,
    Inbox,
    Kind,
    Listed,
    LockAcquired,
    NodeAddressesChanged,
    Removed,
    SourceFailed,
)
from ipvsproxy.kernel.wire.netlink import KernelError
from ipvsproxy.plan.model import Node
from ipvsproxy.plan.state import DestinationAttributes, ServerAttributes, ServerState, VipForm
from ipvsproxy.process.assembly import make_loop
from tests.support.build import config, destination, endpoint, key, service, slice_of, weighted
from tests.support.clock import Clock
from tests.support.memory_kernel import Fault, MemoryNode

WEB = key("10.96.0.10:80")


class RestartedProxy:
    """One run of the proxy on a node that outlives it."""

    def __init__(self, node, **settings):
        self.node = node
        self.clock = Clock()
        settings.setdefault("cluster_cidrs", ("10.244.0.0/16",))
        alone = settings.pop("alone", True)
        self.loop = make_loop(config(**settings), Inbox(), node.kernel(), self.clock, alone=alone)

    def list(self, *objects):
        kinds = {Kind.SERVICE: {}, Kind.ENDPOINT_SLICE: {}, Kind.NODE: {"node1": Node("node1")}}
        for item in objects:
            kind = Kind.SERVICE if hasattr(item, "cluster_ips") else Kind.ENDPOINT_SLICE
            kinds[kind][item.key] = item
        self.loop.reconcile([Listed(kind, found) for kind, found in kinds.items()])
        return self

    def change(self, item):
        kind = Kind.SERVICE if hasattr(item, "cluster_ips") else Kind.ENDPOINT_SLICE
        self.loop.reconcile([Changed(kind, item.key, item)])

    def wait(self, seconds):
        self.clock.now += seconds
        self.loop.reconcile([])


@pytest.fixture
def node():
    return MemoryNode([parse_ip("192.0.2.1")])


def weights(node, name=WEB):
    return {str(d): a.weight for d, a in node.ipvs.table[name].destinations.items()}


def test_nothing_is_programmed_before_every_kind_is_listed(node):
    process = RestartedProxy(node)
    process.loop.reconcile([Listed(Kind.SERVICE, {"default/web": service()}), Listed(Kind.NODE, {})])
    assert (node.writes, node.nft.transactions) == (0, [])
    process.loop.reconcile([Listed(Kind.ENDPOINT_SLICE, {})])
    assert WEB in node.ipvs.table


def test_a_second_proxy_follows_the_objects_and_writes_once_it_is_alone(node):
    RestartedProxy(node).list(service(), slice_of("web", "10.244.1.1"))
    before, rules = node.writes, len(node.nft.transactions)
    second = RestartedProxy(node, alone=False).list(service(), slice_of("web", "10.244.1.1"))
    second.change(slice_of("web", "10.244.1.1", "10.244.1.2"))
    second.wait(1000)
    assert second.loop.timeout() is None
    assert (node.writes, len(node.nft.transactions)) == (before, rules)
    second.loop.reconcile([LockAcquired()])
    assert weights(node) == {"10.244.1.1:8080": 1, "10.244.1.2:8080": 1}


def test_a_change_touches_its_service_only(node):
    others = [service(f"s{n}", [f"10.96.1.{n}"]) for n in range(1, 30)]
    process = RestartedProxy(node).list(service(), slice_of("web", "10.244.2.1"), *others)
    writes, transactions = node.writes, len(node.nft.transactions)
    process.change(slice_of("web", "10.244.2.1", "10.244.2.2"))
    assert weights(node) == {"10.244.2.1:8080": 1, "10.244.2.2:8080": 1}
    assert node.writes == writes + 1
    assert len(node.nft.transactions) == transactions


def test_an_equal_object_costs_nothing(node):
    process = RestartedProxy(node).list(service(), slice_of("web", "10.244.1.1"))
    before = node.writes, len(node.nft.transactions)
    process.change(service())
    process.list(service(), slice_of("web", "10.244.1.1"))
    assert (node.writes, len(node.nft.transactions)) == before


def test_a_restart_with_nothing_changed_writes_nothing_but_one_ruleset(node):
    objects = service(), slice_of("web", "10.244.1.1")
    RestartedProxy(node).list(*objects)
    before, rules = node.writes, node.nft.dump()
    assert len(node.nft.transactions) == 2  # rules, and elements behind them
    RestartedProxy(node).list(*objects)
    assert node.writes == before
    assert len(node.nft.transactions) == 3
    assert node.nft.dump() == rules


def test_a_restart_takes_back_a_weight_and_goes_on_draining(node):
    RestartedProxy(node).list(service(), slice_of("web", "10.244.1.1", "10.244.1.2", "10.244.1.3"))
    state = node.ipvs.table[WEB]
    state.destinations[destination("10.244.1.1:8080")] = DestinationAttributes(0)
    state.destinations[destination("10.244.1.3:8080")] = DestinationAttributes(0)
    process = RestartedProxy(node).list(service(), slice_of("web", "10.244.1.1", "10.244.1.2"))
    assert weights(node) == {"10.244.1.1:8080": 1, "10.244.1.2:8080": 1, "10.244.1.3:8080": 0}
    process.wait(2)
    assert "10.244.1.3:8080" not in weights(node)


def test_a_destination_drains_until_its_last_connection_ends(node):
    process = RestartedProxy(node).list(service(), slice_of("web", "10.244.1.1", "10.244.1.2"))
    leaving = destination("10.244.1.2:8080")
    node.ipvs.busy[WEB, leaving] = 3
    process.change(slice_of("web", "10.244.1.1"))
    for _ in range(5):
        process.wait(31)
    assert weights(node)[str(leaving)] == 0
    node.ipvs.busy.clear()
    process.wait(process.loop.timeout())
    process.wait(40)
    assert str(leaving) not in weights(node)


def test_a_destination_may_drain_as_long_as_its_pod_is_there(node):
    one, leaving = "10.244.1.1", destination("10.244.1.2:8080")
    process = RestartedProxy(node).list(
        service(drain_seconds=UNTIL_POD_IS_GONE), slice_of("web", one, "10.244.1.2")
    )
    node.ipvs.busy[WEB, leaving] = 3
    process.change(slice_of("web", one, endpoint("10.244.1.2", ready=False, serving=False, terminating=True)))
    for _ in range(9):
        process.wait(31)
    assert weights(node)[str(leaving)] == 0
    process.change(slice_of("web", one))
    process.wait(5)
    assert str(leaving) in weights(node)
    process.wait(6)
    assert str(leaving) not in weights(node)


def test_a_server_whose_service_has_gone_to_the_short_path_ends_with_its_last_connection(node):
    process = RestartedProxy(node).list(service(), slice_of("web", "10.244.1.1"))
    node.ipvs.busy[WEB, destination("10.244.1.1:8080")] = 1
    process.change(service(data_path="auto"))
    for _ in range(5):
        process.wait(31)
    assert weights(node) == {"10.244.1.1:8080": 0}
    assert node.nft.sets["frontends4"]["10.96.0.10 . tcp . 80"] == "goto endpoints_1"
    node.ipvs.busy.clear()
    process.wait(process.loop.timeout())
    process.wait(40)
    assert WEB not in node.ipvs.table


def test_a_start_serves_by_rules_what_has_no_server_yet(node):
    RestartedProxy(node).list(service(data_path="auto"), slice_of("web", "10.244.1.1"))
    seen = []
    node.watch = lambda: seen.append((
        node.nft.sets["frontends4"].get("10.96.0.10 . tcp . 80") if node.nft.sets else None, WEB in node.ipvs.table
    ))  # fmt: skip
    RestartedProxy(node).list(service(), slice_of("web", "10.244.1.1"))
    assert ("goto endpoints_1", False) in seen
    assert ("goto own", False) not in seen
    assert seen[-1] == ("goto own", True)
    assert not node.nft.sets["endpoints4"]


def test_a_start_serves_all_ways_in_by_rules_until_they_have_servers(node):
    """NodePorts and internal views as well: they answered before."""
    local = {"ports": ((80, 30080),), "external_local": True}
    pods = slice_of("web", "10.244.1.1", "10.244.2.2")
    RestartedProxy(node).list(service(data_path="auto", **local), pods)
    seen = []

    def watch():
        sets, port = node.nft.sets, "192.0.2.1 . tcp . 30080"
        if sets:
            has_server = key("192.0.2.1:30080") in node.ipvs.table and WEB in node.ipvs.table
            seen.append((sets["frontends4"].get(port), sets["short_views4"].get(port), has_server))

    node.watch = watch
    RestartedProxy(node).list(service(**local), pods)
    assert {found for found in seen if not found[2]} == {("goto endpoints_1", "goto internal_endpoints_2", False)}
    assert seen[-1] == ("goto own", None, True)
    assert node.nft.sets["internal_views4"]["192.0.2.1 . tcp . 30080"] == "10.96.0.10 . 80"
    assert not node.nft.sets["internal_endpoints4"]


def test_a_server_that_is_left_from_before_the_short_path_is_no_one_elses(node):
    RestartedProxy(node).list(service(), slice_of("web", "10.244.1.1"))
    with capture_logs() as logs:
        process = RestartedProxy(node).list(service(data_path="auto"), slice_of("web", "10.244.1.1"))
        process.wait(40)
    assert WEB not in node.ipvs.table
    assert messages.FOREIGN_REMOVED not in {line["event"] for line in logs}


def test_a_destination_is_deleted_soon_after_its_last_connection(node):
    process = RestartedProxy(node).list(service(), slice_of("web", "10.244.1.1", "10.244.1.2"))
    leaving = destination("10.244.1.2:8080")
    node.ipvs.busy[WEB, leaving] = 1
    process.change(slice_of("web", "10.244.1.1"))
    for _ in range(9):
        process.wait(1)
    node.ipvs.busy.clear()
    assert process.loop.timeout() <= 3
    for _ in range(3):
        process.wait(1)
    assert str(leaving) not in weights(node)


@pytest.mark.parametrize(
    ("default", "own"), [(60.0, None), (0.0, 60.0), (5.0, 60.0)], ids=["configured", "annotated", "both"]
)
def test_the_drain_timeout_cuts_what_is_left(node, default, own):
    process = RestartedProxy(node, drain_timeout=default)
    process.list(service(drain_seconds=own), slice_of("web", "10.244.1.1", "10.244.1.2"))
    leaving = destination("10.244.1.2:8080")
    node.ipvs.busy[WEB, leaving] = 3
    process.change(slice_of("web", "10.244.1.1"))
    for _ in range(59):
        process.wait(1)
    assert weights(node)[str(leaving)] == 0
    with capture_logs() as logs:
        process.wait(process.loop.timeout())
    assert str(leaving) not in weights(node)
    assert [(log["event"], log["connections"]) for log in logs if log["log_level"] != "debug"] == [
        (messages.DRAIN_TIMEOUT, {f"{WEB} -> {leaving}": 3})
    ]


def test_no_drain_timeout_means_to_wait(node):
    process = RestartedProxy(node, drain_timeout=5.0)
    process.list(service(drain_seconds=0.0), slice_of("web", "10.244.1.1", "10.244.1.2"))
    leaving = destination("10.244.1.2:8080")
    node.ipvs.busy[WEB, leaving] = 3
    process.change(slice_of("web", "10.244.1.1"))
    for _ in range(30):
        process.wait(86400)
    assert weights(node)[str(leaving)] == 0


def test_a_restart_gives_a_drain_its_whole_time_again(node):
    process = RestartedProxy(node, drain_timeout=60.0).list(service(), slice_of("web", "10.244.1.1", "10.244.1.2"))
    leaving = destination("10.244.1.2:8080")
    node.ipvs.busy[WEB, leaving] = 3
    process.change(slice_of("web", "10.244.1.1"))
    process.wait(50)
    process = RestartedProxy(node, drain_timeout=60.0).list(service(), slice_of("web", "10.244.1.1"))
    process.wait(59)
    assert weights(node)[str(leaving)] == 0
    process.wait(1)
    assert str(leaving) not in weights(node)


def test_a_timeout_that_is_changed_writes_nothing_and_counts_for_drains_under_way(node):
    process = RestartedProxy(node).list(service(), slice_of("web", "10.244.1.1", "10.244.1.2"))
    leaving = destination("10.244.1.2:8080")
    node.ipvs.busy[WEB, leaving] = 3
    process.change(slice_of("web", "10.244.1.1"))
    process.wait(10)
    before = node.writes, len(node.nft.transactions)
    process.change(service(drain_seconds=20.0))
    assert (node.writes, len(node.nft.transactions)) == before
    process.wait(9)
    assert weights(node)[str(leaving)] == 0
    process.wait(1)
    assert str(leaving) not in weights(node)


def test_a_returning_endpoint_keeps_its_destination(node):
    process = RestartedProxy(node, drain_timeout=60.0).list(service(), slice_of("web", "10.244.1.1", "10.244.1.2"))
    node.ipvs.busy[WEB, destination("10.244.1.2:8080")] = 3
    process.change(slice_of("web", "10.244.1.1"))
    process.wait(30)
    writes = node.writes
    process.change(slice_of("web", "10.244.1.1", "10.244.1.2"))
    assert node.writes == writes + 1  # its weight, and nothing is deleted
    process.wait(60)
    assert set(weights(node).values()) == {1}


def test_a_deletion_that_is_refused_is_tried_again(node):
    process = RestartedProxy(node).list(service(), slice_of("web", "10.244.1.1", "10.244.1.2"))
    process.change(slice_of("web", "10.244.1.1"))
    node.ipvs.refuse[WEB] = errno.EBUSY
    process.wait(1)
    assert weights(node)["10.244.1.2:8080"] == 0
    assert process.loop.timeout() > 0
    node.ipvs.refuse.clear()
    for _ in range(3):
        process.wait(1)
    assert "10.244.1.2:8080" not in weights(node)


def test_a_weight_that_others_have_set_is_put_back(node):
    process = RestartedProxy(node).list(service(), slice_of("web", "10.244.1.1", "10.244.1.2"))
    node.ipvs.busy[WEB, destination("10.244.1.2:8080")] = 3
    process.change(slice_of("web", "10.244.1.1"))
    strange = weighted({destination("10.244.1.1:8080"): 0, destination("10.244.1.2:8080"): 5})
    node.ipvs.table[WEB].destinations.update(strange)
    process.wait(31)
    assert weights(node) == {"10.244.1.1:8080": 1, "10.244.1.2:8080": 0}


def test_leftovers_go_and_excluded_servers_stay(node):
    foreign, excluded = key("10.99.0.1:80"), key("10.98.0.1:80")
    for name in (foreign, excluded):
        node.ipvs.table[name] = ServerState(ServerAttributes("rr", 0, 0), {})
    RestartedProxy(node, exclude_cidrs=("10.98.0.0/16",)).list(service())
    assert node.ipvs.table.keys() == {WEB, excluded}


def test_what_kube_proxy_left_goes_after_everything_is_live(node):
    process = RestartedProxy(node)
    process.loop.reconcile([Listed(Kind.SERVICE, {"default/web": service()}), Listed(Kind.NODE, {})])
    assert node.host.taken_over == 0
    process.list(service())
    assert node.host.taken_over == 1
    assert WEB in node.ipvs.table


def test_what_kube_proxy_left_stays_while_something_of_ours_failed_but_not_for_ever(node):
    node.ipvs.refuse[WEB] = errno.EPROTONOSUPPORT
    process = RestartedProxy(node).list(service(), service("b", ["10.96.0.11"]))
    assert node.host.taken_over == 0
    process.wait(31)
    assert node.host.taken_over == 1


def test_one_refused_frontend_affects_nothing_else_and_is_tried_again(node):
    node.ipvs.refuse[WEB] = errno.EPROTONOSUPPORT
    process = RestartedProxy(node).list(service(), service("b", ["10.96.0.11"]))
    assert node.ipvs.table.keys() == {key("10.96.0.11:80")}
    node.ipvs.refuse.clear()
    process.wait(1)
    assert WEB in node.ipvs.table


def test_a_refused_transaction_loses_nothing_and_is_tried_again(node):
    process = RestartedProxy(node).list(service())
    rules = node.nft.dump()
    node.nft.fail_next = errno.ENOMEM
    process.change(service("b", ["10.96.0.11"]))
    assert node.nft.dump() == rules
    process.wait(1)
    assert "frontends4 10.96.0.11 . tcp . 80 : goto refuse" in node.nft.dump()


def test_nothing_answers_before_its_rules_are_accepted(node):
    process = RestartedProxy(node).list(service(), slice_of("web", "10.244.1.1"))
    node.nft.fail_next = errno.ENOMEM
    process.loop.reconcile(
        [
            Changed(Kind.SERVICE, "default/b", service("b", ["10.96.0.11"], ((80, 30080),))),
            Changed(Kind.ENDPOINT_SLICE, "default/web-4", slice_of("web", "10.244.1.2")),
        ]
    )
    assert node.ipvs.table.keys() == {WEB}
    assert {v.address for v in node.links.present} == {parse_ip("10.96.0.10")}
    assert weights(node) == {"10.244.1.1:8080": 0, "10.244.1.2:8080": 1}  # what exists goes on changing
    process.wait(1)
    assert key("10.96.0.11:80") in node.ipvs.table
    assert len(node.links.present) == 2


def test_what_nftables_refuses_of_one_service_costs_no_other(node):
    process = RestartedProxy(node).list(service())
    node.nft.poison = "10.96.1.13"
    services = [service(f"s{n}", [f"10.96.1.{n}"]) for n in range(30)]
    with capture_logs() as logs:
        process.loop.reconcile([Changed(Kind.SERVICE, item.key, item) for item in services])
    assert len([name for name in node.ipvs.table if name.address[2] == 1]) == 29
    assert len(node.links.present) == 30
    assert "10.96.1.13" not in node.nft.dump()
    (said,) = [entry for entry in logs if entry["log_level"] == "error"]
    assert (said["address"], said["frontends"]) == ("10.96.1.13", ["10.96.1.13 . tcp . 80"])
    assert said["elements"] <= 5
    node.nft.poison = None
    process.wait(1)
    assert len(node.links.present) == 31


@pytest.mark.parametrize("adopted", [False, True])
def test_what_nftables_refuses_in_the_first_loading_costs_no_other_service(node, adopted):
    objects = [service(f"s{n}", [f"10.96.1.{n}"]) for n in range(30)]
    if adopted:
        RestartedProxy(node).list(*objects)
        before = dict(node.ipvs.table), set(node.links.present), len(node.nft.transactions)
    node.nft.poison = "10.96.1.13 . tcp"
    with capture_logs() as logs:
        process = RestartedProxy(node).list(*objects)
    (said,) = [entry for entry in logs if entry["log_level"] == "error"]
    assert (said["address"], said["frontends"]) == ("10.96.1.13", ["10.96.1.13 . tcp . 80"])
    assert len([line for line in node.nft.dump().splitlines() if line.startswith("frontends4")]) == 29
    assert "vips4 10.96.1.13" in node.nft.dump()  # the guard refuses what has no rules
    if adopted:
        # What is live stays, and all rules came at once.
        assert (node.ipvs.table, node.links.present) == before[:2]
        assert len(node.nft.transactions) == before[2] + 1
    else:
        assert (len(node.ipvs.table), len(node.links.present)) == (29, 29)
    node.nft.poison = None
    process.wait(1)
    assert (len(node.ipvs.table), len(node.links.present)) == (30, 30)
    assert "frontends4 10.96.1.13 . tcp . 80" in node.nft.dump()


def test_what_nftables_refuses_of_one_node_port_costs_no_other(node):
    objects = [service(f"s{n}", [f"10.96.1.{n}"], ((80, 30000 + n),)) for n in range(9)]
    node.nft.poison = "192.0.2.1 . tcp . 30003"
    RestartedProxy(node).list(*objects)
    served = {name.port for name in node.ipvs.table if name.address == parse_ip("192.0.2.1")}
    assert served == {30000 + n for n in range(9)} - {30003}


def test_many_refusals_in_the_first_loading_cost_no_other_service(node):
    node.nft.poison = ".7 . tcp"
    RestartedProxy(node).list(*(service(f"s{n}", [f"10.96.{n // 27}.{n % 27}"]) for n in range(270)))
    assert len(node.ipvs.table) == 260


def test_a_static_ruleset_that_is_refused_is_no_matter_of_elements(node):
    node.nft.poison = "table inet ipvsproxy"
    process = RestartedProxy(node).list(service())
    assert (node.ipvs.table, node.links.present, node.nft.loaded) == ({}, set(), False)
    node.nft.poison = None
    process.wait(1)
    assert WEB in node.ipvs.table


def test_rules_stay_until_their_vip_and_server_are_gone(node):
    process = RestartedProxy(node).list(service(), service("b", ["10.96.0.11"]))
    node.ipvs.refuse[WEB] = errno.EBUSY
    process.loop.reconcile([Removed(Kind.SERVICE, "default/web"), Removed(Kind.SERVICE, "default/b")])
    assert "vips4 10.96.0.10" in node.nft.dump()
    assert "vips4 10.96.0.11" not in node.nft.dump()
    node.ipvs.refuse.clear()
    process.wait(1)
    assert "10.96.0.10" not in node.nft.dump()


def test_a_vip_changes_its_form_only_when_the_new_one_is_bound(node):
    RestartedProxy(node, vip_mode=VipMode.ADDRESS).list(service())
    node.links.refuse[parse_ip("10.96.0.10")] = errno.ENOBUFS
    process = RestartedProxy(node, vip_mode=VipMode.ROUTE).list(service())
    assert [v.form for v in node.links.present] == [VipForm.ADDRESS]
    node.links.refuse.clear()
    process.wait(1)
    assert [v.form for v in node.links.present] == [VipForm.ROUTE]


def test_a_vip_that_went_while_the_proxy_was_away_is_guarded_until_it_is_unbound(node):
    RestartedProxy(node).list(service(), service("b", ["10.96.0.11"]))
    node.links.refuse[parse_ip("10.96.0.11")] = errno.EBUSY
    process = RestartedProxy(node).list(service())
    assert "vips4 10.96.0.11" in node.nft.dump()
    assert "frontends4 10.96.0.11" not in node.nft.dump()
    node.links.refuse.clear()
    process.wait(1)
    assert "10.96.0.11" not in node.nft.dump()


def test_a_table_that_others_have_changed_is_loaded_again_at_once(node):
    process = RestartedProxy(node).list(service())
    node.nft.sets, node.nft.loaded = {}, False
    process.change(service("b", ["10.96.0.11"]))
    process.wait(0.2)
    rules = node.nft.dump()
    assert "vips4 10.96.0.10" in rules
    assert "vips4 10.96.0.11" in rules


def test_an_element_that_others_have_taken_costs_no_other_change(node):
    process = RestartedProxy(node).list(service(), service("b", ["10.96.0.11"]))
    del node.nft.sets["vips4"]["10.96.0.11"]
    process.loop.reconcile([Removed(Kind.SERVICE, "default/b"), Changed(Kind.SERVICE, "default/c", service("c"))])
    process.wait(0.2)
    assert "10.96.0.11" not in node.nft.dump()
    assert "vips4 10.96.0.10" in node.nft.dump()


@pytest.mark.parametrize("call", [0, 2])
def test_a_transaction_whose_number_cannot_be_read_is_remembered_all_the_same(node, call):
    process = RestartedProxy(node).list(service())
    node.faults.plan(call, Fault("lost"))
    process.change(service("b", ["10.96.0.11"]))
    assert key("10.96.0.11:80") in node.ipvs.table
    assert len(node.links.present) == 2
    count = len(node.nft.transactions)
    process.wait(31)
    assert len(node.nft.transactions) == count


@pytest.mark.parametrize("call", range(12))
def test_a_foreign_server_goes_even_if_a_look_at_the_kernel_fails(node, call):
    process = RestartedProxy(node).list(service())
    node.ipvs.table[key("10.99.0.1:80")] = ServerState(ServerAttributes("rr", 0, 0), {})
    node.faults.plan(call, Fault("refused", errno.ENOBUFS))
    process.wait(31)
    process.wait(31)
    assert node.ipvs.table.keys() == {WEB}


def test_lost_answers_bring_to_light_what_others_have_done(node):
    process = RestartedProxy(node).list(service(), service("b", ["10.96.0.11"]))
    del node.ipvs.table[WEB]
    node.links.present.clear()
    for call in (3, 4):  # after a transaction between two looks at its number: servers, VIPs
        node.faults.plan(call, Fault("lost"))
    process.change(service("c", ["10.96.0.12"]))
    process.wait(0.2)
    assert WEB in node.ipvs.table
    assert len(node.links.present) == 3


def test_a_new_address_is_followed_even_if_the_first_look_fails(node):
    process = RestartedProxy(node).list(service(ports=((80, 30080),)))
    node.links.others |= {parse_ip("192.0.2.77")}
    node.faults.plan(0, Fault("lost", errno.ENOBUFS))
    process.loop.reconcile([NodeAddressesChanged()])
    assert key("192.0.2.77:30080") not in node.ipvs.table
    process.wait(0.2)
    assert key("192.0.2.77:30080") in node.ipvs.table


def test_services_are_served_while_the_node_cannot_be_looked_at(node):
    process = RestartedProxy(node).list(service())
    node.links.unreadable = errno.EMFILE
    process.loop.reconcile([NodeAddressesChanged()])
    for number in range(11, 14):
        process.change(service(f"s{number}", [f"10.96.0.{number}"]))
        assert key(f"10.96.0.{number}:80") in node.ipvs.table
    node.links.unreadable = 0
    node.links.others |= {parse_ip("10.96.0.12")}
    process.wait(31)
    assert parse_ip("10.96.0.12") not in {vip.address for vip in node.links.present}


def test_verification_repairs_tampering(node):
    process = RestartedProxy(node).list(service(), slice_of("web", "10.244.1.1"))
    good = node.nft.dump()
    node.ipvs.table.clear()
    node.links.present.clear()
    node.nft.sets, node.nft.loaded = {}, False
    process.wait(31)
    assert weights(node) == {"10.244.1.1:8080": 1}
    assert len(node.links.present) == 1
    assert node.nft.dump() == good


def test_a_vip_that_moves_to_another_link_is_unbound_and_back(node):
    process = RestartedProxy(node).list(service(load_balancer_ips=["203.0.113.5"]))
    assert len(node.links.present) == 2
    node.links.others |= {parse_ip("203.0.113.5")}
    process.loop.reconcile([NodeAddressesChanged()])
    assert {v.address for v in node.links.present} == {parse_ip("10.96.0.10")}
    assert "vips4 203.0.113.5" not in node.nft.dump()
    node.links.others -= {parse_ip("203.0.113.5")}
    process.loop.reconcile([NodeAddressesChanged()])
    assert len(node.links.present) == 2


def test_a_new_node_address_serves_node_ports(node):
    process = RestartedProxy(node).list(service(ports=((80, 30080),)))
    node.links.others |= {parse_ip("192.0.2.77")}
    process.loop.reconcile([NodeAddressesChanged()])
    assert key("192.0.2.77:30080") in node.ipvs.table


def test_pod_cidrs_that_come_late_are_followed(node):
    """NodeCIDR: Services are served before the Node has its range, with a word about what is missing."""
    with capture_logs() as logs:
        process = RestartedProxy(node, cluster_cidrs=(), detect_local_mode=DetectLocalMode.NODE_CIDR)
        process.list(service("web"), slice_of("web", "10.244.2.5"))
        assert weights(node) == {"10.244.2.5:8080": 1}
        assert "pod_cidrs" not in node.nft.dump()
        (said,) = [entry["event"] for entry in logs if "NodeCIDR" in entry["event"]]
        assert said.endswith("Node node1 has no spec.podCIDRs of IPv4 (yet): local pods count as outside clients")
        for ranges in ("10.244.1.0/24", "10.244.9.0/24"):
            found = Node("node1", (parse_ip("192.0.2.1"),), (parse_cidr(ranges),))
            process.loop.reconcile([Changed(Kind.NODE, "node1", found)])
            assert f"pod_cidrs4 {ranges}" in node.nft.dump()
        assert len([entry for entry in logs if "NodeCIDR" in entry["event"]]) == 1


@pytest.mark.parametrize("gone", [Removed(Kind.NODE, "node1"), Listed(Kind.NODE, {}, frozenset())])
def test_a_node_that_is_deleted_keeps_its_last_known_version(node, gone):
    process = RestartedProxy(node, cluster_cidrs=(), detect_local_mode=DetectLocalMode.NODE_CIDR)
    process.list(service("web"), slice_of("web", "10.244.2.5"))
    process.loop.reconcile([Changed(Kind.NODE, "node1", Node("node1", (), (parse_cidr("10.244.1.0/24"),)))])
    before = node.nft.dump()
    assert "pod_cidrs4" in before
    process.loop.reconcile([gone])
    assert node.nft.dump() == before


def test_removed_objects_leave_nothing(node):
    process = RestartedProxy(node).list(service(), slice_of("web", "10.244.1.1"))
    process.loop.reconcile([Removed(Kind.SERVICE, "default/web"), Removed(Kind.ENDPOINT_SLICE, "default/web-4")])
    assert node.ipvs.table == {}
    assert node.links.present == set()
    assert node.nft.dump() == "pod_cidrs4 10.244.0.0/16"


def test_kept_objects_survive_a_list(node):
    process = RestartedProxy(node).list(service(), slice_of("web", "10.244.1.1"))
    process.loop.reconcile([Listed(Kind.SERVICE, {}, kept=frozenset({"default/web"}))])
    assert WEB in node.ipvs.table


def test_a_source_that_can_never_deliver_is_fatal(node):
    with pytest.raises(Fatal, match="no such file"):
        RestartedProxy(node).loop.reconcile([SourceFailed("kubeconfig: no such file")])


def test_an_api_server_is_no_external_ip(node):
    process = RestartedProxy(node).list(
        service(external_ips=["192.0.2.10", "192.0.2.11"]), slice_of("web", "10.244.1.1")
    )
    bound = {key("192.0.2.10:80"), key("192.0.2.11:80")}
    assert bound <= node.ipvs.table.keys()
    process.loop.reconcile([ApiServers(((parse_ip("192.0.2.10"), 6443),))])
    assert key("192.0.2.10:80") not in node.ipvs.table
    api = slice_of("kubernetes", endpoint("192.0.2.11", "node1"), ports=((6443, "TCP", ""),))
    process.change(api)
    process.wait(31)
    assert not bound & node.ipvs.table.keys()


def test_what_is_new_waits_for_its_rules_and_what_stands_goes_on(node):
    process = RestartedProxy(node).list(service(), slice_of("web", "10.244.1.1"))
    node.nft.fail_next = errno.ENOMEM
    balanced = service(load_balancer_ips=["203.0.113.5"], source_ranges=["10.0.0.0/8"])
    process.loop.reconcile(
        [Changed(Kind.SERVICE, "default/web", balanced), *slices(slice_of("web", "10.244.1.1", "10.244.1.2"))]
    )
    assert key("203.0.113.5:80") not in node.ipvs.table
    assert parse_ip("203.0.113.5") not in {vip.address for vip in node.links.present}
    assert weights(node) == {"10.244.1.1:8080": 1, "10.244.1.2:8080": 1}
    process.wait(1)
    assert key("203.0.113.5:80") in node.ipvs.table
    assert parse_ip("203.0.113.5") in {vip.address for vip in node.links.present}


def slices(*pieces):
    return [Changed(Kind.ENDPOINT_SLICE, piece.key, piece) for piece in pieces]


def test_a_new_gateway_is_looked_at_by_those_it_may_concern(node, monkeypatch):
    others = [service(f"s{n}", [f"10.96.1.{n}"]) for n in range(1, 30)]
    process = RestartedProxy(node, sync_period=30).list(service(external_ips=["192.0.2.9"]), *others)
    planned = []
    real = ipvsproxy.reconciler.planning.plan_service
    monkeypatch.setattr(
        ipvsproxy.reconciler.planning,
        "plan_service",
        lambda svc, *rest: (planned.append(svc.name), real(svc, *rest))[1],
    )
    node.links.hops = frozenset((parse_ip("192.0.2.9"),))
    process.wait(31)
    assert planned == ["web"]
    assert key("192.0.2.9:80") not in node.ipvs.table


NODE_PORT = key("192.0.2.1:30080")


def test_a_port_on_which_a_program_listens_is_given_to_a_service_when_it_is_free(node):
    node.host.listens = frozenset({(6, 30080)})
    process = RestartedProxy(node).list(service(ports=((80, 30080),)), slice_of("web", "10.244.1.1"))
    assert (WEB in node.ipvs.table, NODE_PORT in node.ipvs.table) == (True, False)
    node.host.listens = frozenset()
    process.wait(31)
    assert NODE_PORT in node.ipvs.table
    node.host.listens = frozenset({(6, 30080), (6, 22)})
    process.wait(31)
    assert NODE_PORT not in node.ipvs.table


def test_a_port_that_a_service_does_not_get_in_two_families_is_one_line(node):
    node.host.listens = frozenset({(6, 30080)})
    node.links.others = frozenset(map(parse_ip, ("192.0.2.1", "2001:db8::1")))
    with capture_logs() as lines:
        RestartedProxy(node).list(service(ips=("10.96.0.10", "fd00:10:96::10"), ports=((80, 30080),)))
    assert [line["reason"] for line in lines if line["event"] == messages.SERVED_IN_PART] == [
        "NodePort 30080/TCP: a program of this node listens on this port"
    ]


def test_who_listens_is_read_when_a_service_asks_for_a_port_and_not_with_each_change(node):
    process = RestartedProxy(node).list(service(), slice_of("web", "10.244.1.1"))
    node.host.listens = frozenset({(6, 30080)})
    process.change(service(ports=((80, 30080),)))
    assert NODE_PORT not in node.ipvs.table
    node.host.listens = frozenset()
    process.change(slice_of("web", "10.244.1.2"))
    assert NODE_PORT not in node.ipvs.table


def test_who_listens_counts_as_before_while_it_cannot_be_read(node, monkeypatch):
    node.host.listens = frozenset({(6, 30080)})
    process = RestartedProxy(node).list(service(ports=((80, 30080),)), slice_of("web", "10.244.1.1"))

    def refused():
        raise KernelError("reading sockets", errno.ENOBUFS)

    monkeypatch.setattr(node.host, "listening", refused)
    process.wait(31)
    process.change(slice_of("web", "10.244.1.2"))
    assert weights(node) == {"10.244.1.2:8080": 1, "10.244.1.1:8080": 0}
    assert NODE_PORT not in node.ipvs.table
