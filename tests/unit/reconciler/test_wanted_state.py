"""From objects to what a node should have, and what is said of what a Service does not get."""

from pathlib import Path

import pytest
from structlog.testing import capture_logs

from ipvsproxy.base import messages
from ipvsproxy.base.address import format_ip, parse_cidr, parse_ip
from ipvsproxy.exchange.inbox import Changed, Kind, Removed
from ipvsproxy.exchange.report import Report
from ipvsproxy.kube.decode import decode_mapping
from ipvsproxy.kube.documents import read
from ipvsproxy.plan.model import Node
from ipvsproxy.reconciler.wanted_state import WantedState
from tests.support.build import config, service, slice_of

CASES = Path(__file__).parents[2] / "field" / "cases"
OTHER_LINES = (messages.NODE_FACTS, messages.NODE_MISSING, "detectLocalMode")
NODES = [Node(f"node{n}", (parse_ip(f"192.0.2.{n}"),), (parse_cidr(f"10.244.{n}.0/24"),)) for n in (1, 2, 3)]


class RefusalEvents(Report):
    def __init__(self):
        self.refusals = []

    def refused(self, service, reason):
        self.refusals.append((service.name, reason))


class PlannedNode:
    """One node, its objects and what was said."""

    def __init__(self, **settings):
        self.events = RefusalEvents()
        self.desired = WantedState(config(**settings), self.events)
        self.lines = []

    def change(self, *objects, gone=()):
        for item in objects:
            self.desired.apply(Changed(Kind(type(item).__name__), item.key, item))
        for kind, key in gone:
            self.desired.apply(Removed(kind, key))
        with capture_logs() as lines:
            self.desired.look_at_node([parse_ip("192.0.2.1")])
            self.desired.plan_next(0.0)
        self.lines = [line for line in lines if not line["event"].startswith(OTHER_LINES)]
        return self

    def served(self, name):
        ledger = self.desired
        return {format_ip(key.address) for key in ledger.frontends if ledger.owner(key) == f"default/{name}"}


def field_case(name):
    items = read(name, (CASES / name).read_bytes()).items
    return [decode_mapping(Kind(item.kind), item.body).object for item in items]


@pytest.mark.parametrize("known", [NODES[:1], NODES], ids=["this node alone", "all nodes"])
def test_of_the_nodes_that_servicelb_lists_this_one_serves_itself(known):
    planned = PlannedNode().change(*known, *field_case("09-servicelb-other-nodes.yaml"))
    assert planned.served("traefik") == {"10.96.9.28", "192.0.2.1"}
    assert planned.desired.vip(parse_ip("192.0.2.2")) is None
    assert [(line["event"], line["services"]) for line in planned.lines] == [(messages.NODE_ADDRESSES_IGNORED, 1)]
    assert planned.events.refusals == []


def test_that_load_balancers_list_nodes_is_reported_once_for_all_services():
    addresses = [f"192.0.2.{n}" for n in (1, 2, 3)]
    services = [service(f"s{n}", [f"10.96.0.{n}"], ((n, 0),), load_balancer_ips=addresses) for n in range(1, 21)]
    planned = PlannedNode().change(*NODES, *services)
    assert [line["services"] for line in planned.lines] == [20]
    planned.change(service("more", ["10.96.1.1"], ((99, 0),), load_balancer_ips=addresses))
    assert (planned.lines, planned.events.refusals) == ([], [])


def test_what_a_service_does_not_get_is_one_line_and_one_event():
    wanted = [f"169.254.0.{n}" for n in range(1, 9)]
    planned = PlannedNode().change(service(external_ips=wanted))
    told = [f"{address}: a link-local address" for address in wanted[:5]]
    assert [(line["service"], line["count"], line["addresses"]) for line in planned.lines] == [
        ("default/web", 8, told)
    ]
    assert planned.events.refusals == [("web", "; ".join([*told, "and 3 more"]))]
    planned.change(slice_of("web", "10.244.1.1"))
    assert (planned.lines, len(planned.events.refusals)) == ([], 1)
    # What is said again is what changes.
    planned.change(service()).change(service(external_ips=wanted))
    assert len(planned.events.refusals) == 2


def test_what_other_services_hold_is_one_line_and_one_event():
    ports = [(number, 0, "TCP", f"p{number}") for number in range(1, 9)]
    old = service("old", ["10.96.0.1"], ports, external_ips=["198.51.100.1"], created="2020")
    new = service("new", ["10.96.0.2"], ports, external_ips=["198.51.100.1"], created="2026")
    planned = PlannedNode().change(new, old)
    told = [f"198.51.100.1:{number}/TCP is held by the Service default/old" for number in range(1, 6)]
    assert [(line["service"], line["count"], line["frontends"]) for line in planned.lines] == [
        ("default/new", 8, told)
    ]
    assert planned.events.refusals == [("new", "; ".join([*told, "and 3 more"]))]


def test_an_external_ip_ends_when_a_load_balancer_gives_it_to_another_service_and_comes_back():
    thief = service("thief", ["10.96.0.1"], ((80, 0),), external_ips=["203.0.113.5"], created="2020")
    owner = service("owner", ["10.96.0.2"], ((443, 0),), load_balancer_ips=["203.0.113.5"], created="2026")
    for order in ([thief, owner], [owner, thief]):
        planned = PlannedNode()
        for item in order:
            planned.change(item)
        # Not even on a port that the other Service does not have.
        assert (planned.served("thief"), planned.served("owner")) == ({"10.96.0.1"}, {"10.96.0.2", "203.0.113.5"})
        planned.change(gone=[(Kind.SERVICE, "default/owner")])
        assert planned.served("thief") == {"10.96.0.1", "203.0.113.5"}


def test_an_external_ip_ends_when_a_pod_or_a_node_gets_it():
    planned = PlannedNode().change(NODES[0], service(external_ips=["10.9.1.7", "192.0.2.2"]))
    assert planned.served("web") == {"10.96.0.10", "10.9.1.7", "192.0.2.2"}
    planned.change(slice_of("other", "10.9.1.7"))
    assert planned.served("web") == {"10.96.0.10", "192.0.2.2"}
    planned.change(NODES[1])
    assert planned.served("web") == {"10.96.0.10"}
    planned.change(gone=[(Kind.NODE, "node2"), (Kind.ENDPOINT_SLICE, "default/other-4")])
    assert planned.served("web") == {"10.96.0.10", "10.9.1.7", "192.0.2.2"}


def test_the_switch_for_operators_allows_addresses_of_nodes_and_pods():
    planned = PlannedNode(trusted_ip_ranges=("192.0.2.0/24", "10.9.0.0/16"))
    planned.change(
        *NODES, slice_of("other", "10.9.1.7"), service(external_ips=["192.0.2.1", "192.0.2.2", "10.9.1.7"])
    )
    assert planned.served("web") == {"10.96.0.10", "192.0.2.1", "192.0.2.2", "10.9.1.7"}


def test_a_port_of_this_node_ends_when_it_becomes_the_health_check_of_another_service():
    ports = ((80, 0), (31999, 0, "TCP", "more"))
    greedy = service("greedy", ["10.96.0.66"], ports, load_balancer_ips=["192.0.2.1"])
    pods = slice_of("greedy", "10.244.1.1", ports=((80, "TCP", "http"), (31999, "TCP", "more")))
    node = PlannedNode().change(NODES[0], greedy, pods)

    def here():
        return {key.port for key in node.desired.frontends if format_ip(key.address) == "192.0.2.1"}

    assert here() == {80, 31999}
    front = service("front", ["10.96.0.7"], external_local=True, health_check_port=31999)
    node.change(front)
    assert here() == {80}
    node.change(gone=[(Kind.SERVICE, "default/front")])
    assert here() == {80, 31999}
