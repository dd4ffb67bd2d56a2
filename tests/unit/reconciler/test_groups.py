"""What a pod costs that starts, ends or moves, and what happens when the kernel refuses that."""

import errno

import pytest
from msgspec.structs import replace
from structlog.testing import capture_logs

from ipvsproxy.base import messages
from ipvsproxy.base.address import parse_ip
from ipvsproxy.config import DetectLocalMode
from ipvsproxy.exchange.inbox import Changed, Inbox, Kind, Listed, Removed
from ipvsproxy.plan import group_numbers
from ipvsproxy.plan.model import Namespace, Pod
from ipvsproxy.process.assembly import make_loop
from tests.support.build import config, destination, key, service, slice_of
from tests.support.memory_kernel import Fault, MemoryNode

LABEL = "ipvsproxy.io/tenant"
WEB = key("10.96.0.10:80")
POD = Pod("blue", "one", "node1", (parse_ip("10.244.1.1"), parse_ip("fd00::1")))


class ProxyWithGroups:
    def __init__(self, *, pods=(), **detection):
        self.node, self.now = MemoryNode([parse_ip("192.0.2.1")]), 1000.0
        made = config(tenant_label=LABEL, **(detection or {"cluster_cidrs": ("10.244.0.0/16",)}))
        self.loop = make_loop(made, Inbox(), self.node.kernel(), lambda: self.now)
        web = replace(service(), namespace="blue")
        ends = replace(slice_of("web", "10.244.2.1"), namespace="blue", service="blue/web")
        found = {
            Kind.SERVICE: {web.key: web},
            Kind.ENDPOINT_SLICE: {ends.key: ends},
            Kind.POD: {pod.key: pod for pod in pods},
            Kind.NAMESPACE: {name: Namespace(name, {LABEL: name}) for name in ("blue", "green")},
        }
        self.loop.reconcile([Listed(kind, found.get(kind, {})) for kind in Kind])
        self.rest()

    def take(self, *events):
        """Handle events and return the transactions and sweeps that came of them."""
        before, sweeps = len(self.node.nft.transactions), len(self.node.conntrack.sweeps)
        writes = self.node.writes
        self.loop.reconcile(list(events))
        self.rest()
        assert self.node.writes == writes
        return self.node.nft.transactions[before:], self.node.conntrack.sweeps[sweeps:]

    def rest(self):
        while self.loop.timeout() <= 0:
            self.loop.reconcile([])

    @property
    def members(self):
        sets = self.node.nft.sets
        return {**sets.get("audiences4", {}), **sets.get("audiences6", {})}


def test_a_pod_that_starts_is_one_transaction_of_its_addresses_and_no_more():
    process = ProxyWithGroups()
    (transaction,), sweeps = process.take(Changed(Kind.POD, POD.key, POD))
    assert sorted(str(transaction).splitlines()) == [
        "add element inet ipvsproxy audiences4 { 10.244.1.1 : 0:20 }",
        "add element inet ipvsproxy audiences6 { fd00::1 : 0:20 }",
    ]
    assert sweeps == []
    # What changes in a pod later, such as its labels, is nothing here.
    assert process.take(Changed(Kind.POD, POD.key, POD)) == ([], [])


def test_a_pod_that_ends_is_one_transaction_and_its_connections_are_looked_for():
    process = ProxyWithGroups()
    process.take(Changed(Kind.POD, POD.key, POD))
    process.node.conntrack.entries = [
        (POD.addresses[0], WEB, destination("10.244.2.1:8080")),
        (POD.addresses[0], key("10.96.0.99:80"), destination("10.244.2.7:80")),
        (parse_ip("192.0.2.100"), WEB, destination("10.244.2.1:8080")),
    ]
    transactions, sweeps = process.take(Removed(Kind.POD, POD.key))
    assert (len(transactions), [sweep.family for sweep in sweeps]) == (1, [4])
    assert process.members == {}
    assert [(entry[0], entry[1]) for entry in process.node.conntrack.entries] == [
        (POD.addresses[0], key("10.96.0.99:80")),
        (parse_ip("192.0.2.100"), WEB),
    ]


BY_LINK = {"detect_local_mode": DetectLocalMode.INTERFACE_NAME_PREFIX, "pod_interface_name_prefix": "veth"}
OPEN = (POD.addresses[0], WEB, destination("10.244.2.1:8080"))


@pytest.mark.parametrize("after", [[], [replace(POD, namespace="green", name="two")]])
def test_connections_of_a_pod_that_ends_are_cut_where_no_range_tells_that_it_was_a_pod(after):
    process = ProxyWithGroups(**BY_LINK)
    process.take(Changed(Kind.POD, POD.key, POD))
    process.node.conntrack.entries = [OPEN]
    process.take(Removed(Kind.POD, POD.key), *(Changed(Kind.POD, pod.key, pod) for pod in after))
    assert process.node.conntrack.entries == []


def test_connections_of_a_pod_of_an_unknown_namespace_are_cut_where_no_range_tells_that_it_is_a_pod():
    process = ProxyWithGroups(**BY_LINK)
    process.take(Changed(Kind.POD, POD.key, POD))
    process.node.conntrack.entries = [OPEN]
    process.take(Removed(Kind.NAMESPACE, "blue"))
    assert process.node.conntrack.entries == []


def test_a_pod_that_starts_first_after_a_start_has_no_others_looked_for():
    """The start has looked at what all pods of the node had open."""
    process = ProxyWithGroups(pods=[POD])
    other = replace(POD, name="two", addresses=(parse_ip("10.244.1.2"),))
    assert process.take(Changed(Kind.POD, other.key, other))[1] == []


@pytest.mark.parametrize("code", [errno.EBUSY, errno.EINVAL])
def test_a_pod_that_the_kernel_does_not_let_leave_is_tried_again_and_joins_nothing_before(code):
    process = ProxyWithGroups()
    process.take(Changed(Kind.POD, POD.key, POD))
    process.node.faults.plan(0, Fault("refused", code, done=False))
    process.take(Changed(Kind.NAMESPACE, "blue", Namespace("blue", {LABEL: "green"})))
    assert set(process.members.values()) <= {"0:20", "0:30"}
    process.node.faults.coming.clear()
    process.now += 35
    process.rest()
    process.now += 35
    process.rest()
    assert set(process.members.values()) == {"0:30"}


def test_a_pod_does_not_wait_for_what_its_namespace_has_nothing_to_do_with():
    """The Services of a namespace that was there before have long been programmed."""
    process = ProxyWithGroups()
    process.take(Changed(Kind.NAMESPACE, "new", Namespace("new", {LABEL: "blue"})))
    for call in range(9):
        process.node.faults.plan(call, Fault("refused", errno.EINVAL, done=False))
    other = replace(service("other", ["10.96.0.77"]), namespace="green")
    process.loop.reconcile([Changed(Kind.SERVICE, other.key, other)])
    process.node.faults.coming.clear()
    assert process.loop.parts.applier.behind
    process.take(Changed(Kind.POD, "new/one", replace(POD, namespace="new")))
    assert process.loop.parts.applier.behind
    assert set(process.members.values()) == {"0:20"}


def test_tenants_above_the_limit_are_logged_once(monkeypatch):
    monkeypatch.setattr(group_numbers, "LARGEST_GROUP", 3)
    process = ProxyWithGroups()
    with capture_logs() as logs:
        for number in range(2):
            name = f"more{number}"
            process.take(Changed(Kind.NAMESPACE, name, Namespace(name, {LABEL: name})))
            pod = replace(POD, namespace=name, name=name, addresses=(parse_ip(f"10.244.1.{number + 7}"),))
            process.take(Changed(Kind.POD, pod.key, pod))
    assert [entry["event"] for entry in logs].count(messages.TENANTS_ABOVE_LIMIT) == 1
    assert process.members == {}
    # A tenant that goes makes room for the first of them.
    process.take(Removed(Kind.NAMESPACE, "green"))
    assert process.members == {"10.244.1.7": "0:30"}


def test_a_namespace_that_changes_does_not_wait_for_elements_that_are_refused_elsewhere():
    process = ProxyWithGroups()
    process.take(Changed(Kind.POD, POD.key, POD))
    for call in range(9):
        process.node.faults.plan(call, Fault("refused", errno.EINVAL, done=False))
    other = replace(service("other", ["10.96.0.77"]), namespace="green")
    process.loop.reconcile([Changed(Kind.SERVICE, other.key, other)])
    process.node.faults.coming.clear()
    assert process.loop.parts.applier.groups_waiting
    process.take(Changed(Kind.NAMESPACE, "blue", Namespace("blue", {LABEL: "green"})))
    assert process.loop.parts.applier.groups_waiting
    assert set(process.members.values()) == {"0:30"}


def test_a_namespace_waits_while_the_kernel_lets_its_new_tenant_in_where_it_may_not():
    """Services of blue go over to red, and pods of green to blue, in the same moment."""
    process = ProxyWithGroups()
    process.take(Changed(Kind.NAMESPACE, "more", Namespace("more", {LABEL: "blue"})))
    before = process.node.nft.sets["admitted4"]
    for call in range(2):
        process.node.faults.plan(call, Fault("refused", errno.EINVAL, done=False))
    process.loop.reconcile([
        Changed(Kind.NAMESPACE, "blue", Namespace("blue", {LABEL: "red"})),
        Changed(Kind.NAMESPACE, "green", Namespace("green", {LABEL: "blue"})),
        Changed(Kind.POD, "green/one", replace(POD, namespace="green")),
    ])  # fmt: skip
    process.rest()
    assert (process.node.nft.sets["admitted4"], process.members) == (before, {})
    process.now += 35
    process.rest()
    assert set(process.members.values()) == {"0:20"}


def admitted(process):
    return set(process.node.nft.sets["admitted4"])


@pytest.fixture(name="shared")
def _shared():
    """A process whose kernel refuses that a Service of blue is no longer shared with green."""
    process = ProxyWithGroups()
    web = replace(service(), namespace="blue", share_with=("green",))
    process.take(Changed(Kind.SERVICE, web.key, web))
    assert admitted(process) == {"10.96.0.10 . tcp . 80 . 0:20", "10.96.0.10 . tcp . 80 . 0:30"}
    for call in range(4):
        process.node.faults.plan(call, Fault("refused", errno.EBUSY, done=False))
    with capture_logs() as process.logs:
        process.loop.reconcile([Changed(Kind.SERVICE, web.key, replace(web, share_with=()))])
    process.node.faults.coming.clear()
    assert "10.96.0.10 . tcp . 80 . 0:30" in admitted(process)
    return process


GREEN = replace(POD, namespace="green", addresses=POD.addresses[:1])
BLUE = replace(POD, name="two", addresses=(parse_ip("10.244.1.2"),))


def test_a_pod_that_starts_waits_while_the_kernel_lets_its_group_in_where_it_may_not(shared):
    """It would reach what its tenant may not. Pods of other tenants do not wait."""
    shared.take(Changed(Kind.POD, GREEN.key, GREEN), Changed(Kind.POD, BLUE.key, BLUE))
    assert shared.members == {"10.244.1.2": "0:20"}
    shared.now += 35
    shared.rest()
    assert admitted(shared) == {"10.96.0.10 . tcp . 80 . 0:20"}
    assert shared.members == {"10.244.1.2": "0:20", "10.244.1.1": "0:30"}


def test_a_refused_end_of_a_share_is_logged_and_a_pod_that_waits_for_it_is_no_work(shared):
    assert [entry for entry in shared.logs if entry["log_level"] in ("warning", "error")]
    shared.take(Changed(Kind.POD, GREEN.key, GREEN))
    assert shared.loop.timeout() > 0
    assert not shared.loop.parts.joining.next_due <= shared.now


def test_a_pod_waits_for_the_kernel_also_while_many_services_are_to_be_planned(shared):
    many = [
        replace(service(f"many{n}", [f"10.96.{1 + n // 250}.{1 + n % 250}"]), namespace="more")
        for n in range(3000)
    ]
    shared.loop.reconcile([Changed(Kind.POD, GREEN.key, GREEN), *(Changed(Kind.SERVICE, s.key, s) for s in many)])
    shared.loop.reconcile([])
    assert shared.loop.parts.planner.next_due <= shared.now
    assert "10.96.0.10 . tcp . 80 . 0:30" in admitted(shared)
    assert shared.members == {}


def test_connections_of_a_pod_before_are_cut_while_the_next_one_at_its_address_waits(shared):
    """The wait may be long: what the old pod had open is judged by the tenant of the new one."""
    other = replace(service("other", ["10.96.0.20"]), namespace="blue")
    before = replace(BLUE, addresses=GREEN.addresses)
    shared.loop.reconcile([Changed(Kind.SERVICE, other.key, other), Changed(Kind.POD, before.key, before)])
    shared.rest()
    shared.node.conntrack.entries = [OPEN, (GREEN.addresses[0], key("10.96.0.20:80"), OPEN[2])]
    shared.take(Removed(Kind.POD, before.key), Changed(Kind.POD, GREEN.key, GREEN))
    assert (shared.members, shared.node.conntrack.entries) == ({}, [OPEN])
    # What the kernel still lets the tenant do ends when it does so no more, as for other pods of the tenant.
    shared.now += 35
    shared.rest()
    assert shared.node.conntrack.entries == []


OTHER = key("10.96.0.20:80")


def test_a_namespace_that_changes_its_tenant_has_its_connections_cut_while_its_pods_wait(shared):
    """The kernel may refuse for ever what they wait for."""
    other = replace(service("other", ["10.96.0.20"]), namespace="blue")
    pod = replace(BLUE, namespace="more")
    blue = Namespace("more", {LABEL: "blue"})
    shared.loop.reconcile([Changed(Kind.NAMESPACE, "more", blue), Changed(Kind.SERVICE, other.key, other)])
    shared.take(Changed(Kind.POD, pod.key, pod))
    to_web, to_other = (pod.addresses[0], WEB, OPEN[2]), (pod.addresses[0], OTHER, OPEN[2])
    shared.node.conntrack.entries = [to_web, to_other]
    shared.take(Changed(Kind.NAMESPACE, "more", Namespace("more", {LABEL: "green"})))
    # What the kernel still lets the new tenant do ends when it does so no more, as for other pods of the tenant.
    assert (shared.members, shared.node.conntrack.entries) == ({}, [to_web])
    shared.now += 35
    shared.rest()
    assert (shared.members, shared.node.conntrack.entries) == ({"10.244.1.2": "0:30"}, [])


def later(process):
    for _ in range(2):
        process.now += 35
        process.rest()


def test_connections_that_are_still_allowed_go_on_while_the_kernel_refuses_the_change():
    """Pods and Services of a namespace change together."""
    process = ProxyWithGroups()
    process.take(Changed(Kind.POD, POD.key, POD))
    process.node.conntrack.entries = [OPEN]
    before, process.node.nft.poison = admitted(process), "admitted4"
    process.take(Changed(Kind.NAMESPACE, "blue", Namespace("blue", {LABEL: "red"})))
    assert (admitted(process), set(process.members.values())) == (before, {"0:40"})
    assert process.node.conntrack.entries == [OPEN]
    process.node.nft.poison = ""
    later(process)
    assert admitted(process) != before
    assert (set(process.members.values()), process.node.conntrack.entries) == ({"0:40"}, [OPEN])


def test_what_was_to_be_allowed_and_never_was_is_cut_in_the_end():
    """A share with the new tenant of a pod: refused by the kernel, and taken back before it was there."""
    process = ProxyWithGroups()
    space = Namespace("more", {LABEL: "blue"})
    pod = replace(POD, namespace="more")
    process.take(Changed(Kind.NAMESPACE, "more", space), Changed(Kind.POD, pod.key, pod))
    process.node.conntrack.entries = [OPEN]
    web = replace(service(), namespace="blue")
    process.node.nft.poison = "admitted4"
    process.take(Changed(Kind.SERVICE, web.key, replace(web, share_with=("green",))))
    process.take(Changed(Kind.NAMESPACE, "more", Namespace("more", {LABEL: "green"})))
    assert process.node.conntrack.entries == [OPEN]
    process.take(Changed(Kind.SERVICE, web.key, web))
    process.node.nft.poison = ""
    later(process)
    assert process.node.conntrack.entries == []
