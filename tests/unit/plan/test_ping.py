"""Which VIPs answer pings, and to whom."""

import pytest

from ipvsproxy.base.address import family, parse_cidr, parse_ip
from ipvsproxy.config import VipMode
from ipvsproxy.plan.ledger import Ledger
from ipvsproxy.plan.planner import plan_service
from ipvsproxy.plan.range_union import RangeUnion
from ipvsproxy.plan.waiting import RankedService
from ipvsproxy.ruleset.schema import PING_ALLOWED, PING_OFF, PING_RANGED, PING_READY, PING_WHEN_READY
from tests.support.build import config, node, service, slice_of
from tests.support.work import instructions

CLUSTER, OUTSIDE = "10.96.0.10", "203.0.113.1"
PINGS = (PING_OFF, PING_WHEN_READY, PING_READY, PING_RANGED, PING_ALLOWED)


class Book:
    """A ledger, and what Services put into it."""

    def __init__(self):
        self.ledger = Ledger(VipMode.ADDRESS)

    def put(self, name="web", pods=("10.244.1.1",), **settings):
        svc = service(name, settings.pop("ips", (CLUSTER,)), load_balancer_ips=[OUTSIDE], **settings)
        frontends = plan_service(svc, [slice_of(name, *pods)] if pods else [], node(), config())
        return self.ledger.replace(RankedService(svc.created, svc.key), frontends)

    def found(self):
        """The elements about pings: name of the set, address, and source if there is one."""
        return {
            (slot.set.name[:-1], slot.address, *([slot.rest] if slot.rest else []))
            for slot in self.ledger.elements
            if slot.set in [both[family(slot.address)] for both in PINGS if slot.address]
        }


def both(*names):
    return {(name, parse_ip(address)) for name in names for address in (CLUSTER, OUTSIDE)}


def allowed(*texts):
    return {("ping_allowed", parse_ip(OUTSIDE), parse_cidr(text)) for text in texts}


RANGED = {("ping_ranged", parse_ip(OUTSIDE))}


def test_nothing_is_reported_without_a_wish():
    book = Book()
    book.put(source_ranges=["198.51.100.0/24"])
    assert book.found() == set()


@pytest.mark.parametrize(
    ("ping", "pods", "names"),
    [
        ("off", ["10.244.1.1"], ["ping_off"]),
        ("when-ready", ["10.244.1.1"], ["ping_when_ready", "ping_ready"]),
        ("when-ready", [], ["ping_when_ready"]),
        ("always", [], []),
    ],
)
def test_one_service(ping, pods, names):
    book = Book()
    book.put(pods=pods, ping=ping)
    assert book.found() == both(*names)


def test_a_change_of_endpoints_changes_who_is_ready():
    book = Book()
    book.put(ping="when-ready")
    book.put(ping="when-ready", pods=())
    assert book.found() == both("ping_when_ready")
    touched = book.put(ping="when-ready")
    assert {slot.set for slot in touched.slots} >= {PING_READY[4]}
    assert book.found() == both("ping_when_ready", "ping_ready")


def test_source_ranges_count_for_pings():
    book = Book()
    book.put(ping="always", source_ranges=["198.51.100.0/24", "192.0.2.0/24"])
    # The node is in a range: what its own processes send comes from the address itself.
    assert book.found() == RANGED | allowed("198.51.100.0/24", "192.0.2.0/24", f"{OUTSIDE}/32")
    touched = book.put(ping="always", source_ranges=["198.51.100.0/25"])
    assert book.found() == RANGED | allowed("198.51.100.0/25")
    assert {slot.rest for slot in touched.slots if slot.set is PING_ALLOWED[4]} == {
        parse_cidr(text) for text in ("198.51.100.0/24", "192.0.2.0/24", f"{OUTSIDE}/32", "198.51.100.0/25")
    }
    book.put(ping="always")
    assert book.found() == set()


def test_source_ranges_are_put_together_once_for_all_ports(monkeypatch):
    """Once for each would be ports times ports times ranges: hours, for what one object may hold."""
    calls, book = [], Book()
    for name in ("_add", "_remove"):
        real = getattr(RangeUnion, name)
        monkeypatch.setattr(RangeUnion, name, lambda *args, real=real: (calls.append(args[1]), real(*args)))
    ports = tuple((number, 0, "TCP", f"p{number}") for number in range(1, 51))
    for ranges in (["198.51.100.0/24", "192.0.2.0/25"], ["198.51.100.0/25"]):
        book.put(ping="always", ports=ports, source_ranges=ranges)
        assert len(calls) <= 4
        calls.clear()
    assert book.found() == RANGED | allowed("198.51.100.0/25")
    book.put(ping="always", ports=ports[1:], source_ranges=["198.51.100.0/25"])
    assert (calls, book.found()) == ([], RANGED | allowed("198.51.100.0/25"))
    book.ledger.forget("default/web")
    assert (len(calls), book.found()) == (1, set())
    assert not book.ledger._ping_ranges._addresses


def test_a_service_costs_the_same_beside_few_and_many_with_the_same_address():
    def cost(number):
        book = Book()
        for other in range(number):
            place = f"{other // 250}.{other % 250}"
            ranges, ips = [f"10.{place}.0/25"], [f"10.97.{place}"]
            book.put(f"s{other}", ips=ips, ports=((1000 + other, 0),), ping="always", source_ranges=ranges)
        svc = service(load_balancer_ips=[OUTSIDE], ping="always", source_ranges=["198.51.100.0/24"])
        frontends = plan_service(svc, [slice_of("web", "10.244.1.1")], node(), config())
        owner = RankedService(svc.created, svc.key)
        return instructions(lambda: (book.ledger.replace(owner, frontends), book.ledger.forget(svc.key)))

    assert cost(400) < 1.2 * cost(10)


def test_ranges_of_two_services_with_one_address_do_not_overlap():
    """The kernel refuses intervals that do."""
    book = Book()
    book.put(ping="always", source_ranges=["198.51.100.0/24"])
    book.put("other", ips=["10.96.0.11"], ports=((81, 0),), ping="always", source_ranges=["198.51.0.0/16"])
    assert book.found() == RANGED | allowed("198.51.0.0/16")
    book.ledger.forget("default/other")
    assert book.found() == RANGED | allowed("198.51.100.0/24")
    book.ledger.forget("default/web")
    assert book.found() == set()


def test_addresses_of_the_node_answer_in_any_case():
    book = Book()
    svc = service(external_ips=["192.0.2.1"], ports=((80, 30080),), ping="off")
    book.ledger.replace(
        RankedService("", svc.key), plan_service(svc, [slice_of("web", "10.244.1.1")], node(), config())
    )
    assert book.found() == {("ping_off", parse_ip(CLUSTER))}
