"""Counters of single Services: which are shown, how often the kernel is asked, and how they look in a scrape."""

import pytest
from prometheus_client.parser import text_string_to_metric_families

from ipvsproxy.config import ALL_SERVICES
from ipvsproxy.exchange.report import LookUps
from ipvsproxy.plan.records import Counters, DestinationRecord, ServerRecord
from ipvsproxy.plan.state import Destination, FrontendKey, ServerAttributes
from ipvsproxy.serve.board import Board
from ipvsproxy.serve.traffic import SHORTEST_PAUSE, Traffic

SERVER = ServerAttributes("rr", 0, 0)


def key(number, port=80):
    return FrontendKey(bytes([10, 96, 0, number]), 6, port)


class KernelCounters:
    """Servers with bytes by their key; two destinations each. Looks take a second of its clock."""

    def __init__(self, **octets):
        self.now, self.looks, self.closed, self.asked = 0.0, 0, 0, []
        self.octets = {key(int(name[1:])): count for name, count in octets.items()}
        self.names = {one: f"default/s{one.address[-1]}" for one in self.octets}
        self.broken = False

    def __call__(self):
        self.looks += 1
        self.now += 1.0
        return self

    def servers(self):
        if self.broken:
            raise RuntimeError("netlink dump")
        return [ServerRecord(one, SERVER, Counters(3, 1, 2, count, 0)) for one, count in self.octets.items()]

    def destinations(self, one):
        self.asked.append(one)
        ends = (Destination(bytes([10, 244, 0, n]), 8080) for n in (1, 2))
        return [DestinationRecord(end, 1, n, 1, 0, Counters(n, in_bytes=n)) for n, end in enumerate(ends, 1)]

    def close(self):
        self.closed += 1


def traffic(kernel, limit):
    made = Traffic(limit, kernel, lambda: kernel.now)
    made.holders = lambda: kernel.names
    return made


def shown(series):
    return sorted({item.service for item in series})


def test_all_services():
    kernel = KernelCounters(s1=0, s2=5)
    found = traffic(kernel, ALL_SERVICES).series()
    assert shown(found) == ["s1", "s2"]
    assert [item.endpoint for item in found[:3]] == ["", "10.244.0.1:8080", "10.244.0.2:8080"]
    assert (found[0].counters.in_bytes, found[0].active, found[0].inactive) == (0, 3, 2)
    assert kernel.closed == kernel.looks == 1


def test_the_services_with_most_traffic_and_no_more_questions_than_they_need():
    kernel = KernelCounters(s1=100, s2=300, s3=200, s4=0)
    assert shown(traffic(kernel, 2).series()) == ["s2", "s3"]
    assert kernel.asked == [key(2), key(3)]


def test_traffic_of_now_counts_more_than_that_of_long_ago():
    kernel = KernelCounters(s1=1000, s2=0)
    looked = traffic(kernel, 1)
    assert shown(looked.series()) == ["s1"]
    for _ in range(5):
        kernel.now += 100
        kernel.octets[key(2)] += 300
        last = looked.series()
    assert shown(last) == ["s2"]


def test_a_counter_that_began_anew_takes_nothing_away():
    kernel = KernelCounters(s1=1000, s2=10)
    looked = traffic(kernel, 1)
    looked.series()
    kernel.octets[key(1)] = 0
    kernel.now += 100
    assert shown(looked.series()) == ["s1"]


def test_the_kernel_is_left_alone_between_looks():
    kernel = KernelCounters(s1=0)
    looked = traffic(kernel, ALL_SERVICES)
    looked.series()
    assert looked.seconds == 1.0
    kernel.now += 19.0  # a look took a second
    looked.series()
    assert kernel.looks == 1
    kernel.now += 2.0
    looked.series()
    assert kernel.looks == 2
    assert SHORTEST_PAUSE < 20


def test_what_has_no_service_is_not_shown():
    kernel = KernelCounters(s1=0, s2=0)
    del kernel.names[key(2)]
    assert shown(traffic(kernel, ALL_SERVICES).series()) == ["s1"]


def test_a_kernel_that_refuses_leaves_what_was_known():
    kernel = KernelCounters(s1=0)
    looked = traffic(kernel, ALL_SERVICES)
    before = looked.series()
    kernel.broken, kernel.now = True, kernel.now + 100
    assert looked.series() == before


@pytest.mark.parametrize("limit", [1, ALL_SERVICES])
def test_a_scrape(limit):
    kernel = KernelCounters(s1=7)
    board = Board(30, lambda _: None)
    board.show_traffic(Traffic(limit, kernel, lambda: kernel.now))
    assert kernel.looks == 0
    board.look_ups(LookUps(lambda: kernel.names))
    text = board.metrics.exposition("")[0].decode()
    samples = {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    place = (("frontend", "10.96.0.1:80/TCP"), ("namespace", "default"), ("service", "s1"))
    assert samples["ipvsproxy_service_connections_total", *place] == 3
    assert samples["ipvsproxy_service_bytes_total", ("direction", "in"), *place] == 7
    assert samples["ipvsproxy_service_packets_total", ("direction", "out"), *place] == 2
    ends = (("endpoint", "10.244.0.2:8080"), *place)
    assert samples["ipvsproxy_endpoint_connections_total", *ends] == 2
    assert samples["ipvsproxy_endpoint_current_connections", *ends, ("state", "active")] == 2
    assert samples["ipvsproxy_traffic_scrape_duration_seconds",] == 1
    assert samples["ipvsproxy_traffic_reading_seconds",] == 1, "the old name, for one release"


def test_nothing_of_it_without_the_setting():
    assert b"ipvsproxy_service_connections" not in Board(30, lambda _: None).metrics.exposition("")[0]
