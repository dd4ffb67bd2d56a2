"""Who asks the cluster's DNS is led to the DNS of the own tenant, whatever comes first."""

import itertools

import pytest
from msgspec.structs import replace

from ipvsproxy.base.address import format_ip, parse_ip
from ipvsproxy.exchange.inbox import Changed, Inbox, Kind, Listed, Removed
from ipvsproxy.plan.model import Namespace, Pod
from ipvsproxy.process.assembly import make_loop
from tests.support.build import config, destination, key, service, slice_of
from tests.support.memory_kernel import MemoryNode

LABEL = "ipvsproxy.io/tenant"
PORTS = ((53, 0, "UDP", "dns"),)
CLUSTER, OWN = key("10.96.0.10:53/UDP"), key("10.96.0.53:53/UDP")
POD, HELD = parse_ip("10.244.1.1"), destination("10.244.2.1:53")
VIEW = "10.96.0.10 . udp . 53"


def dns(space, ip, **settings):
    return replace(service("dns", [ip], PORTS, **settings), namespace=space)


def ends(space, *pods):
    return replace(slice_of("dns", *pods, ports=((53, "UDP", "dns"),)), namespace=space, service=f"{space}/dns")


OBJECTS = [
    Changed(Kind.NAMESPACE, "blue", Namespace("blue", {LABEL: "blue"})),
    Changed(Kind.NAMESPACE, "kube-system", Namespace("kube-system")),
    Changed(Kind.SERVICE, "kube-system/dns", dns("kube-system", "10.96.0.10")),
    Changed(Kind.SERVICE, "blue/dns", dns("blue", "10.96.0.53", tenant_dns=True)),
    Changed(Kind.ENDPOINT_SLICE, "blue/dns", ends("blue", "10.244.2.9")),
]


class ProxyWithTenantDns:
    def __init__(self, **settings):
        self.node, self.now = MemoryNode([parse_ip("192.0.2.1")]), 1000.0
        made = config(
            cluster_cidrs=("10.244.0.0/16",), tenant_label=LABEL, cluster_dns="kube-system/dns", **settings
        )
        self.loop = make_loop(made, Inbox(), self.node.kernel(), lambda: self.now)
        pod = Pod("blue", "one", "node1", (POD,))
        lists = {kind: {} for kind in Kind} | {Kind.POD: {pod.key: pod}}
        lists[Kind.ENDPOINT_SLICE]["kube-system/dns"] = ends("kube-system", "10.244.2.1")
        self.loop.reconcile([Listed(kind, found) for kind, found in lists.items()])

    def take(self, *events):
        self.loop.reconcile(list(events))
        while self.loop.timeout() <= 0:
            self.loop.reconcile([])

    @property
    def views(self):
        """Where which group is led from the cluster's DNS."""
        sets, led = self.node.nft.sets, {}
        for element, server in sets.get("group_views4", {}).items():
            frontend, _, group = element.rpartition(" . ")
            led[group] = (frontend, server, sets["by_audience4"][frontend])
        return led

    @property
    def group(self):
        return self.node.nft.sets["audiences4"][format_ip(POD)]


@pytest.mark.parametrize("order", range(len(OBJECTS)))
def test_the_view_is_there_in_whatever_order_objects_come(order):
    process = ProxyWithTenantDns()
    for event in (*OBJECTS[order:], *OBJECTS[:order]):
        process.take(event)
    assert process.views == {process.group: (VIEW, "10.96.0.53 . 53", "goto group_view")}
    process.take(Removed(Kind.SERVICE, "blue/dns"))
    assert process.views == {}


def test_no_view_outlives_the_server_that_it_leads_to():
    """Not by one pass either: what is sent to an address that has just gone leaves the node."""
    process = ProxyWithTenantDns()
    process.take(*OBJECTS)
    process.node.nft.transactions.clear()
    process.loop.reconcile([Removed(Kind.SERVICE, "blue/dns")])
    assert process.views == {}
    changes = [line for sent in process.node.nft.transactions for line in str(sent).splitlines()]
    order = [line.split()[4] for line in changes if line.startswith("delete element")]
    assert order.index("group_views4") < order.index("vips4")


def test_who_is_the_dns_of_a_tenant():
    process = ProxyWithTenantDns()
    process.take(*OBJECTS)
    older = replace(dns("blue", "10.96.0.54", tenant_dns=True, created="2025-01-01T00:00:00Z"), name="old")
    process.take(Changed(Kind.SERVICE, older.key, older))
    assert [server for _, server, _ in process.views.values()] == ["10.96.0.54 . 53"]
    # Namespaces decide: in one of no tenant, nobody is led to it.
    process.take(Changed(Kind.NAMESPACE, "blue", Namespace("blue")))
    assert process.views == {}


@pytest.mark.parametrize("falls_back", [False, True])
def test_a_dns_without_endpoints(falls_back):
    process = ProxyWithTenantDns(tenant_dns_fallback=falls_back)
    process.take(*OBJECTS)
    assert len(process.views) == 1
    process.take(Changed(Kind.ENDPOINT_SLICE, "blue/dns", ends("blue")))
    assert len(process.views) == (0 if falls_back else 1)


def test_open_questions_are_kept_wherever_their_endpoint_serves():
    process = ProxyWithTenantDns()
    process.take(*OBJECTS)
    own = destination("10.244.2.9:53")
    process.node.conntrack.entries = [(POD, CLUSTER, own), (parse_ip("10.244.1.9"), CLUSTER, HELD)]
    process.take(Changed(Kind.ENDPOINT_SLICE, "blue/dns", ends("blue", "10.244.2.9", "10.244.2.8")))
    assert len(process.node.conntrack.entries) == 2
    process.take(Changed(Kind.ENDPOINT_SLICE, "blue/dns", ends("blue", "10.244.2.8")))
    assert [entry[2] for entry in process.node.conntrack.entries] == [HELD]


@pytest.mark.parametrize("after", [None, "green", "kube-system"])
def test_no_pod_goes_on_with_the_dns_of_the_pod_that_had_its_address(after):
    process = ProxyWithTenantDns()
    process.take(*OBJECTS, Changed(Kind.NAMESPACE, "green", Namespace("green", {LABEL: "green"})))
    process.node.conntrack.entries = [
        (POD, CLUSTER, destination("10.244.2.9:53")),
        (parse_ip("10.244.1.9"), CLUSTER, HELD),
    ]
    process.take(
        Removed(Kind.POD, "blue/one"), *[Changed(Kind.POD, "x/y", Pod(after, "y", "node1", (POD,)))] * bool(after)
    )
    assert [entry[2] for entry in process.node.conntrack.entries] == [HELD]


def test_no_view_without_tenants():
    for more, events in itertools.product(({"tenant_label": ""}, {"cluster_dns": "a/b"}), [OBJECTS]):
        made = config(cluster_cidrs=("10.244.0.0/16",), **({"cluster_dns": "kube-system/dns"} | more))
        node = MemoryNode([parse_ip("192.0.2.1")])
        loop = make_loop(made, Inbox(), node.kernel(), lambda: 1000.0)
        loop.reconcile([Listed(kind, {}) for kind in Kind])
        loop.reconcile(events)
        assert not node.nft.sets.get("group_views4")
