"""What is above a limit is served in part, said once, and counted."""

import msgspec
import pytest

from ipvsproxy.exchange.inbox import Changed, Kind, Removed
from ipvsproxy.exchange.report import Report
from tests.support.build import service, slice_of
from tests.support.memory_proxy import MemoryProxy


class LimitReports(Report):
    def __init__(self):
        self.said, self.limited = [], []

    def refused(self, service, reason):
        self.said.append((service.name, reason))

    def synced(self, sync):
        self.limited.append(sync.limited)


class LimitedProxy(MemoryProxy):
    def __init__(self, *services, **settings):
        super().__init__(services, ["10.244.1.1"], heard=LimitReports(), **settings)

    def servers(self):
        return sorted(map(str, self.node.ipvs.table))


def greedy(count, **settings):
    return service("greedy", ["10.96.0.66"], external_ips=[f"198.51.100.{n}" for n in range(1, count)], **settings)


def test_a_service_above_its_limit_is_reported_once_and_counted():
    here = LimitedProxy(service(), greedy(100), service_limit=510)
    addresses = ["10.96.0.10", "10.96.0.66", *(f"198.51.100.{n}" for n in range(1, 10))]
    assert here.servers() == [f"{address}:80/TCP" for address in addresses]
    said = [("greedy", "10 of 100 virtual servers are served: the Service is larger than --service-limit 510")]
    assert here.heard.said == said
    assert here.heard.limited[-1] == 1
    here.turn(Changed(Kind.ENDPOINT_SLICE, "default/greedy-4", slice_of("greedy", "10.244.1.2")))
    here.change(service(affinity_seconds=60))
    assert here.heard.said == said


def test_a_service_that_fits_again_is_served_in_full():
    here = LimitedProxy(service(), greedy(100), service_limit=510)
    here.change(greedy(5))
    assert len(here.servers()) == 6
    assert here.heard.limited[-1] == 0
    here.change(greedy(100))
    assert len(here.heard.said) == 2
    here.turn(Removed(Kind.SERVICE, "default/greedy"))
    assert here.heard.limited[-1] == 0
    assert here.servers() == ["10.96.0.10:80/TCP"]


def test_no_limit():
    here = LimitedProxy(greedy(100), service_limit=0)
    assert len(here.servers()) == 100
    assert here.heard.said == []


@pytest.mark.parametrize("ports", [3, 32768])
def test_a_service_with_two_local_policies_and_many_ports(ports):
    """With as many as this the search for numbers once had no end."""
    many = service(
        ports=tuple((n, 0, "TCP", f"p{n}") for n in range(1, ports + 1)), load_balancer_ips=["203.0.113.7"],
        external_local=True, internal_local=True,
    )  # fmt: skip
    here = LimitedProxy(many, service("other", ["10.96.0.11"]), service_limit=2000)
    assert "10.96.0.11:80/TCP" in here.servers()
    assert any("local endpoints only" in reason for _, reason in here.heard.said) is (ports > 32767)


def test_annotations_that_cannot_be_used_are_one_event_for_as_long_as_they_are_the_same():
    wrong = service("web", misused=("metadata.annotations[ipvsproxy.io/weights]: 'x' is not pods",))
    here = LimitedProxy(wrong)
    assert here.heard.said == [("web", wrong.misused[0])]
    here.change(msgspec.structs.replace(wrong, drain_seconds=3.0))
    piece = msgspec.structs.replace(slice_of("web", "10.244.1.1"), misused=("of a slice",))
    here.turn(Changed(Kind.ENDPOINT_SLICE, "default/web-4", piece))
    assert [reason for _, reason in here.heard.said] == [wrong.misused[0], "of a slice"]
    here.change(service("web"))
    here.change(wrong)
    assert here.heard.said[-1] == ("web", wrong.misused[0])
    assert len(here.heard.said) == 3


def test_weights_without_effect_are_one_event():
    here = LimitedProxy(service("web", weights=(("web-0", 3),)))
    ((_, reason),) = here.heard.said
    assert "no effect with the scheduler rr" in reason
