"""Much work at once is cut into slices, between which others are heard and the process is seen to live."""

import collections

import pytest

import ipvsproxy.reconciler.planning
from ipvsproxy.exchange.inbox import Changed, Kind, Removed
from ipvsproxy.exchange.report import Report
from ipvsproxy.plan.tally import SERVER_SIZE
from ipvsproxy.reconciler.wanted_state import WantedState
from tests.support.build import config, service, slice_of
from tests.support.memory_proxy import MemoryProxy


class SyncReports(Report):
    def __init__(self):
        self.backlogs, self.progress, self.limited = [], 0, []

    def synced(self, sync):
        self.backlogs.append(sync.backlog)
        self.limited.append(sync.limited)

    def progressed(self):
        self.progress += 1


class ProxyInSlices(MemoryProxy):
    def __init__(self, services, **settings):
        super().__init__(services, heard=SyncReports(), **settings)

    def rest(self):
        turns = 0
        while self.loop.timeout() == 0:
            self.turn()
            turns += 1
        return turns

    def ports(self):
        return collections.Counter(f"{key.port}" for key in self.node.ipvs.table)


def many(count, port):
    return [service(f"s{n}", [f"10.96.1.{n}"], ((port, 0),)) for n in range(count)]


@pytest.fixture
def planned(monkeypatch):
    found, real = [], ipvsproxy.reconciler.planning.plan_service
    monkeypatch.setattr(
        ipvsproxy.reconciler.planning,
        "plan_service",
        lambda svc, *rest: (found.append(svc.name), real(svc, *rest))[1],
    )
    return found


def test_a_burst_is_programmed_slice_by_slice():
    here = ProxyInSlices(many(40, 80))
    here.loop._wanted._planning._turns.size = 10 * SERVER_SIZE
    here.change(*many(40, 81))
    assert here.ports() == {"80": 30, "81": 10}
    assert here.heard.backlogs[-1] == 30
    assert here.rest() == 3
    assert here.ports() == {"81": 40}
    assert here.heard.backlogs[-1] == 0


def test_what_comes_between_slices_need_not_wait_for_the_rest(planned):
    addresses = {n: [f"198.51.{n}.{m}" for m in range(1, 100)] for n in range(20)}
    greedy = [service(f"s{n}", [f"10.96.1.{n}"], external_ips=found) for n, found in addresses.items()]
    here = ProxyInSlices([service()])
    here.loop._wanted._planning._turns.size = 200 * SERVER_SIZE
    planned.clear()
    here.change(*greedy)
    assert len(planned) == 2
    here.change(service(affinity_seconds=60))
    assert planned[2] == "web"
    here.rest()
    assert sorted(set(planned)) == sorted({"web", *(item.name for item in greedy)})


def test_a_service_that_goes_while_it_waits():
    here = ProxyInSlices([])
    here.loop._wanted._planning._turns.size = SERVER_SIZE
    here.change(*many(3, 80))
    here.turn(*(Removed(Kind.SERVICE, f"default/s{n}") for n in range(3)))
    here.rest()
    assert not here.node.ipvs.table


def test_a_cold_start_reports_that_it_goes_on(monkeypatch):
    monkeypatch.setattr("ipvsproxy.plan.planning_order.SLICE", 10 * SERVER_SIZE)
    here = ProxyInSlices(many(100, 80))
    assert here.ports() == {"80": 100}
    assert here.heard.progress == 10


def older(name, created, ips, externals):
    return service(name, [ips], created=created, external_ips=[f"198.51.{externals}.{m}" for m in range(1, 11)])


def test_a_namespace_above_its_limit_is_served_in_part_and_in_full_when_there_is_room():
    old, young = older("old", "2020", "10.96.0.1", 1), older("young", "2026", "10.96.0.2", 2)
    here = ProxyInSlices([young, old], namespace_limit=15 * SERVER_SIZE)
    assert len(here.node.ipvs.table) == 1 + 10 + 1
    assert here.heard.limited[-1] == 1
    here.turn(Removed(Kind.SERVICE, "default/old"))
    assert len(here.node.ipvs.table) == 1 + 10
    assert here.heard.limited[-1] == 0
    here.change(old)
    assert len(here.node.ipvs.table) == 1 + 10 + 1
    assert here.heard.limited[-1] == 1


def test_what_is_reported_names_the_limit():
    said = []
    old, young = older("old", "2020", "10.96.0.1", 1), older("young", "2026", "10.96.0.2", 2)
    here = ProxyInSlices([young, old])
    here.heard.refused = lambda subject, reason: said.append((subject.name, reason))
    for limits, words in (
        ({"namespace_limit": 750}, "the Services of the namespace are larger than --namespace-limit 750"),
        ({"node_limit": 750}, "the Services of the node are larger than --node-limit 750"),
    ):
        said.clear()
        desired = WantedState(config(**limits), here.heard)
        for item in (young, old):
            desired.apply(Changed(Kind.SERVICE, item.key, item))
        desired.plan_everything()
        assert said == [("young", f"1 of 11 virtual servers are served: {words}")]


def test_endpoints_count():
    pods = slice_of("web", *(f"10.244.1.{n}" for n in range(1, 101)))
    here = ProxyInSlices(
        [service(), service("b", ["10.96.0.11"], external_ips=["198.51.100.1"])], namespace_limit=220
    )
    assert len(here.node.ipvs.table) == 3
    here.turn(Changed(Kind.ENDPOINT_SLICE, pods.key, pods))
    assert len(here.node.ipvs.table) == 2
