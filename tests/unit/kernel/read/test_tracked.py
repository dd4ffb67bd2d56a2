"""Entries of connection tracking as connections of the short path."""

import struct

import pytest
from pyroute2.netlink.nfnetlink.nfctsocket import nfct_msg

from ipvsproxy.base.frontend import FrontendKey
from ipvsproxy.kernel.read.connections import Asker
from ipvsproxy.kernel.read.tracked import parse, trace_tracked, tracked
from ipvsproxy.kernel.wire import ctnetlink
from ipvsproxy.kernel.wire.netlink import attribute, message
from ipvsproxy.kernel.wire.nfnetlink import NLA_F_NESTED
from tests.support.build import destination, key

CLIENTS = {4: destination("192.0.2.100:4711"), 6: destination("[fd00::9]:4711")}
WEB = {4: key("10.96.0.10:80"), 6: key("[fd00:10:96::10]:80")}
PODS = {4: destination("10.244.2.1:8080"), 6: destination("[fd00:10:244:2::1]:8080")}
NONE = b""
IPCTNL_MSG_CT_NEW = 0x100


def one_way(source, target, protocol, number):
    ip = attribute(ctnetlink.SOURCE[number], source.address)
    ip += attribute(ctnetlink.DESTINATION[number], target.address)
    proto = attribute(1, bytes((protocol,)))
    proto += attribute(2, struct.pack("!H", source.port)) + attribute(3, struct.pack("!H", target.port))
    return attribute(1 | NLA_F_NESTED, ip) + attribute(2 | NLA_F_NESTED, proto)


def entry(number, name, info=NONE):
    """Encode an entry as the kernel does: the endpoint answers the client."""
    client, pod = CLIENTS[number], PODS[number]
    body = struct.pack("=BBH", ctnetlink.AF[number], 0, 0)
    body += attribute(1 | NLA_F_NESTED, one_way(client, name, name.protocol, number))
    body += attribute(2 | NLA_F_NESTED, one_way(pod, client, name.protocol, number))
    return body + attribute(7, struct.pack("!I", 86)) + (attribute(4 | NLA_F_NESTED, info) if info else b"")


def tcp(state):
    return attribute(1 | NLA_F_NESTED, attribute(1, bytes((state,))))


@pytest.mark.parametrize("number", [4, 6])
def test_an_entry_is_a_connection(number):
    found = parse(entry(number, WEB[number], tcp(3)), number)
    assert (found.client, found.frontend, found.endpoint) == (CLIENTS[number], WEB[number], PODS[number])
    assert (found.state, found.expires) == ("ESTABLISHED", 86)
    assert found.is_translated


@pytest.mark.parametrize(
    ("name", "info", "state"),
    [
        ("10.96.0.10:80/TCP", tcp(7), "TIME_WAIT"),
        ("10.96.0.10:80/TCP", tcp(99), "99"),
        ("10.96.0.10:80/TCP", NONE, "NONE"),
        ("10.96.0.10:53/UDP", NONE, "UDP"),
        ("10.96.0.10:99/SCTP", attribute(3 | NLA_F_NESTED, attribute(1, b"\x04")), "ESTABLISHED"),
    ],
)
def test_the_state_of_an_entry(name, info, state):
    assert parse(entry(4, key(name), info), 4).state == state


def test_protocols_that_no_service_has_are_left_out():
    """DCCP has ports, too."""
    assert parse(entry(4, FrontendKey(WEB[4].address, 33, 80)), 4) is None


def test_pyroute2_reads_the_same_attributes():
    told = nfct_msg(message(IPCTNL_MSG_CT_NEW, 0, entry(4, WEB[4], tcp(3))))
    told.decode()
    info = told.get_attr("CTA_PROTOINFO").get_attr("CTA_PROTOINFO_TCP")
    assert (info.get_attr("CTA_PROTOINFO_TCP_STATE"), told.get_attr("CTA_TIMEOUT")) == (3, 86)


class DumpWire:
    """Answers each dump with the entries of its family."""

    def __init__(self, **entries):
        self.asked = []
        self.closed = 0
        self.entries = entries

    def stream(self, request):
        number = {2: 4, 10: 6}[request[16]]
        self.asked.append(number)
        return iter(self.entries.get(f"of{number}", ()))

    def close(self):
        self.closed += 1


def test_only_families_with_such_frontends_are_asked():
    wire = DumpWire(of4=[entry(4, WEB[4]), entry(4, key("10.96.0.11:80"))])
    assert [found.frontend for found in tracked(wire, [WEB[4]])] == [WEB[4]]
    assert wire.asked == [4]
    assert list(tracked(wire, [])) == []
    assert wire.asked == [4]


def test_who_asked_was_led_to_endpoints(monkeypatch):
    wire = DumpWire(of4=[entry(4, WEB[4]), entry(4, key("10.96.0.11:80"))])
    monkeypatch.setattr("ipvsproxy.kernel.read.tracked.Wire", lambda _: wire)
    asker, other = Asker(6, CLIENTS[4]), Asker(6, destination("192.0.2.100:4712"))
    assert trace_tracked({asker: WEB[4], other: WEB[4]}) == {asker: [PODS[4]], other: []}
    assert trace_tracked({asker: key("10.96.0.12:80")}) == {asker: []}
    assert wire.closed == 2


def test_what_conntrack_keeps_for_the_node_itself_is_not_translated():
    body = entry(4, WEB[4])
    refused = body.replace(attribute(1, PODS[4].address), attribute(1, WEB[4].address))
    assert not parse(refused, 4).is_translated
