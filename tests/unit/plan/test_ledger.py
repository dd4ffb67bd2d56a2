import msgspec
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ipvsproxy.base.address import parse_ip
from ipvsproxy.config import VipMode
from ipvsproxy.plan import ledger as ledger_module
from ipvsproxy.plan.diff import Steps, apply, diff
from ipvsproxy.plan.ledger import Ledger
from ipvsproxy.plan.planner import plan_service
from ipvsproxy.plan.state import KernelState, VipForm
from ipvsproxy.plan.waiting import RankedService
from tests.support.build import config, endpoint, key, node, service, slice_of
from tests.support.elements import element


def put(ledger, svc, *pods):
    frontends = plan_service(svc, [slice_of(svc.name, *pods)], node(), config())
    return ledger.replace(RankedService(svc.created, svc.key), frontends)


def new_ledger(mode=VipMode.ADDRESS):
    return Ledger(mode)


def test_the_oldest_service_holds_a_shared_frontend_in_any_order():
    old = service("zeta", ["10.96.0.1"], external_ips=["198.51.100.9"], created="2025-01-01T00:00:00Z")
    new = service("alpha", ["10.96.0.2"], external_ips=["198.51.100.9"], created="2026-01-01T00:00:00Z")
    shared = key("198.51.100.9:80")
    for order in ((old, new), (new, old)):
        ledger = new_ledger()
        for svc in order:
            put(ledger, svc, f"10.244.1.{svc.cluster_ips[0][3]}")
        assert ledger.owner(shared) == "default/zeta"
        assert ledger.conflicts("default/alpha") == {shared: "default/zeta"}
        assert next(iter(ledger.frontends[shared].destinations)).address == parse_ip("10.244.1.1")


def test_no_external_ip_takes_over_what_the_api_server_gave_to_a_service():
    thief = service("a", ["10.96.0.9"], external_ips=["10.96.0.1", "192.0.2.1"], created="2020")
    owner = service("b", ["10.96.0.1"], ((80, 80),), created="2026")
    for order in ((thief, owner), (owner, thief)):
        ledger = new_ledger()
        for svc in order:
            put(ledger, svc, "10.244.1.1")
        assert {ledger.owner(key(f"{ip}:80")) for ip in ("10.96.0.1", "192.0.2.1")} == {"default/b"}
        put(ledger, service("a", ["10.96.0.9"], external_ips=["10.96.0.1"], created="2020"), "10.244.1.1")
        assert ledger.conflicts("default/a") == {key("10.96.0.1:80"): "default/b"}
        ledger.forget("default/b")
        assert ledger.owner(key("10.96.0.1:80")) == "default/a"


def test_no_older_external_ip_takes_over_what_a_load_balancer_gave():
    thief = service("a", ["10.96.0.9"], external_ips=["203.0.113.5"], created="2020")
    owner = service(
        "b", ["10.96.0.1"], load_balancer_ips=["203.0.113.5"], source_ranges=["198.18.0.0/15"], created="2026"
    )
    shared = key("203.0.113.5:80")
    for order in ((thief, owner), (owner, thief)):
        ledger = new_ledger()
        for svc in order:
            put(ledger, svc, "10.244.1.1")
        assert ledger.owner(shared) == "default/b"
        assert list(map(str, ledger.frontends[shared].ranges)) == ["198.18.0.0/15"]


def test_a_shared_frontend_passes_on_when_its_holder_goes():
    ledger = new_ledger()
    put(ledger, service("a", ["10.96.0.1"], external_ips=["198.51.100.9"]), "10.244.1.1")
    put(ledger, service("b", ["10.96.0.2"], external_ips=["198.51.100.9"]), "10.244.1.2")
    touched = ledger.forget("default/a")
    assert ledger.owner(key("198.51.100.9:80")) == "default/b"
    assert key("198.51.100.9:80") in touched.servers
    assert ledger.vip(parse_ip("198.51.100.9"))
    assert not ledger.vip(parse_ip("10.96.0.1"))


def test_an_internal_view_leads_to_no_server_of_another_service():
    """Its endpoints would answer for the other Service."""
    old = service("a", ["10.96.0.1"], created="2024")
    new = service("b", ["10.96.0.1"], external_ips=["198.51.100.9"], external_local=True, created="2025")
    shared, outside = key("10.96.0.1:80"), key("198.51.100.9:80")
    for order in ((old, new), (new, old)):
        ledger = new_ledger()
        for svc in order:
            put(ledger, svc, "10.244.1.1")
        assert ledger.owner(shared) == "default/a"
        assert not ledger.frontends[outside].views
        touched = ledger.forget("default/a")
        assert [view.server for view in ledger.frontends[outside].views] == [shared]
        assert outside in touched.servers
        ledger.forget("default/b")
        assert not ledger.frontends
        assert not ledger.elements


def test_a_service_that_was_made_anew_loses_its_age():
    ledger = new_ledger()
    put(ledger, service("a", ["10.96.0.1"], external_ips=["198.51.100.9"], created="2024"), "10.244.1.1")
    put(ledger, service("b", ["10.96.0.2"], external_ips=["198.51.100.9"], created="2025"), "10.244.1.2")
    put(ledger, service("a", ["10.96.0.1"], external_ips=["198.51.100.9"], created="2026"), "10.244.1.1")
    assert ledger.owner(key("198.51.100.9:80")) == "default/b"


def test_vips_are_shared_by_ports_and_services():
    ledger = new_ledger()
    put(ledger, service("a", ["10.96.0.1"], ((80, 0, "TCP", "x"), (81, 0, "TCP", "y"))))
    touched = put(ledger, service("a", ["10.96.0.1"], ((81, 0, "TCP", "y"),)))
    assert ledger.vip(parse_ip("10.96.0.1"))
    assert element("vips4", "10.96.0.1") in ledger.elements
    assert {str(k) for k in touched.servers} == {"10.96.0.1:80/TCP"}


def test_an_equal_plan_touches_nothing():
    ledger = new_ledger()
    put(ledger, service(), "10.244.1.1")
    assert not put(ledger, service(), "10.244.1.1")


def test_one_endpoint_touches_one_service_only():
    ledger = new_ledger()
    for number in range(1, 50):
        put(ledger, service(f"s{number}", [f"10.96.0.{number}"]), "10.244.2.1")
    touched = put(ledger, service("s7", ["10.96.0.7"]), "10.244.2.1", "10.244.2.2")
    assert {str(k) for k in touched.servers} == {"10.96.0.7:80/TCP"}


def test_auto_changes_to_routes_and_back(monkeypatch):
    monkeypatch.setattr(ledger_module, "ROUTES_ABOVE", 3)
    monkeypatch.setattr(ledger_module, "ADDRESSES_BELOW", 2)
    ledger = new_ledger(VipMode.AUTO)
    for number in range(1, 5):
        touched = put(ledger, service(f"s{number}", [f"10.96.0.{number}"]))
    assert len(touched.vips) == 4
    assert ledger.vip(parse_ip("10.96.0.1")).form is VipForm.ROUTE
    for number in range(2, 5):
        touched = ledger.forget(f"default/s{number}")
    assert ledger.vip(parse_ip("10.96.0.1")).form is VipForm.ADDRESS
    assert parse_ip("10.96.0.1") in touched.vips


addresses = st.sampled_from(
    ["198.51.100.1", "198.51.100.2", "203.0.113.1", "2001:db8::1", "10.96.0.2", "192.0.2.1"]
)
pods = st.lists(st.sampled_from(["10.244.1.1", "10.244.1.2", "10.244.2.1"]), unique=True)
histories = st.lists(
    st.tuples(
        st.integers(1, 4),
        st.sampled_from(["2024", "2025", "2026"]),
        st.booleans(),
        st.booleans(),
        st.lists(addresses, unique=True),
        st.lists(addresses, unique=True),
        st.integers(0, 1),
        pods,
        st.booleans(),
    ),
    max_size=12,
)


def event(ledger, step):
    number, created, external_local, internal_local, external, balancers, node_port, endpoints, gone = step
    svc = service(
        f"s{number}",
        # Two Services with one ClusterIP: possible in manifests.
        [f"10.96.0.{number % 2 + 1}", f"fd00:10:96::{number}"],
        ((80, 80 * node_port),),
        created=created,
        external_local=external_local,
        internal_local=internal_local,
        external_ips=external,
        load_balancer_ips=balancers,
    )
    if gone:
        return svc.key, ledger.forget(svc.key)
    return svc.key, put(ledger, svc, *endpoints)


def assert_views_lead_to_servers_of_the_same_service(ledger):
    for name, frontend in ledger.frontends.items():
        for view in frontend.views:
            assert ledger.owner(view.server) == ledger.owner(name)


@settings(max_examples=300, deadline=None)
@given(histories)
def test_any_history_ends_where_a_cold_start_ends(history):
    ledger, shadow = new_ledger(), KernelState()
    last = {}
    for step in history:
        name, touched = event(ledger, step)
        last[name] = step
        steps = diff(touched, ledger, shadow, lambda _: False)
        apply(steps, shadow)
    cold = new_ledger()
    for step in last.values():
        event(cold, step)
    assert ledger.frontends == cold.frontends
    assert_views_lead_to_servers_of_the_same_service(ledger)
    assert ledger.elements == cold.elements
    assert shadow.elements == cold.elements
    assert shadow.vips == {cold.vip(address) for address in cold.everything().vips}
    assert shadow.servers.keys() == cold.frontends.keys()
    for name, state in shadow.servers.items():
        assert {d for d, a in state.destinations.items() if a.weight} == set(cold.frontends[name].destinations)
    assert diff(cold.everything(), ledger, shadow, lambda _: False) == Steps()


NAMES = {"web-1": "10.244.1.1", "web-2": "10.244.2.2"}
versions = st.tuples(
    st.sampled_from(("ipvs", "auto")),
    st.sampled_from(("rr", "wrr")),
    st.tuples(st.integers(0, 3), st.integers(0, 3)),
    st.lists(st.sampled_from(tuple(NAMES)), unique=True),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)


def put_version(ledger, version):
    data_path, scheduler, weights, names, external_local, internal_local, is_ranged = version
    svc = service(
        load_balancer_ips=["203.0.113.5"],
        data_path=data_path,
        scheduler=scheduler,
        weights=tuple(zip(NAMES, weights, strict=True)),
        external_local=external_local,
        internal_local=internal_local,
        source_ranges=["198.18.0.0/15"] if is_ranged else [],
    )
    return put(ledger, svc, *(endpoint(NAMES[name], name=name) for name in names))


@settings(max_examples=300, deadline=None)
@given(st.lists(versions, min_size=1, max_size=6))
@example([("auto", name, (3, 2), ["web-1", "web-2"], False, False, False) for name in ("rr", "wrr")])
def test_a_service_has_the_elements_that_its_last_version_needs(history):
    """Whichever of its annotations have changed: on the short path places follow from scheduler and weights."""
    ledger, shadow = new_ledger(), KernelState()
    for version in history:
        apply(diff(put_version(ledger, version), ledger, shadow, lambda _: False), shadow)
    cold = new_ledger()
    put_version(cold, history[-1])
    assert ledger.elements == shadow.elements == cold.elements


def test_endpoint_helper_guesses_the_node():
    assert endpoint("10.244.2.7").node == "node2"


class ComparedAddress(bytes):
    """An address that counts how often it is compared."""

    compared = 0
    __hash__ = bytes.__hash__

    def __eq__(self, other):
        ComparedAddress.compared += 1
        return bytes.__eq__(self, other)


def test_one_of_many_local_endpoints_is_found_without_comparing_all_with_all():
    ledger, svc, pods = new_ledger(), service("web"), [f"10.244.{n >> 8}.{n & 255}" for n in range(1, 1001)]
    made, replaced = (plan_service(svc, [slice_of("web", *found)], node(), config()) for found in (pods, pods[1:]))
    made, replaced = (
        {
            name: msgspec.structs.replace(frontend, hairpins=tuple(map(ComparedAddress, local)))
            for name, frontend in frontends.items()
        }
        for frontends, local in ((made, map(parse_ip, pods)), (replaced, map(parse_ip, pods[1:])))
    )
    owner = RankedService(svc.created, svc.key)
    ledger.replace(owner, made)
    ComparedAddress.compared = 0
    gone = [slot for slot in ledger.replace(owner, replaced).slots if slot.set.name == "hairpin4"]
    assert [slot.owner for slot in gone] == [parse_ip(pods[0])]
    assert ComparedAddress.compared < 10 * len(pods)
