"""Which frontends need a sweep, and which entries are stale, the labelled entries of flows.json among them."""

import json
from pathlib import Path

import pytest
from msgspec.structs import replace

from ipvsproxy.base.address import parse_cidr, parse_ip
from ipvsproxy.config import DataPath
from ipvsproxy.plan.planner import plan_service
from ipvsproxy.plan.stale import GONE, Stale, Sweep, SweepRule
from ipvsproxy.plan.state import GroupAdmission
from tests.support.build import config, destination, endpoint, key, node, service, slice_of

DNS = key("10.96.0.10:53/UDP")
UDP, TCP = ((53, 30053, "UDP"),), ((53, 30053, "TCP"),)
ONE, TWO = "10.244.2.1", "10.244.2.2"


def plan(*pods, protocol="UDP", target=5353, **settings):
    svc = service(ports=((53, 30053, protocol),), **settings)
    return plan_service(svc, [slice_of("web", *pods, ports=((target, protocol, ""),))], node(), config())


def changes(*plans):
    """Go from each plan to the next and return what is due after the last one."""
    stale, before = Stale(), {}
    for number, frontends in enumerate(plans):
        if number:
            for sweep in stale.sweeps():
                stale.done(sweep)
        stale.note(before.keys() | frontends.keys(), frontends)
        before = frontends
    return stale.sweeps()


def rules(*plans):
    return {str(name): rule for sweep in changes(*plans) for name, rule in sweep.rules.items()}


LOCAL_WAYS = {("203.0.113.10", 53), ("192.0.2.1", 30053), ("10.244.1.1", 30053)}
NODE_PORTS = {"192.0.2.1:30053/UDP", "10.244.1.1:30053/UDP"}


def test_a_new_frontend_is_swept_for_clients_that_were_there_before():
    assert rules(plan(ONE)).keys() == {str(DNS), *NODE_PORTS}


@pytest.mark.parametrize(
    "now",
    [
        plan(TWO),
        plan(TWO, endpoint(ONE, ready=False, serving=False)),
        plan(ONE, target=5354),
        plan(ONE, TWO, target=5354),
    ],
)
def test_an_endpoint_that_no_longer_serves_makes_every_way_in_due(now):
    due = rules(plan(ONE), now)
    assert due.keys() == {str(DNS), *NODE_PORTS}
    assert all(rule.endpoints == frozenset(now[DNS].serving) for rule in due.values())


@pytest.mark.parametrize(
    ("before", "now"),
    [
        ([ONE], [ONE, TWO]),
        ([ONE], [ONE]),
        ([ONE], []),  # a port without any serving endpoint keeps its entries
        ([ONE, TWO], [ONE, endpoint(TWO, ready=False, terminating=True)]),  # still serving
    ],
)
def test_other_changes_of_endpoints_cost_nothing(before, now):
    assert changes(plan(*before), plan(*now)) == []


def test_after_a_time_without_endpoints_everything_is_looked_at():
    assert str(DNS) in rules(plan(ONE), plan(), plan(ONE))


def test_tcp_costs_nothing():
    assert changes(plan(ONE, protocol="TCP"), plan(TWO, protocol="TCP"), {}) == []


def test_endpoints_that_another_node_must_use_are_serving_too():
    now = plan(ONE, "10.244.1.1", external_local=True, load_balancer_ips=["203.0.113.10"])
    balancer = now[key("203.0.113.10:53/UDP")]
    assert set(balancer.serving) > set(balancer.destinations)


def test_entries_that_an_internal_view_has_rewritten_go_with_their_frontend():
    local = plan(ONE, external_local=True, load_balancer_ips=["203.0.113.10"], protocol="TCP")
    assert rules(local, {}) == dict.fromkeys(
        ("203.0.113.10:53/TCP", "192.0.2.1:30053/TCP", "10.244.1.1:30053/TCP"), GONE
    )
    assert changes(plan(ONE), {}) == []


def test_entries_of_the_short_path_go_with_their_frontend():
    short = plan_service(
        service(ports=((53, 0, "TCP"),)),
        [slice_of("web", ONE, ports=((5353, "TCP", ""),))],
        node(),
        config(data_path=DataPath.AUTO),
    )
    assert rules(plan(), short, {}) == {"10.96.0.10:53/TCP": GONE}
    # Also when new connections take the way through IPVS since.
    by_ipvs = plan_service(
        service(ports=((53, 0, "TCP"),)), [slice_of("web", ONE, ports=((5353, "TCP", ""),))], node(), config()
    )
    assert rules(plan(), short, by_ipvs, {}) == {"10.96.0.10:53/TCP": GONE}


def _unswept(*plans):
    """Go from each plan to the next before anything is swept; return the rules by name."""
    stale, before = Stale(), plan()
    stale.note(before, before)
    for sweep in stale.sweeps():
        stale.done(sweep)
    for frontends in plans:
        stale.note(before.keys() | frontends.keys(), frontends)
        before = frontends
    return {str(name): rule for sweep in stale.sweeps() for name, rule in sweep.rules.items()}


@pytest.mark.parametrize("protocol", ["TCP", "UDP"])
@pytest.mark.parametrize("path", [DataPath.AUTO, DataPath.IPVS])
def test_what_was_open_when_a_frontend_went_ends_though_it_is_back_before_the_sweep(protocol, path):
    def short(*pods, data_path=DataPath.AUTO):
        svc = service(ports=((53, 0, protocol),))
        slices = [slice_of("web", *pods, ports=((5353, protocol, ""),))]
        return plan_service(svc, slices, node(), config(data_path=data_path))

    (rule,) = _unswept(short(ONE), {}, short(TWO, data_path=path)).values()
    assert rule.forbids(b"", destination(f"{ONE}:5353"))
    assert not rule.forbids(b"", destination(f"{TWO}:5353"))
    # Whatever happens until the sweep; a frontend without endpoints lets nothing go on.
    for between in ([short(TWO)], [{}], [short(), {}], [short()]):
        (rule,) = _unswept(short(ONE), {}, *between, short(TWO, data_path=path)).values()
        assert rule.forbids(b"", destination(f"{ONE}:5353"))
    (rule,) = _unswept(short(ONE), {}, short()).values()
    assert rule == GONE


def test_what_was_open_in_an_internal_view_ends_though_its_frontend_is_back():
    local = {"external_local": True, "load_balancer_ips": ["203.0.113.10"], "protocol": "TCP"}
    due = _unswept(plan(ONE, **local), {}, plan(TWO, **local))["203.0.113.10:53/TCP"]
    assert due.forbids(b"", destination(f"{ONE}:5353"))
    assert not due.forbids(b"", destination(f"{TWO}:5353"))


def test_inside_views_let_go_of_destinations_that_are_deleted_with_their_connections():
    stale = Stale()
    frontends = plan(ONE, external_local=True, load_balancer_ips=["203.0.113.10"], protocol="TCP")
    stale.note(frontends, frontends)
    stale.cut(key("10.96.0.99:53"), frozenset({destination(f"{ONE}:5353")}))
    assert not stale
    stale.cut(key("10.96.0.10:53"), frozenset())
    assert not stale
    stale.cut(key("10.96.0.10:53"), frozenset({destination(f"{ONE}:5353")}))
    (sweep,) = stale.sweeps()
    assert {str(name) for name in sweep.rules} == {f"{a}:{p}/TCP" for a, p in LOCAL_WAYS}
    rule = sweep.rules[key("203.0.113.10:53")]
    assert rule.forbids(b"", destination(f"{ONE}:5353"))
    assert not rule.forbids(b"", destination(f"{TWO}:5353"))


def test_what_is_due_stays_so_when_the_frontend_changes_again():
    stale, key_ = Stale(), key("203.0.113.10:53/UDP")
    for ranges, pods in (
        (["10.0.0.0/8"], [ONE]),
        (["11.0.0.0/8"], [TWO]),
        (["11.0.0.0/8", "12.0.0.0/8"], [TWO, ONE]),
    ):
        frontends = plan(*pods, load_balancer_ips=["203.0.113.10"], source_ranges=ranges)
        stale.note(frontends, frontends)
    (sweep,) = stale.sweeps()
    assert sweep.rules[key_] == SweepRule(frozenset(frontends[key_].serving), frontends[key_].ranges)


def ranged(*ranges):
    return plan(ONE, protocol="TCP", load_balancer_ips=["203.0.113.10"], source_ranges=ranges)


@pytest.mark.parametrize(
    ("before", "now", "due"),
    [
        (ranged(), ranged("10.0.0.0/8"), True),
        (ranged("10.0.0.0/8"), ranged("10.0.0.0/9"), True),
        (ranged("10.0.0.0/8", "11.0.0.0/8"), ranged("10.0.0.0/8"), True),
        ({}, ranged("10.0.0.0/8"), True),  # who came before a restart is not known
        (ranged("10.0.0.0/9"), ranged("10.0.0.0/8"), False),
        (ranged("10.0.0.0/8"), ranged("10.0.0.0/8", "11.0.0.0/8"), False),
        (ranged("10.0.0.0/8"), ranged(), False),
    ],
)
def test_tightened_source_ranges_are_swept_and_wider_ones_are_not(before, now, due):
    found = rules(before, now)
    assert found == (
        {"203.0.113.10:53/TCP": SweepRule(None, now[key("203.0.113.10:53/TCP")].ranges)} if due else {}
    )


def test_a_sweep_names_what_its_frontends_have_in_common():
    (sweep,) = changes(plan(ONE, ips=["10.96.0.10"]))
    assert (sweep.family, sweep.protocol, sweep.address, sweep.port) == (4, 17, None, None)
    assert Sweep(4, 17, {DNS: GONE}).address == parse_ip("10.96.0.10")
    same_port = {DNS: GONE, key("10.96.0.11:53/UDP"): GONE}
    assert (Sweep(4, 17, same_port).address, Sweep(4, 17, same_port).port) == (None, 53)


def test_many_frontends_are_one_sweep_for_each_family_and_protocol():
    six = plan(endpoint("fd00:10:244:2::1", "node2"), ips=["fd00:10:96::10"])
    due = changes(plan(ONE) | six | ranged("10.0.0.0/8"))
    assert [(sweep.family, sweep.protocol) for sweep in due] == [(4, 6), (4, 17), (6, 17)]


def test_a_rule_judges_by_the_endpoint_and_by_the_source():
    rule = SweepRule(frozenset({destination(f"{ONE}:53")}), (parse_cidr("192.0.2.0/24"),))
    inside, outside = parse_ip("192.0.2.9"), parse_ip("198.51.100.9")
    assert not rule.forbids(inside, destination(f"{ONE}:53"))
    assert rule.forbids(outside, destination(f"{ONE}:53"))
    assert rule.forbids(inside, destination(f"{ONE}:54"))


TABLE = json.loads((Path(__file__).parents[2] / "conformance/flows.json").read_text())["conntrack_cleanup"]


@pytest.mark.parametrize("entry", TABLE["entries"], ids=lambda e: f"{e['proto']} {e['orig_dst']} {e['why']}")
def test_the_labelled_entries_of_upstream(entry):
    told = TABLE["service"]
    ports = [(p["port"], p.get("nodePort", 0), p["protocol"], p["protocol"]) for p in told["ports"]]
    svc = service(
        ips=[told["clusterIP"]],
        ports=ports,
        external_ips=told["externalIPs"],
        load_balancer_ips=told["loadBalancerIngress"],
    )
    pods = [endpoint(e["address"], ready=e["serving"], serving=e["serving"]) for e in TABLE["endpoints"]]
    piece = slice_of("web", *pods, ports=[(9090, p["protocol"], p["protocol"]) for p in told["ports"]])
    stale = Stale()
    frontends = plan_service(svc, [piece], node(), config())
    stale.note(frontends, frontends)
    known = {name: rule for sweep in stale.sweeps() for name, rule in sweep.rules.items()}
    name = key(f"{entry['orig_dst'] or '192.0.2.1'}:{entry['orig_dport']}/{entry['proto']}")
    rule = known.get(name)
    reply = destination(f"{entry['reply_src']}:{entry['reply_sport']}")
    assert (rule is not None and rule.forbids(parse_ip("10.0.0.9"), reply)) is entry["deleted"]


WEB = "10.96.0.10:53/TCP"
POD, OTHER, NEW, CLIENT = map(parse_ip, ("10.244.1.50", "10.244.1.51", "10.244.1.52", "192.0.2.100"))
GROUPS = {POD: 2, OTHER: 3, NEW: 0}


def restricted(*groups):
    admission = GroupAdmission(groups)
    return {name: replace(f, admission=admission) for name, f in plan(ONE, protocol="TCP").items()}


def cut(sweeps, *sources):
    """Which of some sources lose a connection to the Service."""
    told = (sweep for sweep in sweeps if sweep.protocol in (0, 6))
    judged = [(sweep, source) for sweep in told for source in sources]
    return {s for sweep, s in judged if sweep.forbids(key(WEB), s, destination(f"{ONE}:5353"), replied=True)}


def test_local_pods_that_may_not_connect_any_more_are_cut_and_others_are_not():
    stale = Stale(GROUPS.get)
    for frontends, expected in (
        (plan(ONE, protocol="TCP"), set()),
        (restricted(2, 3), {NEW}),
        (restricted(2), {OTHER, NEW}),
        (restricted(2, 4), set()),
        (plan(ONE, protocol="TCP"), set()),
    ):
        stale.note(frontends.keys(), frontends)
        sweeps = stale.sweeps()
        assert cut(sweeps, POD, OTHER, NEW, CLIENT) == expected
        for sweep in sweeps:
            stale.done(sweep)
    assert not stale


def test_a_source_that_has_left_its_group_is_judged_by_the_one_it_is_in():
    groups = dict(GROUPS)
    stale = Stale(groups.get)
    stale.note_sources([POD])
    assert not stale  # nothing is restricted
    frontends = restricted(2)
    stale.note(frontends.keys(), frontends)
    for sweep in stale.sweeps():
        stale.done(sweep)
    for group, expected in ((3, {POD}), (0, {POD}), (2, set()), (1, set())):
        groups[POD] = group
        stale.note_sources([POD])
        (sweep,) = stale.sweeps()
        assert (sweep.address, sweep.sources, cut([sweep], POD, OTHER)) == (None, {POD}, expected)
        stale.done(sweep)
    assert not stale
