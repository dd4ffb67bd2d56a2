"""Which source connections of the node to VIPs get on the way back to kube-proxy."""

import errno

import pytest
from pyroute2.netlink.exceptions import NetlinkError

from ipvsproxy.base.address import format_ip
from ipvsproxy.kernel import own_source
from ipvsproxy.kernel.own_source import prefer_own_sources
from ipvsproxy.kernel.wire.rtnetlink import RTN_LOCAL, RTN_UNICAST
from ipvsproxy.plan.state import Vip, VipForm
from tests.support.build import parse_ip

UNREACHABLE = None


class RouteMessage(dict):
    """A route as pyroute2 reports it."""

    def get_attr(self, name):
        return self[name]


class Routes:
    """The answers to questions for routes, by address: kind and source, or UNREACHABLE."""

    def __init__(self, known):
        self.known = known

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def route(self, verb, dst):
        assert verb == "get"
        found = self.known.get(dst, UNREACHABLE)
        if found is UNREACHABLE:
            raise NetlinkError(errno.ENETUNREACH)
        return [RouteMessage(type=found[0], RTA_PREFSRC=found[1])]


class LinksWithSources:
    """VIPs; `given` are the sources they were given."""

    def __init__(self, *vips):
        self.found = {Vip(parse_ip(text), VipForm.ADDRESS) for text in vips}
        self.given = []

    def look(self):
        return True

    def vips(self):
        return self.found

    def route_with_source(self, source):
        self.given.append(format_ip(source))
        return [f"source of a VIP in place of {format_ip(source)}"]

    def close(self):
        pass


@pytest.mark.parametrize(
    ("vips", "routes", "given"),
    [
        (["10.96.0.10"], {"10.96.0.11": (RTN_UNICAST, "192.0.2.1")}, ["192.0.2.1"]),
        # An address beside it is a VIP too, or otherwise local.
        (["10.96.0.10", "10.96.0.11"], {"10.96.0.8": (RTN_UNICAST, "192.0.2.1")}, ["192.0.2.1"]),
        (
            ["10.96.0.10"],
            {"10.96.0.11": (RTN_LOCAL, "10.96.0.11"), "10.96.0.8": (RTN_UNICAST, "192.0.2.1")},
            ["192.0.2.1"],
        ),
        (
            ["10.96.0.10", "fd00:10:96::a"],
            {"10.96.0.11": (RTN_UNICAST, "192.0.2.1"), "fd00:10:96::b": (RTN_UNICAST, "2001:db8::1")},
            ["192.0.2.1", "2001:db8::1"],
        ),
        (["10.96.0.10", "fd00:10:96::a"], {"fd00:10:96::b": (RTN_UNICAST, "2001:db8::1")}, ["2001:db8::1"]),
        (["10.96.0.10"], {}, []),
        ([], {}, []),
    ],
)
def test_the_source_is_that_of_an_address_beside_the_vips(monkeypatch, vips, routes, given):
    links = LinksWithSources(*vips)
    monkeypatch.setattr(own_source, "Links", lambda: links)
    monkeypatch.setattr(own_source, "IPRoute", lambda: Routes(routes))
    assert prefer_own_sources() == [f"source of a VIP in place of {each}" for each in given]
    assert links.given == given
