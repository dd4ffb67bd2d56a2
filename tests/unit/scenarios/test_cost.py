"""What one change costs, counted: the same on a node with 100 Services and on one with 10,000.

Counted is everything that reaches the kernel in memory: each call of its methods, each message, each element, and
on our side how many Services are planned. Counts, not times, so that it can be a test.
"""

import collections
import sys

import pytest
from msgspec.structs import replace

import ipvsproxy.reconciler.planning
from ipvsproxy.base.address import parse_ip
from ipvsproxy.config import DataPath, VipMode
from ipvsproxy.exchange.inbox import Changed, Inbox, Kind, Listed, Removed
from ipvsproxy.kernel import element_changes, rules
from ipvsproxy.plan.ledger import Ledger
from ipvsproxy.plan.model import Namespace, Node, Pod
from ipvsproxy.plan.planner import plan_service
from ipvsproxy.plan.waiting import RankedService
from ipvsproxy.process.assembly import make_loop
from ipvsproxy.ruleset import codec
from ipvsproxy.ruleset.codec import element_text
from ipvsproxy.ruleset.schema import BY_SOURCE, SETS
from tests.bench.instructions import MeasuredNode
from tests.support import build
from tests.support.build import config, service, slice_of
from tests.support.memory_kernel import MemoryIpvs, MemoryLinks, MemoryNode

SIZES = (100, 10_000)


class CallCounter:
    """Counts calls, and what they carry."""

    def __init__(self, counts, *args):
        super().__init__(*args)
        self.counts = counts

    def __getattribute__(self, name):
        found = super().__getattribute__(name)
        if callable(found) and not name.startswith("_"):
            self.counts[name] += 1
        return found


class CountingIpvs(CallCounter, MemoryIpvs):
    def apply(self, steps):
        self.counts["messages"] += sum(step.size for step in steps)
        return super().apply(steps)


class CountingLinks(CallCounter, MemoryLinks):
    pass


class BigNode:
    """A running proxy with so many Services, and a count of what happens."""

    def __init__(self, size, monkeypatch, data_path=DataPath.IPVS, **more):
        self.counts = collections.Counter()
        self.node = MemoryNode()
        self.node.ipvs = CountingIpvs(self.counts)
        self.node.links = CountingLinks(self.counts, [parse_ip("192.0.2.1")])
        settings = config(cluster_cidrs=("10.244.0.0/16",), data_path=data_path, **more)
        self.loop = make_loop(settings, Inbox(), self.node.kernel(), lambda: 0.0)
        self.loop.reconcile(list(self.listed(size)))
        assert len(self.node.ipvs.table) == (size if data_path is DataPath.IPVS else 0)
        real = ipvsproxy.reconciler.planning.plan_service
        monkeypatch.setattr(ipvsproxy.reconciler.planning, "plan_service", lambda *args: self._plan(real, *args))

    def listed(self, size):
        services = [service(f"s{n}", [f"10.96.{n // 250}.{n % 250 + 1}"]) for n in range(size)]
        slices = [slice_of(f"s{n}", "10.244.1.1", "10.244.2.2") for n in range(size)]
        yield Listed(Kind.NODE, {"node1": Node("node1")})
        yield Listed(Kind.SERVICE, {item.key: item for item in services})
        yield Listed(Kind.ENDPOINT_SLICE, {item.key: item for item in slices})

    def _plan(self, real, *args):
        self.counts["planned"] += 1
        return real(*args)

    def cost(self, *events):
        """Count one turn; elements are read from the text of the transactions."""
        self.counts.clear()
        self.node.conntrack.sweeps.clear()
        before = len(self.node.nft.transactions)
        self.loop.reconcile(list(events))
        transactions = self.node.nft.transactions[before:]
        self.counts["transactions"] = len(transactions)
        self.counts["bytes of nft"] = sum(map(len, transactions))
        self.counts["sweeps"] = len(self.node.conntrack.sweeps)
        return dict(self.counts)


CHANGES = {
    "an endpoint more": [Changed(Kind.ENDPOINT_SLICE, "default/s7-4", slice_of("s7", "10.244.2.2", "10.244.3.3"))],
    "a local endpoint more": [
        Changed(Kind.ENDPOINT_SLICE, "default/s7-4", slice_of("s7", "10.244.1.7", "10.244.2.2"))
    ],
    "an endpoint less": [Changed(Kind.ENDPOINT_SLICE, "default/s7-4", slice_of("s7", "10.244.1.1", name="s7-4"))],
    "a Service more": [Changed(Kind.SERVICE, "default/new", service("new", ["10.97.0.1"], ((80, 31000),)))],
    "a Service less": [Removed(Kind.SERVICE, "default/s7")],
    "affinity": [Changed(Kind.SERVICE, "default/s7", service("s7", ["10.96.0.8"], affinity_seconds=60))],
    "nothing": [Changed(Kind.SERVICE, "default/s7", service("s7", ["10.96.0.8"]))],
}
BRING_A_VIP = ("a Service more", "affinity")
"""The second one after the Service has been removed."""


@pytest.fixture(scope="module")
def nodes():
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield [BigNode(size, monkeypatch) for size in SIZES]


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_costs_the_same_on_a_small_and_a_big_node(nodes, change):
    small, big = (node.cost(*CHANGES[change]) for node in nodes)
    assert small == big
    assert big.get("planned", 0) <= 1
    assert big.get("messages", 0) <= 3
    # One transaction before the servers change and one after them, at most.
    assert big["transactions"] <= 2
    assert big["bytes of nft"] < 1000
    assert big["sweeps"] == (change in BRING_A_VIP)
    assert not big.keys() & {"servers", "observe", "vips", "weights", "state", "connections"}


@pytest.fixture(scope="module")
def short():
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield [BigNode(size, monkeypatch, DataPath.AUTO) for size in SIZES]


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_on_the_short_path_costs_the_same_on_a_small_and_a_big_node(short, change):
    small, big = (node.cost(*CHANGES[change]) for node in short)
    assert small == big
    assert big.get("planned", 0) <= 1
    # An endpoint more or less is one transaction; one of this node leaves its hairpin until later.
    assert big["transactions"] <= (1 if "endpoint more" in change else 2)
    assert big["bytes of nft"] < 1000
    # A frontend that has gone takes its connections with it, wherever it comes back.
    assert big["sweeps"] <= 2
    assert big.get("messages", 0) <= 2


def test_on_the_short_path_one_endpoint_in_place_of_another_changes_nothing_of_the_rest():
    """Of five endpoints, whose elements are 10 of 16."""
    ledger, owner = Ledger(VipMode.ADDRESS), RankedService("", "default/web")
    facts, settings, addresses = (
        build.node(),
        config(data_path=DataPath.AUTO),
        [f"10.244.2.{n}" for n in range(1, 6)],
    )
    made, replaced = (
        plan_service(service(), [slice_of("web", *found)], facts, settings)
        for found in (addresses, [*addresses[:-1], "10.244.2.9"])
    )
    assert len(ledger.replace(owner, made).slots) == 16
    place, left, came = sorted(map(element_text, ledger.replace(owner, replaced).slots))
    assert place.startswith("endpoints4 { 10.96.0.10 . tcp . 80 . ")
    assert (left, came) == tuple(f"short_endpoints4 {{ 10.244.2.{n} . tcp . 8080 }}" for n in (5, 9))


def calls_for_elements(size):
    """Count the calls of functions that load the rules and elements of a first start."""
    node, counts = MeasuredNode(size, DataPath.AUTO), collections.Counter()
    files = (codec.__file__, element_changes.__file__, rules.__file__)
    sys.setprofile(lambda frame, event, _: counts.update([event] if frame.f_code.co_filename in files else ()))
    try:
        node.list()
    finally:
        sys.setprofile(None)
    return counts["call"]


def test_at_a_first_start_no_function_is_called_for_each_element():
    more = calls_for_elements(300) - calls_for_elements(100)
    assert more < 200  # Services, with 15 elements each: there are more messages


def test_a_burst_is_one_turn_with_one_batch(nodes):
    events = [
        Changed(Kind.ENDPOINT_SLICE, f"default/s{n}-4", slice_of(f"s{n}", "10.244.2.2", "10.244.4.4"))
        for n in range(20, 80)
    ]
    cost = nodes[1].cost(*events)
    assert cost["planned"] == 60
    assert cost["apply"] == 1
    assert cost["transactions"] <= 2


# Tenants.

LABEL = "ipvsproxy.io/tenant"
OURS, THEIRS = "10.244.9.7", "10.244.9.8"


def tenant_pod(name, namespace, address):
    return Pod(namespace, name, "node1", (parse_ip(address), parse_ip(f"fd00::{address.replace('.', ':')}")))


def in_blue(made):
    changes = {"service": f"blue/{made.service.partition('/')[2]}"} if hasattr(made, "service") else {}
    return replace(made, namespace="blue", **changes)


def space(name, tenant):
    return Changed(Kind.NAMESPACE, name, Namespace(name, {LABEL: tenant}))


class TenantsNode(BigNode):
    """All Services are of tenant blue, and so are a tenth as many pods; green has two pods and no Service."""

    def listed(self, size):
        for found in super().listed(size):
            if found.kind is Kind.NODE:
                yield found
            else:
                made = map(in_blue, found.objects.values())
                yield Listed(found.kind, {item.key: item for item in made})
        yield Listed(Kind.NAMESPACE, {name: Namespace(name, {LABEL: name}) for name in ("blue", "green")})
        pods = [tenant_pod(f"p{n}", "blue", f"10.244.{n // 250 + 1}.{n % 250}") for n in range(size // 10)]
        pods += [tenant_pod("ours", "green", OURS), tenant_pod("theirs", "green", THEIRS)]
        yield Listed(Kind.POD, {pod.key: pod for pod in pods})

    def cost(self, *events):
        """Count all turns that come of events."""
        counts = collections.Counter(super().cost(*events))
        while self.loop.timeout() <= 0:
            counts.update(super().cost())
        return dict(counts)


OF_TENANTS = {
    # What it is, and how many Services are planned, transactions, and sweeps at most.
    "a pod starts": ([Changed(Kind.POD, "blue/new", tenant_pod("new", "blue", "10.244.9.9"))], (0, 1, 0)),
    "a label of it changes": ([Changed(Kind.POD, "blue/new", tenant_pod("new", "blue", "10.244.9.9"))], (0, 0, 0)),
    "a pod ends": ([Removed(Kind.POD, "blue/new")], (0, 1, 1)),
    # Pods leave, and join, and the counter of the tenant that is gone goes.
    "a namespace changes its tenant": ([space("green", "red")], (0, 3, 1)),
    "a tenant of one namespace more": ([space("new", "red")], (0, 0, 0)),
    "a Service is shared": (
        [Changed(Kind.SERVICE, "blue/s7", in_blue(service("s7", ["10.96.0.8"], share_with=("red",))))],
        (1, 1, 1),
    ),
    "a share ends": ([Changed(Kind.SERVICE, "blue/s7", in_blue(service("s7", ["10.96.0.8"])))], (1, 1, 1)),
    "an endpoint more": (
        [Changed(Kind.ENDPOINT_SLICE, "blue/s7-4", in_blue(slice_of("s7", "10.244.2.2", "10.244.3.3")))],
        (1, 2, 0),
    ),
}


@pytest.fixture(scope="module")
def with_tenants():
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield [TenantsNode(size, monkeypatch, tenant_label=LABEL) for size in SIZES]


@pytest.mark.parametrize("change", OF_TENANTS)
def test_a_change_of_tenants_costs_the_same_on_a_small_and_a_big_node(with_tenants, change):
    events, (planned, transactions, sweeps) = OF_TENANTS[change]
    small, big = (node.cost(*events) for node in with_tenants)
    assert small == big
    assert big.get("planned", 0) == planned
    assert (big["transactions"] <= transactions, big["sweeps"] <= sweeps) == (True, True), big
    assert big["bytes of nft"] < 1000
    assert not big.keys() & {"servers", "observe", "vips", "weights", "state", "connections"}


def test_a_cluster_without_tenants_has_nothing_of_them(nodes, with_tenants):
    plain, tenants = nodes[0].node.nft, with_tenants[0].node.nft
    assert "by_source" not in plain.chains
    assert "by_source" in tenants.chains
    assert not [name for name, slot in SETS.items() if slot.part == BY_SOURCE and plain.sets.get(name)]
