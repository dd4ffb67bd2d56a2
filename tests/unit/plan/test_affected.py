"""Which Services a failure is about."""

from ipvsproxy.base.address import parse_ip
from ipvsproxy.config import VipMode
from ipvsproxy.plan.affected import MAX_AFFECTED, families_behind, services_affected
from ipvsproxy.plan.ledger import Ledger
from ipvsproxy.plan.planner import plan_service
from ipvsproxy.plan.state import Dirty
from ipvsproxy.plan.waiting import RankedService
from tests.support.build import config, key, node, service, slice_of
from tests.support.elements import element
from tests.support.work import instructions

WEB = key("10.96.0.10:80")


def ledger(*services):
    made = Ledger(VipMode.AUTO)
    for item in services or (service(), service("other", ["10.96.0.11"])):
        frontends = plan_service(item, [slice_of(item.name, "10.244.1.1")], node(), config())
        made.replace(RankedService(item.created, item.key), frontends, Dirty())
    return made


def test_a_refused_server():
    failed = Dirty(servers={WEB}, reasons={WEB: "IPVS: Protocol not supported"})
    assert services_affected(failed, ledger()) == {
        "default/web": "10.96.0.10:80/TCP: IPVS: Protocol not supported"
    }


def test_a_refused_address():
    address = parse_ip("10.96.0.11")
    failed = Dirty(vips={address}, reasons={address: "No such device"})
    assert services_affected(failed, ledger()) == {
        "default/other": "10.96.0.11:80/TCP: address 10.96.0.11: No such device"
    }


def test_refused_rules():
    slots = {
        element("frontends4", "10.96.0.10 . tcp . 80"),
        element("vips4", "10.96.0.10"),
        element("pod_interfaces", '"x"'),
    }
    failed = Dirty(slots=slots, reasons=dict.fromkeys(slots, "nftables: No buffer space available"))
    assert services_affected(failed, ledger()) == {
        "default/web": "10.96.0.10:80/TCP: nftables: No buffer space available"
    }


def test_lost_answers_and_servers_of_no_one():
    failed = Dirty(servers={WEB, key("10.96.0.99:80")})
    assert services_affected(failed, ledger()) == {"default/web": "10.96.0.10:80/TCP: the answer of IPVS was lost"}


def test_when_everything_fails_not_everybody_is_blamed():
    services = [service(f"s{n}", [f"10.96.1.{n}"]) for n in range(1, 100)]
    everything = ledger(*services)
    assert len(services_affected(Dirty(servers=set(everything.frontends)), everything)) == MAX_AFFECTED


def test_many_frontends_of_one_service_leave_room_for_another():
    ports = tuple((n, 0, "TCP", f"p{n}") for n in range(1, 2 * MAX_AFFECTED))
    known = ledger(service("large", ["10.96.0.66"], ports), service())
    assert services_affected(Dirty(servers=set(known.frontends)), known).keys() == {"default/large", "default/web"}


def test_an_address_that_several_services_share_is_about_all_of_them():
    shared = {"external_ips": ["203.0.113.7"]}
    one = service("one", ["10.96.0.1"], ((80, 0),), **shared)
    two = service("two", ["10.96.0.2"], ((81, 0),), **shared)
    known, failed = ledger(one, two), Dirty(vips={parse_ip("203.0.113.7")})
    assert services_affected(failed, known).keys() == {"default/one", "default/two"}
    known.forget("default/one")
    assert services_affected(failed, known).keys() == {"default/two"}
    known.forget("default/two")
    assert services_affected(failed, known) == {}


def test_a_refused_address_costs_the_same_whatever_else_is_served():
    def work(size):
        known = ledger(*(service(f"s{n}", [f"10.97.{n >> 8}.{n & 255}"]) for n in range(1, size)))
        return instructions(lambda: services_affected(Dirty(vips={parse_ip("10.97.0.1")}), known))

    assert work(20) == work(1000)


def test_families_behind():
    assert families_behind(Dirty(servers={WEB})) == set()
    assert families_behind(Dirty(slots={element("vips4", "10.96.0.10")})) == {4}
    assert families_behind(Dirty(slots={element("vips4", "10.96.0.10"), element("vips6", "fd00::1")})) == {4, 6}
    assert families_behind(Dirty(slots={element("health_check_ports", "1")})) == {4, 6}
