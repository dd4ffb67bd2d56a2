"""What rtnetlink is asked and what its answers mean, as pyroute2 encodes and decodes both."""

import errno
import socket

import pytest
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

from ipvsproxy.kernel import links
from ipvsproxy.kernel.links import Links
from ipvsproxy.kernel.wire import rtnetlink
from ipvsproxy.kernel.wire.netlink import KernelError
from ipvsproxy.plan.node import THIS_NODE
from ipvsproxy.plan.state import Vip, VipForm
from tests.support.build import parse_ip

LOOPBACK, OWN, ETHERNET = 1, 7, 3
FOUR, SIX = parse_ip("10.96.0.1"), parse_ip("fd00:10:96::1")
NODAD, CREATE, EXCLUSIVELY, APPEND, REPLACE = 0x2, 0x400, 0x200, 0x800, 0x100


class Rtnetlink:
    """A socket that writes down batches, and answers dumps with records."""

    def __init__(self, *_, **__):
        self.sent = []
        self.failures = {}
        self.records = {}
        self.asked = []

    def batch(self, pieces):
        self.sent += pieces
        return self.failures

    def dump(self, question):
        kind, family = int.from_bytes(question[4:6], "little"), question[16]
        self.asked.append(question[16:])
        found = self.records.get((kind, family), self.records.get(kind, []))
        if isinstance(found, int):
            raise KernelError("dump", found)
        return found


@pytest.fixture
def made(monkeypatch):
    monkeypatch.setattr(links, "Wire", Rtnetlink)
    monkeypatch.setattr(links.socket, "if_nametoindex", lambda _: LOOPBACK)
    made = Links()
    made._index = OWN
    return made


def sent(made, form):
    """The one message that was sent, read by pyroute2."""
    (data,) = made._wire.sent
    message = form(data)
    message.decode()
    return message


@pytest.mark.parametrize(
    ("address", "family", "prefix"), [(FOUR, socket.AF_INET, 32), (SIX, socket.AF_INET6, 128)]
)
def test_a_vip_becomes_an_address_of_its_own(made, address, family, prefix):
    made.bind([Vip(address, VipForm.ADDRESS)])
    message = sent(made, ifaddrmsg)
    assert (message["family"], message["prefixlen"], message["index"]) == (family, prefix, OWN)
    # Detecting duplicates of an IPv6 address takes a second, in which it does not work.
    assert message["flags"] == (NODAD if family == socket.AF_INET6 else 0)
    assert message["header"]["type"] == rtnetlink.RTM_NEWADDR
    assert message["header"]["flags"] & (CREATE | EXCLUSIVELY) == CREATE | EXCLUSIVELY
    assert parse_ip(message.get_attr("IFA_LOCAL")) == parse_ip(message.get_attr("IFA_ADDRESS")) == address


@pytest.mark.parametrize(
    ("address", "family", "prefix"), [(FOUR, socket.AF_INET, 32), (SIX, socket.AF_INET6, 128)]
)
def test_a_vip_becomes_a_local_route_of_ours(made, address, family, prefix):
    made.bind([Vip(address, VipForm.ROUTE)])
    message = sent(made, rtmsg)
    assert (message["family"], message["dst_len"]) == (family, prefix)
    assert (message["table"], message["proto"], message["scope"], message["type"]) == (255, 118, 254, 2)
    assert message["header"]["flags"] & (CREATE | APPEND | EXCLUSIVELY) == CREATE | APPEND
    assert parse_ip(message.get_attr("RTA_DST")) == address
    assert message.get_attr("RTA_OIF") == LOOPBACK


@pytest.mark.parametrize("address", [FOUR, SIX])
def test_only_what_is_ours_is_taken_away(made, address):
    made.unbind([Vip(address, VipForm.ADDRESS)])
    message = sent(made, ifaddrmsg)
    assert (message["header"]["type"], message["index"]) == (rtnetlink.RTM_DELADDR, OWN)
    made._wire.sent.clear()
    made.unbind([Vip(address, VipForm.ROUTE)])
    message = sent(made, rtmsg)
    assert message["header"]["type"] == rtnetlink.RTM_DELROUTE
    assert (message["table"], message["proto"], message["type"]) == (255, 118, 2)
    assert parse_ip(message.get_attr("RTA_DST")) == address


def test_every_piece_of_a_batch_has_its_number(made):
    vips = [Vip(a, form) for form in (VipForm.ADDRESS, VipForm.ROUTE) for a in (FOUR, SIX)]
    made.bind(vips)
    assert [int.from_bytes(data[8:12], "little") for data in made._wire.sent] == [0, 1, 2, 3]


def test_what_is_there_or_gone_already_is_no_failure(made):
    vips = [Vip(FOUR, VipForm.ADDRESS), Vip(SIX, VipForm.ADDRESS), Vip(SIX, VipForm.ROUTE)]
    made._wire.failures = {0: errno.EEXIST, 2: errno.ENOBUFS}
    assert made.bind(vips) == {2: errno.ENOBUFS}
    for code in (errno.EADDRNOTAVAIL, errno.ESRCH, errno.ENOENT, errno.ENODEV):
        made._wire.failures = {0: code, 1: errno.EPERM}
        assert made.unbind(vips) == {1: errno.EPERM}


def address(text, index, prefix=0, flags=0, **attributes):
    message = ifaddrmsg()
    message["prefixlen"], message["flags"] = prefix, flags
    message["family"] = socket.AF_INET6 if ":" in text else socket.AF_INET
    message["index"] = index
    message["attrs"] = [
        ("IFA_ADDRESS", text),
        *((f"IFA_{name.upper()}", value) for name, value in attributes.items()),
    ]
    return record(message)


def route(text, link=LOOPBACK, source="", **fields):
    message = rtmsg()
    message["family"] = socket.AF_INET6 if ":" in text else socket.AF_INET
    for name, value in {"table": 255, "proto": 118, "type": 2, "dst_len": 32, **fields}.items():
        message[name] = value
    message["attrs"] = [("RTA_DST", text), ("RTA_OIF", link), *([("RTA_PREFSRC", source)] if source else [])]
    return record(message)


def record(message):
    message.encode()
    return bytes(message.data[16:])


def test_vips_are_what_is_on_our_link_and_our_routes(made):
    made._wire.records = made._strict_wire.records = {
        rtnetlink.RTM_GETADDR: [
            address("10.96.0.1", OWN), address("fe80::1", OWN), address("192.0.2.1", ETHERNET),
            address("127.0.0.1", LOOPBACK),
        ],
        rtnetlink.RTM_GETROUTE: [
            route("fd00:10:96::1"), route("10.96.0.9", proto=2), route("10.96.0.8", table=254),
            route("10.96.0.7", type=3),
        ],
    }  # fmt: skip
    assert made.vips() == {Vip(FOUR, VipForm.ADDRESS), Vip(SIX, VipForm.ROUTE)}
    assert made.other_addresses() == {parse_ip("192.0.2.1"), parse_ip("127.0.0.1")}


def test_the_nodes_own_addresses_are_those_of_its_subnets_and_not_what_others_put_beside_them(made):
    secondary = rtnetlink.IFA_F_SECONDARY
    made._wire.records = {
        rtnetlink.RTM_GETADDR: [
            address("192.0.2.1", ETHERNET, 25, broadcast="192.0.2.255"),
            address("192.0.2.70", ETHERNET, 25, secondary), address("203.0.113.9", ETHERNET, 32),
            address("198.51.100.0", ETHERNET, 31), address("10.96.0.1", OWN, 24),
            address("127.0.0.1", LOOPBACK, 8),
            address("2001:db8::1", ETHERNET, 64), address("2001:db8::77", ETHERNET, 64, secondary),
            address("2001:db8::99", ETHERNET, 128), address("fe80::1", ETHERNET, 64),
        ],
    }  # fmt: skip
    found = set(made.subnets())
    own = {known.address for known in found if known.role == THIS_NODE}
    assert own == set(map(parse_ip, ("192.0.2.1", "198.51.100.0", "2001:db8::1", "2001:db8::77")))
    broadcasts = {known.address for known in found if known.role == links.BROADCAST}
    assert broadcasts == set(map(parse_ip, ("192.0.2.127", "192.0.2.255")))


def test_the_kernel_is_asked_for_our_routes_only(made):
    made._strict_wire.records = {(rtnetlink.RTM_GETROUTE, socket.AF_INET6): errno.ENOENT}
    assert made.vips() == set()
    asked = [rtmsg(links.message(rtnetlink.RTM_GETROUTE, 0, body)) for body in made._strict_wire.asked]
    for message, family in zip(asked, (socket.AF_INET, socket.AF_INET6), strict=True):
        message.decode()
        assert message["family"] == family
        assert (message["table"], message["proto"], message["type"]) == (255, 118, 2)
    made._strict_wire.records = {rtnetlink.RTM_GETROUTE: errno.ENOMEM}
    with pytest.raises(KernelError):
        made.vips()


def test_a_router_with_very_many_routes_is_not_read_all_the_time(made, monkeypatch):
    now = [100.0]

    def dump(question):
        now[0] += 2.0
        return [hop(f"192.0.2.{len(made._wire.asked)}")]

    def hop(text):
        made._wire.asked.append(text)
        message = rtmsg()
        message["family"] = socket.AF_INET
        message["attrs"] = [("RTA_GATEWAY", text)]
        return record(message)

    monkeypatch.setattr(links.time, "monotonic", lambda: now[0])
    made._wire.dump = dump
    assert made.gateways() == {parse_ip("192.0.2.0")}
    now[0] += 39.9
    assert made.gateways() == {parse_ip("192.0.2.0")}
    now[0] += 0.1
    assert made.gateways() == {parse_ip("192.0.2.1")}


def test_a_route_to_another_link_is_reported_and_removed_by_its_link(made):
    stray = Vip(FOUR, VipForm.STRAY)
    routes = [route("10.96.0.1", OWN), route("10.96.0.1")]
    made._strict_wire.records = {(rtnetlink.RTM_GETROUTE, socket.AF_INET): routes}
    assert made.vips() == {stray, Vip(FOUR, VipForm.ROUTE)}
    for vip, link in ((stray, OWN), (Vip(FOUR, VipForm.ROUTE), LOOPBACK)):
        made.unbind([vip])
        message = rtmsg(made._wire.sent[-1])
        message.decode()
        assert message.get_attr("RTA_OIF") == link


class LinkDeleter:
    """As much of pyroute2's IPRoute as deletes links; `links` are those of our name, each with its kind."""

    def __init__(self, links, refused=()):
        self.links, self.refused, self.deleted = links, refused, []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def link_lookup(self, ifname, kind=""):
        assert ifname == "kube-ipvs0"
        return [number for number, found in self.links.items() if kind in ("", found)]

    def link(self, verb, index):
        assert verb == "del"
        if index in self.refused:
            raise NetlinkError(errno.EPERM)
        self.deleted.append(index)


@pytest.mark.parametrize(
    ("their", "problems", "deleted"),
    [
        (LinkDeleter({}), [], []),
        (LinkDeleter({7: "dummy"}), [], [7]),
        (LinkDeleter({7: "dummy"}, [7]), ["the dummy link kube-ipvs0: Operation not permitted"], []),
        (LinkDeleter({7: "bridge"}), ["the link kube-ipvs0: it is no dummy link"], []),
    ],
)
def test_our_link_goes_and_no_one_elses(made, monkeypatch, their, problems, deleted):
    monkeypatch.setattr(links, "IPRoute", lambda: their)
    assert made.remove_link() == problems
    assert their.deleted == deleted


def test_a_route_that_stays_is_reported(made, monkeypatch):
    monkeypatch.setattr(links, "IPRoute", lambda: LinkDeleter({}))
    made._strict_wire.records = {(rtnetlink.RTM_GETROUTE, socket.AF_INET): [route("10.96.0.9")]}
    made._wire.failures = {0: errno.EPERM}
    assert made.remove_link() == ["route 10.96.0.9: Operation not permitted"]


@pytest.mark.parametrize(("vip", "source"), [(FOUR, parse_ip("192.0.2.1")), (SIX, parse_ip("2001:db8:2::1"))])
def test_a_route_with_a_source_comes_first_and_before_the_address_goes(made, vip, source):
    family = socket.AF_INET if len(vip) == 4 else socket.AF_INET6
    made._wire.records[rtnetlink.RTM_GETADDR] = [address("10.96.0.1", OWN), address("fd00:10:96::1", OWN)]
    assert made.route_with_source(source) == []
    added, removed = rtmsg(made._wire.sent[0]), ifaddrmsg(made._wire.sent[1])
    added.decode()
    removed.decode()
    assert (added["family"], added["table"], added["proto"], added["type"]) == (family, 255, 118, 2)
    assert added["header"]["flags"] & (CREATE | REPLACE | APPEND | EXCLUSIVELY) == CREATE | REPLACE
    assert parse_ip(added.get_attr("RTA_DST")) == parse_ip(removed.get_attr("IFA_LOCAL")) == vip
    assert (parse_ip(added.get_attr("RTA_PREFSRC")), added.get_attr("RTA_OIF")) == (source, LOOPBACK)
    assert removed["header"]["type"] == rtnetlink.RTM_DELADDR
    assert len(made._wire.sent) == 2


def test_a_vip_whose_route_is_refused_stays_an_address(made):
    made._wire.records[rtnetlink.RTM_GETADDR] = [address("10.96.0.1", OWN)]
    made._wire.failures = {0: errno.EINVAL}
    assert made.route_with_source(parse_ip("192.0.2.1")) == ["source of 10.96.0.1: Invalid argument"]
    assert len(made._wire.sent) == 1


@pytest.mark.parametrize(("vip", "source"), [("10.96.0.1", "192.0.2.1"), ("fd00:10:96::1", "2001:db8:2::1")])
def test_a_route_with_a_source_is_replaced_by_one_without(made, vip, source):
    family = socket.AF_INET6 if ":" in vip else socket.AF_INET
    other = "fd00:10:96::9" if ":" in vip else "10.96.0.9"
    found = [route(other), route(vip, source=source)]
    made._strict_wire.records = {(rtnetlink.RTM_GETROUTE, family): found}
    assert made.vips() == {Vip(parse_ip(text), VipForm.ROUTE) for text in (vip, other)}
    assert made.without_sources() == {}
    message = sent(made, rtmsg)
    assert message["header"]["flags"] & (CREATE | REPLACE | APPEND | EXCLUSIVELY) == CREATE | REPLACE
    assert (parse_ip(message.get_attr("RTA_DST")), message.get_attr("RTA_OIF")) == (parse_ip(vip), LOOPBACK)
    assert message.get_attr("RTA_PREFSRC") is None
    made._wire.failures = {0: errno.EPERM}
    assert made.without_sources() == {parse_ip(vip): errno.EPERM}
    made._strict_wire.records = {(rtnetlink.RTM_GETROUTE, family): [route(vip)]}
    made._wire.failures = {}
    made.vips()
    made.without_sources()
    assert len(made._wire.sent) == 2
