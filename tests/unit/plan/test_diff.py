import msgspec
import pytest

from ipvsproxy.base.address import parse_ip
from ipvsproxy.config import DataPath, VipMode
from ipvsproxy.plan.diff import ElementStep, Verb, apply, diff
from ipvsproxy.plan.ledger import Ledger
from ipvsproxy.plan.planner import plan_service
from ipvsproxy.plan.state import (
    USUAL,
    DestinationAttributes,
    Dirty,
    KernelState,
    ServerAttributes,
    ServerState,
    View,
    Vip,
    VipForm,
)
from ipvsproxy.plan.waiting import RankedService
from ipvsproxy.ruleset.codec import key_text, value_text
from tests.support.build import config, destination, endpoint, key, node, service, slice_of, weighted
from tests.support.elements import element

WEB = key("10.96.0.10:80")
ONE, TWO = destination("10.244.1.1:8080"), destination("10.244.2.2:8080")


class Differ:
    """A ledger and a faultless kernel."""

    def __init__(self, protected=lambda _: False):
        self.ledger = Ledger(VipMode.ADDRESS)
        self.shadow = KernelState()
        self.protected = protected

    def want(self, svc, *pods, **settings):
        slices = [slice_of(svc.name, *pods, ports=((8080, "TCP", ""), (53, "UDP", "")))]
        frontends = plan_service(svc, slices, node(), config(**settings))
        return self.step(self.ledger.replace(RankedService(svc.created, svc.key), frontends))

    def drop(self, name):
        return self.step(self.ledger.forget(name))

    def step(self, touched):
        steps = diff(touched, self.ledger, self.shadow, self.protected)
        apply(steps, self.shadow)
        return steps


def verbs(steps):
    """What is done to which destinations, and the weight that they get."""
    weighing = (Verb.NEW_DEST, Verb.SET_DEST)
    return [(s.verb.name, s.destinations, s.attributes.weight if s.verb in weighing else 0) for s in steps]


def test_a_new_service_comes_in_the_safe_order():
    steps = Differ().want(service(), "10.244.1.1")
    assert {step.slot.set.name for step in steps.elements_before} == {
        *("frontends4", "masquerade4", "vips4", "served4", "hairpin4"),
        "quiet4",
    }
    assert verbs(steps.added) == [("NEW_SERVICE", (ONE,), 0)]
    assert steps.bound == [Vip(parse_ip("10.96.0.10"), VipForm.ADDRESS)]
    assert steps.count() == len(steps.elements_before) + len(steps.bound) + 2  # a server and its destination


def test_a_removed_service_goes_in_the_reverse_order_with_one_message():
    differ = Differ()
    differ.want(service(), "10.244.1.1", "10.244.2.2")
    steps = differ.drop("default/web")
    assert steps.unbound == [Vip(parse_ip("10.96.0.10"), VipForm.ADDRESS)]
    assert verbs(steps.removed) == [("DEL_SERVICE", (), 0)]
    assert len(steps.elements_after) == 6
    assert steps.count() == len(steps.unbound) + len(steps.removed) + len(steps.elements_after)
    assert differ.shadow == KernelState()


def test_a_tcp_destination_drains_and_comes_back_with_its_connections():
    differ = Differ()
    differ.want(service(), "10.244.1.1", "10.244.2.2")
    assert verbs(differ.want(service(), "10.244.1.1").removed) == [("SET_DEST", (TWO,), 0)]
    assert verbs(differ.want(service(), "10.244.1.1", "10.244.2.2").added) == [("SET_DEST", (TWO,), 1)]


def test_a_udp_destination_goes_at_once():
    differ = Differ()
    dns = service(ports=((53, 0, "UDP"),))
    differ.want(dns, "10.244.1.1", "10.244.2.2")
    steps = differ.want(dns, "10.244.1.1")
    assert verbs(steps.removed) == [("DEL_DEST", (destination("10.244.2.2:53"),), 0)]


SHORT = {"data_path": DataPath.AUTO}


def test_a_service_on_the_short_path_has_no_server():
    steps = Differ().want(service(), "10.244.1.1", "10.244.2.2", **SHORT)
    raised = ways(steps.elements_before)
    assert raised["frontends4 10.96.0.10 . tcp . 80"] == "goto endpoints_2"
    endpoints = {name: to for name, to in raised.items() if name.startswith("endpoints4")}
    assert endpoints.keys() == {f"endpoints4 10.96.0.10 . tcp . 80 . {place}" for place in (0, 1)}
    assert set(endpoints.values()) == {"10.244.1.1 . 8080", "10.244.2.2 . 8080"}
    assert steps.added == []


def test_an_endpoint_less_is_one_transaction():
    differ = Differ()
    differ.want(service(), "10.244.1.1", "10.244.2.2", **SHORT)
    steps = differ.want(service(), "10.244.1.1", **SHORT)
    assert ways(steps.elements_before) == {
        "frontends4 10.96.0.10 . tcp . 80": "goto endpoints_1",
        "endpoints4 10.96.0.10 . tcp . 80 . 1": None,
        "short_endpoints4 10.244.2.2 . tcp . 8080": None,
    }
    assert not steps.elements_after


@pytest.mark.parametrize("others", [(), ("10.244.1.1",)])
def test_conntrack_must_know_packets_from_an_endpoint_that_ends_until_no_slice_has_it(others):
    differ = Differ()
    differ.want(service(), *others, "10.244.2.2", **SHORT)
    ending = endpoint("10.244.2.2", "node2", ready=False, serving=False, terminating=True)
    steps = differ.want(service(), *others, ending, **SHORT)
    everything = [*steps.elements_before, *steps.redirects, *steps.elements_after]
    assert f"endpoints4 10.96.0.10 . tcp . 80 . {len(others)}" in ways(everything)
    assert "short_endpoints4 10.244.2.2 . tcp . 8080" not in ways(everything)
    assert "short_frontends4 10.96.0.10 . tcp . 80" not in ways(everything)
    steps = differ.want(service(), *others, **SHORT)
    assert ways([*steps.elements_before, *steps.elements_after]) == {
        "short_endpoints4 10.244.2.2 . tcp . 8080": None
    }


def test_a_service_on_the_short_path_goes_in_one_transaction_behind_its_vip():
    differ = Differ()
    differ.want(service(), "10.244.2.2", **SHORT)
    steps = differ.drop("default/web")
    assert steps.unbound
    assert not steps.elements_before
    assert "short_endpoints4 10.244.2.2 . tcp . 8080" in ways(steps.elements_after)


def test_a_server_stays_for_its_connections_when_new_ones_take_the_short_path():
    differ = Differ()
    differ.want(service(), "10.244.1.1")
    steps = differ.want(service(), "10.244.1.1", **SHORT)
    assert ways(steps.elements_before)["frontends4 10.96.0.10 . tcp . 80"] == "goto endpoints_1"
    assert verbs(steps.removed) == [("SET_DEST", (ONE,), 0)]
    differ.shadow.servers[WEB].destinations.clear()
    assert verbs(differ.step(Dirty({WEB})).removed) == [("DEL_SERVICE", (), 0)]


def test_a_udp_server_goes_at_once():
    differ, dns = Differ(), service(ports=((53, 0, "UDP"),))
    differ.want(dns, "10.244.1.1")
    assert verbs(differ.want(dns, "10.244.1.1", **SHORT).removed) == [("DEL_SERVICE", (), 0)]


DATAGRAMS = element("datagrams4", "10.96.0.10")


@pytest.mark.parametrize(("protocol", "address"), [("UDP", True), ("TCP", False), ("SCTP", False)])
def test_where_ipvs_serves_datagrams_of_ipv4_long_ones_are_looked_for(protocol, address):
    differ = Differ()
    differ.want(service(ips=("10.96.0.10", "fd00::10"), ports=((53, 0, protocol),)), "10.244.1.1")
    found = {slot for slot in differ.shadow.elements if slot.set is DATAGRAMS.set}
    assert found == ({DATAGRAMS} if address else set())


def test_long_datagrams_are_looked_for_before_their_frontend_leaves_the_short_path():
    differ, dns = Differ(), service(ports=((53, 0, "UDP"),))
    differ.want(dns, "10.244.1.1", **SHORT)
    assert DATAGRAMS not in differ.shadow.elements
    steps = differ.want(dns, "10.244.1.1")
    assert DATAGRAMS in {step.slot for step in steps.elements_before}
    assert ways(steps.redirects) == {"frontends4 10.96.0.10 . udp . 53": "goto own"}
    steps = differ.want(dns, "10.244.1.1", **SHORT)
    assert DATAGRAMS in {step.slot for step in steps.elements_after}


def test_new_connections_come_back_to_ipvs_once_it_has_the_server():
    differ = Differ()
    differ.want(service(), "10.244.1.1", **SHORT)
    steps = differ.want(service(), "10.244.1.1")
    assert verbs(steps.added) == [("NEW_SERVICE", (ONE,), 0)]
    assert ways(steps.redirects) == {"frontends4 10.96.0.10 . tcp . 80": "goto own"}
    assert ways(steps.elements_after) == {
        "endpoints4 10.96.0.10 . tcp . 80 . 0": None,
        "short_endpoints4 10.244.1.1 . tcp . 8080": None,
        "short_frontends4 10.96.0.10 . tcp . 80": None,
    }
    assert not steps.elements_before


VIP_TEXT = "203.0.113.5 . tcp . 80"


def test_an_internal_view_on_the_short_path_comes_and_goes_with_its_policy():
    differ, more = Differ(), {"load_balancer_ips": ["203.0.113.5"]}
    differ.want(service(**more), "10.244.1.1", "10.244.2.2", **SHORT)
    steps = differ.want(service(external_local=True, **more), "10.244.1.1", "10.244.2.2", **SHORT)
    raised = ways(steps.elements_before)
    assert raised[f"frontends4 {VIP_TEXT}"] == "goto endpoints_1"
    assert raised[f"short_views4 {VIP_TEXT}"] == "goto internal_endpoints_2"
    assert raised["viewed4 203.0.113.5"] == ""
    assert {name for name in raised if name.startswith("internal_e")} == {
        f"internal_endpoints4 {VIP_TEXT} . {place}" for place in (0, 1)
    }
    steps = differ.want(service(**more), "10.244.1.1", "10.244.2.2", **SHORT)
    assert ways(steps.elements_before)[f"frontends4 {VIP_TEXT}"] == "goto endpoints_2"
    gone = ways(steps.elements_after)
    assert gone[f"short_views4 {VIP_TEXT}"] is gone["viewed4 203.0.113.5"] is None
    assert not steps.redirects


def test_an_internal_view_changes_its_path_once_the_server_has_endpoints():
    differ, svc = Differ(), service(load_balancer_ips=["203.0.113.5"], external_local=True)
    differ.want(svc, "10.244.1.1", "10.244.2.2", **SHORT)
    steps = differ.want(svc, "10.244.1.1", "10.244.2.2")
    assert {step.key for step in steps.added} == {WEB, key("203.0.113.5:80")}
    switched = ways(steps.redirects)
    assert switched[f"frontends4 {VIP_TEXT}"] == "goto own"
    assert switched[f"internal_views4 {VIP_TEXT}"] == "10.96.0.10 . 80"
    assert switched[f"short_views4 {VIP_TEXT}"] is None
    back = differ.want(svc, "10.244.1.1", "10.244.2.2", **SHORT)
    switched = ways(back.redirects)
    assert switched[f"internal_views4 {VIP_TEXT}"] is None
    assert switched[f"short_views4 {VIP_TEXT}"] == "goto internal_endpoints_2"
    assert f"internal_endpoints4 {VIP_TEXT} . 1" in ways(back.elements_before)


INSIDE = key("10.96.0.10:32848")


def local(*, external=True, internal=True):
    return service(load_balancer_ips=["203.0.113.5"], external_local=external, internal_local=internal)


def ways(steps):
    texts = ((s.slot, None if s.value is None else value_text(s.value)) for s in steps)
    return {f"{slot.set.name} {key_text(slot)}": text for slot, text in texts}


VIEWED = element("viewed4", "203.0.113.5")


def test_ways_are_switched_between_new_and_old_servers():
    """Local pods and the node find a server with destinations at each moment."""
    differ = Differ()
    differ.want(local(internal=False), "10.244.2.2")
    to_both = differ.want(local(), "10.244.2.2")
    assert ways(to_both.redirects) == {"internal_views4 203.0.113.5 . tcp . 80": "10.96.0.10 . 32848"}
    assert [(step.verb.name, step.key) for step in to_both.added] == [("NEW_SERVICE", INSIDE)]
    assert not [step for step in (*to_both.elements_before, *to_both.elements_after) if step.slot == VIEWED]
    to_none = differ.want(local(external=False, internal=False), "10.244.2.2")
    assert ways(to_none.redirects) == {
        "internal_views4 203.0.113.5 . tcp . 80": None,
        "frontends4 203.0.113.5 . tcp . 80": "goto own",
    }
    assert ElementStep(VIEWED, None) in to_none.elements_after
    assert {(s.verb.name, s.key.address) for s in to_none.added if s.destinations} == {
        ("SET_DEST", parse_ip("10.96.0.10")),  # it was draining
        ("NEW_DEST", parse_ip("203.0.113.5")),
    }


def test_a_way_that_is_new_with_its_frontend_is_there_first():
    steps = Differ().want(local(), "10.244.1.1")
    assert not steps.redirects
    assert {"internal_views4 203.0.113.5 . tcp . 80", "viewed4 203.0.113.5"} <= ways(steps.elements_before).keys()


def test_a_way_that_a_live_frontend_gets_is_asked_for_before_it_is_there():
    differ = Differ()
    differ.want(local(external=False, internal=False), "10.244.2.2")
    steps = differ.want(local(internal=False), "10.244.2.2")
    assert ElementStep(VIEWED, "") in steps.elements_before
    assert "internal_views4 203.0.113.5 . tcp . 80" in ways(steps.redirects)


@pytest.mark.parametrize("now", [local(internal=False), local(external=False), service()])
def test_the_server_of_an_internal_view_goes_when_the_way_is_another(now):
    """conntrack leads what is established to its endpoint."""
    differ = Differ()
    differ.want(local(), "10.244.1.1", "10.244.2.2")
    steps = differ.want(now, "10.244.1.1", "10.244.2.2")
    assert verbs(step for step in steps.removed if step.key == INSIDE) == [("DEL_SERVICE", (), 0)]


def test_a_view_for_a_group_is_switched_by_itself():
    """All others are led as before, whatever becomes of it."""
    differ = Differ()
    differ.want(service(), "10.244.1.1")
    other = service("dns", ["10.96.0.53"])
    differ.want(other, "10.244.1.9")
    led = plan_service(service(), [slice_of("web", "10.244.1.1", ports=((8080, "TCP", ""),))], node(), config())
    led[WEB] = msgspec.structs.replace(led[WEB], views=(View(7, key("10.96.0.53:80")),))
    steps = differ.step(differ.ledger.replace(RankedService(service().created, "default/web"), led))
    assert ways(steps.redirects) == {"group_views4 10.96.0.10 . tcp . 80 . 0:70": "10.96.0.53 . 80"}
    assert ways(steps.elements_before) == {
        "by_audience4 10.96.0.10 . tcp . 80": "goto group_view", "view_frontends4 10.96.0.53 . tcp . 80": "",
        "view_frontends4 10.96.0.10 . tcp . 80": "",
    }  # fmt: skip
    steps = differ.want(service(), "10.244.1.1")
    assert ways(steps.redirects) == {"group_views4 10.96.0.10 . tcp . 80 . 0:70": None}
    assert ways(steps.elements_before) == {"by_audience4 10.96.0.10 . tcp . 80": None}
    assert ways(steps.elements_after) == {
        "view_frontends4 10.96.0.53 . tcp . 80": None, "view_frontends4 10.96.0.10 . tcp . 80": None,
    }  # fmt: skip


def test_attributes_change_in_place():
    differ = Differ()
    differ.want(service(), "10.244.1.1")
    steps = differ.want(service(affinity_seconds=10), "10.244.1.1")
    assert verbs(steps.added) == [("SET_SERVICE", (), 0)]
    assert steps.count() == 1


def test_a_changed_element_is_replaced_before_anything_else():
    differ = Differ()
    differ.want(service(), "10.244.1.1")
    steps = differ.want(service())
    (change,) = [step for step in steps.elements_before if step.slot.set.name == "frontends4"]
    assert (change.value, change.replaces) == ("goto refuse", True)


def test_weights_are_wanted_state():
    differ = Differ()
    differ.want(service(), "10.244.1.1")
    differ.shadow.servers[WEB].destinations[ONE] = DestinationAttributes(0)
    assert verbs(differ.step(Dirty(servers={WEB})).added) == [("SET_DEST", (ONE,), 1)]


def test_foreign_servers_go_unless_protected():
    foreign, excluded = key("10.99.0.1:80"), key("10.98.0.1:80")
    differ = Differ(protected=lambda name: name == excluded)
    for name in (foreign, excluded):
        differ.shadow.servers[name] = ServerState(ServerAttributes("rr", 0, 0), weighted({ONE: 1}))
    steps = differ.step(Dirty(servers={foreign, excluded}))
    assert [step.key for step in steps.removed] == [foreign]


@pytest.mark.parametrize("other", [VipForm.ROUTE, VipForm.STRAY])
def test_a_vip_in_another_form_is_added_before_it_is_removed(other):
    differ = Differ()
    differ.want(service(), "10.244.1.1")
    vip = parse_ip("10.96.0.10")
    differ.shadow.vips = {Vip(vip, other)}
    steps = differ.step(Dirty(vips={vip}))
    assert (steps.bound, steps.unbound) == ([Vip(vip, VipForm.ADDRESS)], [Vip(vip, other)])


def test_nothing_touched_is_nothing_to_do():
    differ = Differ()
    differ.want(service(), "10.244.1.1")
    assert not differ.step(differ.ledger.everything())


def test_tightening_ranges_is_one_phase():
    differ = Differ()
    wide = service(load_balancer_ips=["203.0.113.5"], source_ranges=["10.0.0.0/8"])
    narrow = service(load_balancer_ips=["203.0.113.5"], source_ranges=["10.1.0.0/16"])
    differ.want(wide, "10.244.1.1")
    steps = differ.want(narrow, "10.244.1.1")
    assert ways(steps.elements_before) == {
        "allowed4 203.0.113.5 . tcp . 80 . 10.1.0.0/16": "",
        "allowed4 203.0.113.5 . tcp . 80 . 10.0.0.0/8": None,
    }
    assert steps.count() == 2


def test_ranges_are_lifted_at_once_but_outlive_a_removed_frontend():
    differ = Differ()
    closed = service(load_balancer_ips=["203.0.113.5"], source_ranges=["10.0.0.0/8"])
    differ.want(closed, "10.244.1.1")
    lifted = differ.want(service(load_balancer_ips=["203.0.113.5"]), "10.244.1.1")
    assert {s.slot.set.name for s in lifted.elements_before} == {"ranged4", "allowed4"}
    assert {s.slot.set.name for s in lifted.elements_after} == {"ranged_vips4"}
    differ.want(closed, "10.244.1.1")
    removed = differ.want(service(), "10.244.1.1")
    assert {s.slot.set.name for s in removed.elements_after} >= {"ranged4", "ranged_vips4", "allowed4"}
    assert not removed.elements_before


def attributes_of(steps):
    return [(step.verb.name, [str(d) for d in step.destinations], step.attributes) for step in steps]


def with_attributes(ledger, which):
    """Let the destinations of WEB have these attributes."""
    frontend = ledger.frontends[WEB]
    ledger.frontends[WEB] = msgspec.structs.replace(frontend, destinations=frontend.destinations | which)


LIMITED = DestinationAttributes(3, upper_threshold=100, lower_threshold=80)


def test_destinations_of_a_server_are_grouped_by_equal_attributes():
    differ = Differ()
    differ.want(service(), "10.244.1.1", "10.244.2.2", "10.244.1.3")
    with_attributes(differ.ledger, {TWO: LIMITED})
    shadow = KernelState()
    steps = diff(Dirty(servers={WEB}), differ.ledger, shadow, differ.protected)
    assert attributes_of(steps.added) == [
        ("NEW_SERVICE", ["10.244.1.1:8080", "10.244.1.3:8080"], DestinationAttributes()),
        ("NEW_DEST", ["10.244.2.2:8080"], LIMITED),
    ]
    apply(steps, shadow)
    assert not diff(Dirty(servers={WEB}), differ.ledger, shadow, differ.protected)


def test_a_change_of_attributes_sets_only_that_destination():
    differ = Differ()
    differ.want(service(), "10.244.1.1", "10.244.2.2")
    with_attributes(differ.ledger, {TWO: LIMITED})
    steps = diff(Dirty(servers={WEB}), differ.ledger, differ.shadow, differ.protected)
    assert attributes_of(steps.added) == [("SET_DEST", ["10.244.2.2:8080"], LIMITED)]


def test_a_destination_that_drains_keeps_its_other_attributes():
    differ = Differ()
    differ.want(service(), "10.244.1.1", "10.244.2.2")
    differ.shadow.servers[WEB].destinations[TWO] = LIMITED
    differ.ledger.frontends[WEB] = msgspec.structs.replace(differ.ledger.frontends[WEB], destinations={ONE: USUAL})
    steps = diff(Dirty(servers={WEB}), differ.ledger, differ.shadow, differ.protected)
    assert attributes_of(steps.removed) == [
        ("SET_DEST", ["10.244.2.2:8080"], msgspec.structs.replace(LIMITED, weight=0))
    ]
