"""What the store says is dirty, and which slices a Service has."""

import pytest
from msgspec.structs import replace

from ipvsproxy.base.address import parse_ip
from ipvsproxy.exchange.inbox import Changed, Kind, Listed, Removed
from ipvsproxy.kube.store import Store
from ipvsproxy.plan.model import Namespace, Node, Pod
from tests.support.build import service, slice_of


@pytest.fixture
def store():
    store = Store("node1")
    store.apply(Changed(Kind.SERVICE, "default/web", service("web")))
    store.apply(Changed(Kind.ENDPOINT_SLICE, "default/b", slice_of("web", "10.244.1.2", name="b")))
    store.apply(Changed(Kind.ENDPOINT_SLICE, "default/a", slice_of("web", "10.244.1.1", name="a")))
    store.take_dirty()
    return store


def put(store, *args, **settings):
    item = slice_of(*args, **settings)
    return store.apply(Changed(Kind.ENDPOINT_SLICE, item.key, item))


def names(store, service):
    return [piece.name for piece in store.slices(service)]


def test_slices_come_in_the_order_of_their_names(store):
    assert names(store, "default/web") == ["a", "b"]
    assert names(store, "default/other") == []


def test_a_slice_that_changes_its_service_makes_both_dirty(store):
    assert put(store, "other", "10.244.1.1", name="a")
    assert set(store.take_dirty()) == {"default/web", "default/other"}
    assert (names(store, "default/web"), names(store, "default/other")) == (["b"], ["a"])
    assert put(store, "web", "10.244.1.1", name="a")
    assert set(store.take_dirty()) == {"default/web", "default/other"}
    assert (names(store, "default/web"), names(store, "default/other")) == (["a", "b"], [])


def test_a_slice_with_other_endpoints_takes_the_place_of_the_old_one(store):
    assert put(store, "web", "10.244.1.9", name="a")
    assert store.take_dirty() == ["default/web"]
    assert [len(piece.endpoints) for piece in store.slices("default/web")] == [1, 1]


def test_what_is_equal_or_unknown_changes_nothing(store):
    assert not put(store, "web", "10.244.1.1", name="a")
    assert not store.apply(Removed(Kind.ENDPOINT_SLICE, "default/none"))
    assert not store.apply(Removed(Kind.SERVICE, "default/none"))
    assert not store.apply(Changed(Kind.NODE, "node2", Node("node2")))
    assert store.take_dirty() == []
    assert not store.node_changed


def test_a_list_removes_what_it_lacks_but_not_what_could_not_be_read(store):
    assert store.apply(Listed(Kind.ENDPOINT_SLICE, {}, frozenset({"default/b"})))
    assert names(store, "default/web") == ["b"]
    assert store.apply(Listed(Kind.ENDPOINT_SLICE, {}))
    assert names(store, "default/web") == []
    assert store.apply(Listed(Kind.SERVICE, {}))
    assert store.take_dirty() == ["default/web"]


def test_slices_may_come_before_and_outlive_their_service(store):
    assert store.apply(Removed(Kind.SERVICE, "default/web"))
    assert names(store, "default/web") == ["a", "b"]
    assert store.apply(Changed(Kind.SERVICE, "default/web", service("web", ["10.96.0.99"])))
    assert store.take_dirty() == ["default/web"]


def test_other_nodes_are_known_by_name_and_change_nothing(store):
    store.apply(Listed(Kind.NODE, {name: Node(name) for name in ("node2", "node3")}))
    assert set(store.other_nodes) == {"node2", "node3"}
    assert store.apply(Listed(Kind.NODE, {"node3": Node("node3"), "node1": Node("node1")}))
    assert (set(store.other_nodes), store.node) == ({"node3"}, Node("node1"))


def test_a_namespace_that_changes_its_tenant_makes_its_services_and_those_shared_with_it_dirty():
    store = Store("node1", tenant_label="tenant")
    for name, shares in (("web", ()), ("other", ("blue",)), ("last", ("green",))):
        made = replace(service(name), namespace="x" if shares else "a", share_with=shares)
        store.apply(Changed(Kind.SERVICE, made.key, made))
    store.take_dirty()
    assert store.apply(Changed(Kind.NAMESPACE, "a", Namespace("a", {"tenant": "blue", "b": "c"})))
    assert set(store.take_dirty()) == {"a/web", "x/other"}
    assert not store.apply(Changed(Kind.NAMESPACE, "a", Namespace("a", {"tenant": "blue"})))
    assert store.apply(Removed(Kind.NAMESPACE, "a"))
    assert set(store.take_dirty()) == {"a/web", "x/other"}


def test_names_that_services_no_longer_share_with_are_forgotten():
    """Whoever may write a Service chooses them, as many and as often as they like."""
    store = Store("node1", tenant_label="tenant")

    def memory():
        return sum(len(index) for index in vars(store).values() if isinstance(index, dict))

    seen = []
    for names in (("blue", "green"), ("red",), ()):
        made = replace(service(), share_with=names)
        store.apply(Changed(Kind.SERVICE, made.key, made))
        seen.append(memory())
    assert seen == [seen[0], seen[0] - 1, seen[0] - 2]


def test_a_pod_makes_the_services_dirty_whose_slices_name_its_address():
    store = Store("node1", tenant_label="tenant")
    put(store, "web", "10.244.1.1", name="a")
    put(store, "other", "10.244.1.2", name="b")
    store.apply(Changed(Kind.NAMESPACE, "default", Namespace("default", {"tenant": "red"})))
    store.apply(Changed(Kind.NAMESPACE, "x", Namespace("x", {"tenant": "blue"})))
    store.take_dirty()
    pod = Pod("x", "one", "node1", (parse_ip("10.244.1.1"),))
    store.apply(Changed(Kind.POD, pod.key, pod))
    assert store.take_dirty() == ["default/web"]
    store.apply(Changed(Kind.NAMESPACE, "x", Namespace("x", {"tenant": "green"})))
    assert store.take_dirty() == ["default/web"]
    put(store, "web", "10.244.1.3", name="a")
    store.take_dirty()
    store.apply(Removed(Kind.POD, pod.key))
    assert store.take_dirty() == []


def test_a_pod_that_changes_its_address_makes_a_service_dirty_that_names_both():
    store = Store("node1", tenant_label="tenant")
    put(store, "web", "10.244.1.1", "10.244.1.2")
    for name, tenant in (("default", "red"), ("x", "blue")):
        store.apply(Changed(Kind.NAMESPACE, name, Namespace(name, {"tenant": tenant})))
    for number in (1, 2):
        store.take_dirty()
        store.apply(Changed(Kind.POD, "x/one", Pod("x", "one", "node1", (parse_ip(f"10.244.1.{number}"),))))
        assert store.take_dirty() == ["default/web"]


def test_without_tenants_namespaces_and_pods_are_not_waited_for_and_change_nothing():
    plain, tenants = Store("node1"), Store("node1", tenant_label="tenant")
    for store in (plain, tenants):
        for kind in (Kind.SERVICE, Kind.ENDPOINT_SLICE, Kind.NODE):
            store.apply(Listed(kind, {}))
    assert (plain.synced, tenants.synced) == (True, False)
    pod = Pod("a", "one", "node1", (parse_ip("10.244.1.1"),))
    for store in (plain, tenants):
        store.apply(Listed(Kind.NAMESPACE, {"a": Namespace("a", {"tenant": "blue"})}))
        assert store.apply(Listed(Kind.POD, {pod.key: pod})) == (store is tenants)
        assert store.synced
    assert not plain.tenants.pods


def test_pods_of_other_nodes_make_only_services_dirty_that_lose_or_win_an_endpoint_by_them():
    store = Store("node1", tenant_label="tenant", all_pods=True)
    for name, tenant in (("a", "blue"), ("b", "green")):
        store.apply(Changed(Kind.NAMESPACE, name, Namespace(name, {"tenant": tenant})))
        made = replace(service("web"), namespace=name)
        store.apply(Changed(Kind.SERVICE, made.key, made))
        ends = replace(slice_of("web", "10.244.2.1"), namespace=name, service=made.key)
        store.apply(Changed(Kind.ENDPOINT_SLICE, ends.key, ends))
    store.take_dirty()
    pod = Pod("a", "one", "node2", (parse_ip("10.244.2.1"),))
    assert store.apply(Changed(Kind.POD, pod.key, pod))
    assert store.take_dirty() == ["b/web"]
    assert not store.apply(Changed(Kind.POD, pod.key, pod))
    store.apply(Changed(Kind.NAMESPACE, "a", Namespace("a", {"tenant": "green"})))
    assert set(store.take_dirty()) == {"a/web", "b/web"}
    assert store.apply(Listed(Kind.POD, {}))
    assert store.take_dirty() == []
