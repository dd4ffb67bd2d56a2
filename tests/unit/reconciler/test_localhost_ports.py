"""Which NodePorts are to answer on loopback addresses; none where they are not wanted."""

import pytest

from ipvsproxy.base.address import parse_ip
from ipvsproxy.exchange.inbox import Changed, Kind, Removed
from ipvsproxy.exchange.report import Report
from tests.support.build import service
from tests.support.memory_proxy import MemoryProxy

BOTH = ("10.96.0.10", "fd00:10:96::10")
FOUR, SIX = (parse_ip("127.0.0.1"), 30080), (parse_ip("::1"), 30080)
WEB4, WEB6 = (parse_ip(BOTH[0]), 80), (parse_ip(BOTH[1]), 80)
LOCALHOST = ("primary", "127.0.0.0/8", "::1/128")


class LocalhostPortReports(Report):
    def __init__(self):
        self.ports = []

    def localhost_ports(self, service, ports):
        self.ports.append((service, dict(ports)))


class LocalhostProxy(MemoryProxy):
    def __init__(self, *services, **settings):
        super().__init__(services, heard=LocalhostPortReports(), **settings)


def web(**settings):
    return service(ips=BOTH, ports=((80, 30080), (53, 30053, "UDP"), (81, 0)), **settings)


@pytest.mark.parametrize(
    ("ranges", "ports"),
    [
        (LOCALHOST, {FOUR: WEB4, SIX: WEB6}),
        (("127.0.0.1/32",), {FOUR: WEB4}),
        (("::1/128",), {SIX: WEB6}),
    ],
)
def test_tcp_nodeports_lead_to_the_cluster_ip(ranges, ports):
    assert LocalhostProxy(web(), nodeport_addresses=ranges).heard.ports == [("default/web", ports)]


@pytest.mark.parametrize("ranges", [(), ("primary",), ("0.0.0.0/0", "::/0")])
def test_nothing_is_reported_where_localhost_is_not_asked_for(ranges):
    assert LocalhostProxy(web(), nodeport_addresses=ranges).heard.ports == []


def test_a_family_that_the_host_does_not_have():
    here = LocalhostProxy(web(), nodeport_addresses=LOCALHOST, families=frozenset((4,)))
    assert here.heard.ports == [("default/web", {FOUR: WEB4})]


def test_only_changes_are_reported():
    here = LocalhostProxy(web(), nodeport_addresses=LOCALHOST)
    here.heard.ports.clear()
    here.turn(Changed(Kind.SERVICE, "default/web", web(affinity_seconds=60)))
    assert here.heard.ports == []
    here.turn(Changed(Kind.SERVICE, "default/web", service(ports=((80, 0),))))
    here.turn(Changed(Kind.SERVICE, "default/web", service(ports=((80, 30080),))))
    here.turn(Removed(Kind.SERVICE, "default/web"))
    assert here.heard.ports == [("default/web", {}), ("default/web", {FOUR: WEB4}), ("default/web", {})]
