"""From an object to the steps for the kernel: the work grows as n log n with each part of the input."""

import pytest
from msgspec.structs import replace

from ipvsproxy.base.address import Cidr, disjoint, format_ip, is_covered, parse_cidr, parse_ip
from ipvsproxy.config import VipMode
from ipvsproxy.plan.balance import balance_of
from ipvsproxy.plan.diff import diff
from ipvsproxy.plan.endpoints import EndpointsByPort
from ipvsproxy.plan.ledger import Ledger
from ipvsproxy.plan.model import Protocol, Service, ServicePort
from ipvsproxy.plan.planner import plan_service
from ipvsproxy.plan.safety import judge
from ipvsproxy.plan.stale import Stale, SweepRule, _tightened
from ipvsproxy.plan.state import KernelState
from ipvsproxy.plan.synthetic_ports import synthetic_ports
from ipvsproxy.plan.tally import Tally
from ipvsproxy.plan.topology import choose
from ipvsproxy.plan.waiting import RankedService
from tests.support.build import config, node, service, slice_of
from tests.support.work import Seen, growth

BELOW_QUADRATIC = 2.0
LINK = "192.0.2.1"
HERE = node(links=[LINK])


def ip(number, first=10):
    return format_ip(bytes((first, number >> 16, number >> 8 & 255, number & 255)))


def ports(count):
    return tuple((number + 1, 0, "TCP", f"p{number}") for number in range(count))


def targets(count):
    return tuple((number + 1, "TCP", f"p{number}") for number in range(count))


def planned(svc, *slices):
    """Return what carries out everything from the Service to the steps."""

    def work():
        ledger = Ledger(VipMode.ADDRESS)
        touched = ledger.replace(
            RankedService("", svc.key), plan_service(svc, slices, HERE, config(service_limit=0))
        )
        diff(touched, ledger, KernelState(), lambda _: False)

    return work


def many_ports(size):
    return planned(service(ports=ports(size)), slice_of("web", "10.244.1.1", ports=targets(size)))


def many_endpoints(size):
    return planned(service(), slice_of("web", *(ip(n) for n in range(size))))


def many_slices(size):
    return planned(service(), *(slice_of("web", ip(n), name=f"web-{n}") for n in range(size)))


def many_slices_of_two_ports(size):
    pieces = (slice_of("web", ip(n), ports=targets(2), name=f"web-{n}") for n in range(size))
    return planned(service(ports=ports(2)), *pieces)


def many_external_ips(size):
    return planned(service(external_ips=[ip(n, 5) for n in range(size)]), slice_of("web", "10.244.1.1"))


def many_load_balancer_ips(size):
    return planned(service(load_balancer_ips=[ip(n, 5) for n in range(size)]), slice_of("web", "10.244.1.1"))


def many_ranges(size):
    ranges = [f"{ip(n * 2)}/32" for n in range(size)]
    return planned(service(load_balancer_ips=["203.0.113.7"], source_ranges=ranges), slice_of("web", "10.244.1.1"))


def many_endpoints_elsewhere(size):
    pods = slice_of("web", *(ip(n) for n in range(size)))
    svc = service(
        ports=((80, 30080),), external_local=True, internal_local=True, load_balancer_ips=["203.0.113.7"]
    )
    return planned(svc, pods)


@pytest.mark.parametrize(
    "size",
    [
        many_ports,
        many_endpoints,
        many_slices,
        many_slices_of_two_ports,
        many_external_ips,
        many_load_balancer_ips,
        many_ranges,
        many_endpoints_elsewhere,
    ],
)
def test_a_service_costs_what_its_size_is(size):
    assert growth(size) < BELOW_QUADRATIC


def test_ports_in_slices_with_many_ports_are_found_without_a_search():
    def prepare(size):
        svc = service(ports=ports(size))
        pieces = [slice_of("web", f"10.244.1.{n}", ports=targets(size), name=f"web-{n}") for n in range(3)]
        return lambda: [backends.of(port, 4) for backends in [EndpointsByPort(pieces)] for port in svc.ports]

    assert growth(prepare) < BELOW_QUADRATIC


def both_local(numbers, protocol=Protocol.TCP):
    return Service(
        "default", "web", "", (parse_ip("10.96.0.10"),),
        tuple(ServicePort(f"p{number}", protocol, number) for number in numbers),
        load_balancer_ips=(parse_ip("203.0.113.7"),), external_local=True, internal_local=True,
    )  # fmt: skip


@pytest.mark.parametrize("start", [1, 0x8000 - 200])
def test_numbers_of_inside_views_are_found_without_a_search(start):
    """Around the top bit, each number that is wanted is taken already."""

    def prepare(size):
        svc = both_local(range(start, start + size))
        return lambda: synthetic_ports(svc)

    assert growth(prepare) < BELOW_QUADRATIC


def test_numbers_of_inside_views_are_found_without_a_search_among_as_many_as_there_can_be():
    svc = both_local([number for number in range(1, 65535) if number & 0x4000])
    found = [*synthetic_ports(svc).values()]
    assert 0 not in found
    assert len({*found, *(port.port for port in svc.ports)}) == 2 * len(svc.ports)


def test_more_ports_than_numbers_leaves_some_without_an_internal_view():
    svc = both_local(range(1, 32769))
    found = [*synthetic_ports(svc).values()]
    assert found.count(0) == 1
    assert found[-1] == 0
    tally = Tally()
    pods = slice_of("web", "10.244.1.1", ports=((8080, "TCP", "p1"),))
    frontends = plan_service(svc, [pods], HERE, config(), tally)
    assert len(frontends) > 0
    assert any("1 ports are served to local pods by local endpoints only" in said for said in tally.complaints)


def test_ranges_are_nested_or_disjoint_in_one_sweep():
    ranges = map(parse_cidr, ["10.0.0.0/8", "10.1.0.0/16", "10.0.0.0/9", "9.0.0.0/8", "11.0.0.1/32", "10.0.0.0/8"])
    found = disjoint(ranges)
    assert list(map(str, found)) == ["9.0.0.0/8", "10.0.0.0/8", "11.0.0.1/32"]
    assert all(is_covered(parse_ip(text), found) for text in ("9.1.2.3", "10.255.255.255", "11.0.0.1"))
    assert not any(
        is_covered(parse_ip(text), found) for text in ("8.255.255.255", "11.0.0.0", "11.0.0.2", "fd00::1")
    )


def test_ranges_cost_n_log_n_and_a_look_costs_log_n():
    def prepare(size):
        nested = [Cidr(Seen(bytes((10, n >> 8, n & 255, 0))), 24) for n in range(size)]
        return lambda: [
            is_covered(cidr.network, found) for found in [disjoint(reversed(nested))] for cidr in nested
        ]

    assert growth(prepare) < BELOW_QUADRATIC


def test_ranges_that_change_are_compared_in_order():
    def prepare(size):
        old = tuple(Cidr(bytes((10, n >> 8, n & 255, 0)), 25) for n in range(size))
        new = tuple(Cidr(cidr.network, 24) for cidr in old)
        return lambda: _tightened(old, new)

    assert growth(prepare) < BELOW_QUADRATIC


def test_a_source_is_looked_up_among_many_ranges_and_not_compared_with_each():
    def prepare(size):
        rule = SweepRule(sources=tuple(Cidr(bytes((10, n >> 8, n & 255, 0)), 24) for n in range(size)))
        return lambda: [rule.forbids(cidr.network, None) for cidr in rule.sources]

    assert growth(prepare) < BELOW_QUADRATIC


def test_the_end_of_a_destination_is_looked_up_among_many_frontends():
    def prepare(size):
        stale = Stale()
        items = [
            service(f"s{n}", [ip(n, 11)], load_balancer_ips=[ip(n, 5)], external_local=True, internal_local=True)
            for n in range(size)
        ]
        made = [
            (frontend.key, frontend)
            for item in items
            for frontend in plan_service(item, [slice_of(item.name, "10.244.1.1")], HERE, config()).values()
        ]
        stale.note([key for key, _ in made], dict(made))
        leading = [frontend for _, frontend in made if frontend.views]
        assert len(leading) == size
        ends = [(f.views[0].server, frozenset(f.destinations)) for f in leading]
        return lambda: [stale.cut(*end) for end in ends]

    assert growth(prepare, small=50) < BELOW_QUADRATIC


def test_ports_in_use_are_compared_with_those_of_a_service_once_for_all_addresses_of_the_node():
    def prepare(size):
        addresses = [ip(n, 192) for n in range(size)]
        here = node(links=addresses, ports_in_use=frozenset((6, n) for n in range(40_000, 40_000 + size)))
        svc = service(ports=ports(size), load_balancer_ips=addresses)
        return lambda: judge(svc, here, config())

    assert growth(prepare) < BELOW_QUADRATIC


def test_hints_of_endpoints_are_looked_at_once():
    def prepare(size):
        pods = slice_of("web", *(ip(n) for n in range(size)))
        endpoints = EndpointsByPort([pods]).of(service().ports[0], 4)
        return lambda: choose(endpoints, "node1", "a")

    assert growth(prepare) < BELOW_QUADRATIC


def test_a_pod_is_looked_up_among_the_patterns_of_all_slices_and_not_compared_with_each():
    """A slice has few, but a Service has as many slices as its author likes."""

    def prepare(size):
        pods = slice_of("web", *(ip(n) for n in range(size)))
        patterns = [
            replace(slice_of("web", ip(n, 11), name=f"web-{n}"), weights=((f"pod-{n:06}-*", n % 9),))
            for n in range(size)
        ]
        balance = balance_of(service(), [pods, *patterns], "")
        assert len(balance.prefixes) == size
        endpoints = EndpointsByPort([pods]).of(service().ports[0], 4)
        return lambda: balance.destinations([*endpoints], endpoints)

    assert growth(prepare) < BELOW_QUADRATIC


def test_claims_that_come_and_go_cost_no_search_among_the_others():
    def prepare(size):
        items = [service(f"s{n:04}", ["10.96.0.1"], created=str(size - n)) for n in range(size)]
        plans = [plan_service(item, [slice_of(item.name, "10.244.1.1")], HERE, config()) for item in items]

        def work():
            ledger = Ledger(VipMode.ADDRESS)
            for item, plan in zip(items, plans, strict=True):
                ledger.replace(RankedService(item.created, item.key), plan)
            ledger.take_new_conflicts()
            # Whoever holds it goes, and whoever is last goes.
            for item in (*items[size // 2 :], *items[: size // 2]):
                ledger.forget(item.key)
            assert not ledger.frontends

        return work

    assert growth(prepare) < BELOW_QUADRATIC


def test_services_that_all_claim_the_same_frontends_are_reported_in_proportion():
    def prepare(size):
        addresses = [ip(n, 5) for n in range(10)]
        items = [service(f"s{n:04}", [ip(n, 11)], external_ips=addresses, created="2026") for n in range(size)]
        plans = [plan_service(item, [slice_of(item.name, "10.244.1.1")], HERE, config()) for item in items]

        def work():
            ledger, told = Ledger(VipMode.ADDRESS), 0
            for item, plan in zip(items, plans, strict=True):
                ledger.replace(RankedService(item.created, item.key), plan)
                told += sum(map(len, ledger.take_new_conflicts().values()))
            assert told == 10 * (size - 1)

        return work

    assert growth(prepare, small=50) < BELOW_QUADRATIC


@pytest.mark.parametrize("kind", ["external_ips", "load_balancer_ips"])
def test_a_service_is_served_in_part_above_its_limit(kind):
    addresses = [ip(n, 5) for n in range(2000)]
    svc = service(ports=tuple((n, 30000 + n, "TCP", f"p{n}") for n in range(1, 11)), **{kind: addresses})
    tally = Tally(4000)
    pods = slice_of("web", "10.244.1.1", ports=targets(11))
    frontends = plan_service(svc, [pods], HERE, config(service_limit=4000), tally)
    assert 70 < len(frontends) <= 80
    names = [(key.address, key.port) for key in frontends]
    # ClusterIPs first, then NodePorts, then the others, always the same.
    assert names[:10] == [(parse_ip("10.96.0.10"), n) for n in range(1, 11)]
    assert names[10:20] == [(parse_ip(LINK), 30000 + n) for n in range(1, 11)]
    assert {address for address, _ in names[20:]} <= set(map(parse_ip, addresses))
    assert sum(tally.sizes) <= 4000
    assert tally.complaints == [
        f"{len(frontends)} of 20020 virtual servers are served: the Service is larger than --service-limit 4000"
    ]


def test_what_is_above_the_limit_costs_nothing():
    def prepare(size):
        svc = service(ports=ports(size), external_ips=[ip(n, 5) for n in range(size)])
        pieces = [slice_of("web", *(ip(n) for n in range(size)), ports=targets(size))]
        return lambda: plan_service(svc, pieces, HERE, config(service_limit=1000))

    # Two products of the input, of which none shows.
    assert growth(prepare) < BELOW_QUADRATIC
