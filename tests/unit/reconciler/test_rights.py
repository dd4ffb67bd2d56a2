"""Without the rights that tenants need: a new node has shared Services only, others keep what they have."""

from msgspec.structs import replace
from structlog.testing import capture_logs

from ipvsproxy.base import messages
from ipvsproxy.base.address import parse_ip
from ipvsproxy.exchange.inbox import Inbox, Kind, Listed, RightRefused
from ipvsproxy.exchange.report import Report
from ipvsproxy.plan.model import Namespace, Pod
from ipvsproxy.process.assembly import make_loop
from tests.support.build import config, service
from tests.support.memory_kernel import MemoryNode

LABEL = "ipvsproxy.io/tenant"
SERVICES = {
    name: replace(service(name.partition("/")[2], [address]), namespace=name.partition("/")[0])
    for name, address in (
        ("default/kubernetes", "10.96.0.1"), ("kube-system/kube-dns", "10.96.0.10"),
        ("blue/web", "10.96.0.20"), ("plain/web", "10.96.0.30"),
    )
}  # fmt: skip
SERVICES["blue/for-all"] = replace(service("for-all", ["10.96.0.40"]), namespace="blue", share_with=("*",))
POD = Pod("blue", "one", "node1", (parse_ip("10.244.1.1"),))
SPACES = {
    name: Namespace(name, {LABEL: name} if name == "blue" else {})
    for name in ("default", "kube-system", "blue", "plain")
}
LISTS = {Kind.SERVICE: SERVICES, Kind.NAMESPACE: SPACES, Kind.POD: {POD.key: POD}}


class Rights(Report):
    """Which rights are lacking."""

    kinds = ()

    def lacking_rights(self, kinds):
        self.kinds = tuple(kinds)


class ProxyWithRights:
    def __init__(self, refused=(), node=None, label=LABEL):
        self.node, self.report = node or MemoryNode([parse_ip("192.0.2.1")]), Rights()
        made = config(tenant_label=label, cluster_cidrs=("10.244.0.0/16",))
        self.loop = make_loop(made, Inbox(), self.node.kernel(), lambda: 1000.0, self.report)
        kinds = Kind if label else [Kind.SERVICE, Kind.ENDPOINT_SLICE, Kind.NODE]
        self.take(*(Listed(kind, LISTS.get(kind, {})) for kind in kinds if kind not in refused))
        self.take(*map(RightRefused, refused))

    def take(self, *events):
        self.loop.reconcile(list(events))
        while self.loop.timeout() == 0:
            self.loop.reconcile([])

    @property
    def state(self):
        """The addresses that are served, those of them that are restricted, and the pods in groups."""
        sets = self.node.nft.sets
        served, restricted = (
            {text.split(" ")[0] for text in sets.get(name, {})} for name in ("frontends4", "restricted4")
        )
        return (
            {address[8:] for address in served},
            {address[8:] for address in restricted},
            sets.get("audiences4", {}),
        )


ALL = {"1", "10", "20", "30", "40"}
COMPLETE = (ALL, {"20"}, {"10.244.1.1": "0:20"})


def test_a_new_node_that_may_not_watch_namespaces_begins_with_what_is_shared_for_certain():
    with capture_logs() as logs:
        process = ProxyWithRights([Kind.NAMESPACE, Kind.POD])
    assert process.state == (ALL, {"20", "30"}, {})
    assert process.report.kinds == (Kind.NAMESPACE, Kind.POD)
    assert [line["event"] for line in logs].count(messages.SHARED_ONLY) == 1


def test_a_new_node_that_may_not_watch_pods_has_shared_services_for_all():
    process = ProxyWithRights([Kind.POD])
    assert (process.state, process.report.kinds) == ((ALL, {"20"}, {}), (Kind.POD,))


def test_once_the_rights_are_there_all_is_as_with_them():
    process = ProxyWithRights([Kind.NAMESPACE, Kind.POD])
    process.take(Listed(Kind.POD, LISTS[Kind.POD]))
    process.take(Listed(Kind.NAMESPACE, SPACES))
    assert (process.state, process.report.kinds) == (COMPLETE, ())


def test_a_node_keeps_what_it_has_when_a_proxy_starts_without_the_rights():
    for label, before in ((LABEL, COMPLETE), ("", (ALL, set(), {}))):
        node = ProxyWithRights(label=label).node
        process = ProxyWithRights([Kind.NAMESPACE, Kind.POD], node)
        assert process.state == before
        assert process.report.kinds == (Kind.NAMESPACE, Kind.POD)
        process.take(Listed(Kind.NAMESPACE, SPACES), Listed(Kind.POD, LISTS[Kind.POD]))
        assert process.state == COMPLETE


def test_a_node_with_shared_services_only_goes_on_so_after_a_restart():
    node = ProxyWithRights([Kind.NAMESPACE, Kind.POD]).node
    process = ProxyWithRights([Kind.NAMESPACE, Kind.POD], node)
    more = replace(service("more", ["10.96.0.50"]), namespace="blue")
    process.take(Listed(Kind.SERVICE, {**SERVICES, more.key: more}))
    assert process.state == (ALL | {"50"}, {"20", "30", "50"}, {})


def test_a_running_proxy_that_loses_a_right_goes_on():
    process = ProxyWithRights()
    process.take(RightRefused(Kind.NAMESPACE), RightRefused(Kind.POD))
    assert (process.state, process.report.kinds) == (COMPLETE, ())
