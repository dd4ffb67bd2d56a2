"""What is said to ctnetlink and understood of it, checked with pyroute2's own description of the messages."""

import struct

import pytest
from pyroute2.netlink.nfnetlink.nfctsocket import nfct_msg

from ipvsproxy.base.address import format_ip
from ipvsproxy.kernel import conntrack
from ipvsproxy.kernel.wire import ctnetlink, netlink
from ipvsproxy.kernel.wire.netlink import attribute
from ipvsproxy.plan.stale import EVERY_PROTOCOL, GONE, Sweep
from tests.support.build import destination, key

FOUR, SIX = key("10.96.0.10:53/UDP"), key("[fd00:10:96::10]:53/UDP")


def read(message):
    told = nfct_msg(message)
    told.decode()
    return told


def tuple_of(source, target, protocol, ports, number):
    ip = attribute(ctnetlink.SOURCE[number], source) + attribute(ctnetlink.DESTINATION[number], target)
    proto = attribute(1, bytes((protocol,)))
    for kind, port in zip((2, 3), ports, strict=True):
        proto += attribute(kind, struct.pack("!H", port))
    return attribute(1 | conntrack.NLA_F_NESTED, ip) + attribute(2 | conntrack.NLA_F_NESTED, proto)


def entry(name, answered_by, client, *, extra=b"", identity=7):
    """Encode an entry as the kernel would."""
    number = 4 if len(name.address) == 4 else 6
    original = tuple_of(client, name.address, name.protocol, (4711, name.port), number)
    reply = tuple_of(answered_by.address, client, name.protocol, (answered_by.port, 4711), number)
    body = struct.pack("=BBH", ctnetlink.AF[number], 0, 0)
    body += attribute(1 | conntrack.NLA_F_NESTED, original) + extra + attribute(2 | conntrack.NLA_F_NESTED, reply)
    return body + attribute(conntrack.CTA_ID, struct.pack("!I", identity))


CASES = {
    4: (FOUR, destination("10.244.2.1:5353"), bytes((192, 0, 2, 100))),
    6: (SIX, destination("[fd00:10:244:2::1]:5353"), bytes(15) + b"\x09"),
}


@pytest.mark.parametrize("number", [4, 6])
def test_an_entry_is_understood(number):
    name, pod, client = CASES[number]
    found = conntrack.parse(entry(name, pod, client), number)
    assert (found.frontend, found.endpoint, found.source) == (name, pod, client)


@pytest.mark.parametrize("number", [4, 6])
def test_entries_to_be_looked_at_are_reported_at_once(number):
    name, pod, client = CASES[number]
    layout, wanted = ctnetlink.LAYOUTS[number], {ctnetlink.packed(name)}
    assert ctnetlink.is_of(entry(name, pod, client), layout, wanted)
    other = key("10.96.0.10:54/UDP") if number == 4 else key("[fd00:10:96::11]:53/UDP")
    assert not ctnetlink.is_of(entry(other, pod, client), layout, wanted)
    assert not ctnetlink.is_of(entry(name, pod, client), layout, {ctnetlink.packed(other)})


def test_an_entry_in_another_layout_is_looked_at_all_the_same():
    """The order of attributes is the kernel's own business."""
    name, pod, client = CASES[4]
    body = bytearray(entry(name, pod, client))
    body[4:4] = attribute(99, b"news")
    assert ctnetlink.is_of(bytes(body), ctnetlink.LAYOUTS[4], {ctnetlink.packed(name)})
    assert conntrack.parse(bytes(body), 4).frontend == name


@pytest.mark.parametrize(("status", "replied"), [(0, False), (2, True), (8, False), (14, True)])
def test_an_entry_tells_whether_a_reply_was_seen(status, replied):
    name, pod, client = CASES[4]
    extra = attribute(conntrack.CTA_STATUS, struct.pack("!I", status))
    assert conntrack.parse(entry(name, pod, client, extra=extra), 4).replied is replied


def test_entries_to_a_new_vip_are_looked_at_whatever_their_port():
    name, pod, client = CASES[4]
    sweep = Sweep(4, EVERY_PROTOCOL, {}, frozenset({name.address}))
    assert ctnetlink.is_of(entry(name, pod, client), ctnetlink.LAYOUTS[4], conntrack._wanted(sweep))
    other = key("10.96.0.11:53/UDP")
    assert not ctnetlink.is_of(entry(other, pod, client), ctnetlink.LAYOUTS[4], conntrack._wanted(sweep))


def test_a_sweep_for_new_vips_asks_for_every_protocol():
    address = FOUR.address
    told = read(conntrack.dump_request(Sweep(4, EVERY_PROTOCOL, {}, frozenset({address}))))
    original = dict(told.get_attr("CTA_TUPLE_ORIG")["attrs"])
    assert dict(original["CTA_TUPLE_IP"]["attrs"]) == {"CTA_IP_V4_DST": format_ip(address)}
    assert "CTA_TUPLE_PROTO" not in original
    several = read(conntrack.dump_request(Sweep(4, EVERY_PROTOCOL, {}, frozenset({address, bytes(4)}))))
    assert several.get_attr("CTA_FILTER") is None


def test_protocols_without_ports_are_none_of_ours():
    name, pod, client = CASES[4]
    body = entry(name, pod, client)
    ip = attribute(1, client) + attribute(2, name.address)
    icmp = attribute(1, b"\x01") + attribute(4, b"\0\x01")
    payload = attribute(1 | conntrack.NLA_F_NESTED, ip) + attribute(2 | conntrack.NLA_F_NESTED, icmp)
    both = (attribute(kind | conntrack.NLA_F_NESTED, payload) for kind in (1, 2))
    body = body[:4] + b"".join(both)
    assert conntrack.parse(body, 4) is None


def test_a_deletion_names_the_tuple_the_identity_and_the_zone():
    name, pod, client = CASES[4]
    zone = attribute(conntrack.CTA_ZONE, struct.pack("!H", 5))
    found = conntrack.parse(entry(name, pod, client, extra=zone), 4)
    attributes = dict(conntrack.attributes(found.name))
    assert attributes.keys() == {conntrack.CTA_TUPLE_REPLY, conntrack.CTA_ID, conntrack.CTA_ZONE}
    assert bytes(attributes[conntrack.CTA_ID]) == struct.pack("!I", 7)


def test_a_question_filters_by_all_that_is_common():
    asked = read(conntrack.dump_request(Sweep(4, 17, {FOUR: GONE})))
    original = asked.get_attr("CTA_TUPLE_ORIG")
    assert original.get_attr("CTA_TUPLE_IP").get_attr("CTA_IP_V4_DST") == format_ip(FOUR.address)
    proto = original.get_attr("CTA_TUPLE_PROTO")
    assert (proto.get_attr("CTA_PROTO_NUM"), proto.get_attr("CTA_PROTO_DST_PORT")) == (17, 53)


@pytest.mark.parametrize(
    ("sweep", "flags"),
    [
        (Sweep(4, 17, {FOUR: GONE}), 1 << 1 | 1 << 3 | 1 << 5),
        (Sweep(6, 17, {SIX: GONE}), 1 << 3 | 1 << 5),
        (Sweep(6, 17, {SIX: GONE, key("[fd00:10:96::11]:54/UDP"): GONE}), 1 << 3),
    ],
)
def test_a_filter_compares_what_was_asked_for(sweep, flags):
    """Destination address, protocol, destination port: enum ctnetlink_filter in nf_internals.h."""
    question = dict(conntrack.attributes(conntrack.dump_request(sweep), 16 + conntrack.NFGENMSG.size))
    wanted = dict(conntrack.attributes(question[conntrack.CTA_FILTER]))
    assert bytes(wanted[1]) == struct.pack("=I", flags)


def test_a_question_for_several_frontends_asks_for_the_protocol():
    several = Sweep(6, 17, {SIX: GONE, key("[fd00:10:96::11]:54/UDP"): GONE})
    original = read(conntrack.dump_request(several)).get_attr("CTA_TUPLE_ORIG")
    assert original.get_attr("CTA_TUPLE_IP") is None
    proto = original.get_attr("CTA_TUPLE_PROTO")
    assert (proto.get_attr("CTA_PROTO_NUM"), proto.get_attr("CTA_PROTO_DST_PORT")) == (17, None)


def test_an_ipv6_address_is_not_asked_for():
    """Linux lists all entries but those."""
    original = read(conntrack.dump_request(Sweep(6, 17, {SIX: GONE}))).get_attr("CTA_TUPLE_ORIG")
    assert original.get_attr("CTA_TUPLE_IP") is None
    assert original.get_attr("CTA_TUPLE_PROTO").get_attr("CTA_PROTO_DST_PORT") == 53


class Reported:
    """A socket that answers each question with the next of some dumps, and each deletion with success."""

    def __init__(self, *dumps):
        self.dumps = list(dumps)
        self.deletions = []
        self.waiting = []

    def send(self, data):
        kind, sequence = struct.unpack_from("=4xHxxI", data)
        if kind != conntrack.IPCTNL_MSG_CT_GET:
            self.deletions.append(data)
            return
        entries, interrupted = self.dumps.pop(0)
        flags = netlink.NLM_F_DUMP_INTR if interrupted else 0
        for body in entries:
            self.waiting.append(netlink.HEADER.pack(16 + len(body), 0x100, flags, sequence, 0) + body)
        self.waiting.append(netlink.HEADER.pack(20, netlink.NLMSG_DONE, flags, sequence, 0) + bytes(4))

    def recvmsg(self, _size):
        return self.waiting.pop(0), [], 0, None

    def recv(self, _size):
        return netlink.ERROR_REPLY.pack(36, netlink.NLMSG_ERROR, 0, netlink.LAST_SEQUENCE, 0, 0)

    def close(self):
        pass


@pytest.fixture
def told(monkeypatch):
    """Make a Conntrack that hears some dumps."""

    def make(*dumps):
        made = Reported(*dumps)
        monkeypatch.setattr(netlink.Wire, "_open", lambda wire: setattr(wire, "_most", 1 << 16) or made)
        return conntrack.Conntrack(), made

    return make


def test_an_interrupted_dump_is_repeated(told):
    name, pod, client = CASES[4]
    one, two = ([entry(name, pod, client, identity=number)] for number in (1, 2))
    table, kernel = told((one, True), (two, False))
    assert table.sweep(Sweep(4, 17, {name: GONE})) == 2
    assert kernel.dumps == []


def test_after_five_interruptions_what_was_listed_has_been_dealt_with(told):
    name, pod, client = CASES[4]
    table, kernel = told(*[([entry(name, pod, client)], True)] * 6)
    assert table.sweep(Sweep(4, 17, {name: GONE})) == 5
    assert len(kernel.dumps) == 1


def test_no_more_is_deleted_at_once_than_fits_in_memory(told, monkeypatch):
    name, pod, client = CASES[4]
    monkeypatch.setattr(conntrack, "DELETED_AT_ONCE", 10)
    table, kernel = told(([entry(name, pod, client, identity=number) for number in range(25)], False))
    assert table.sweep(Sweep(4, 17, {name: GONE})) == 25
    assert [sum(1 for _ in netlink.messages_in(data)) - 1 for data in kernel.deletions] == [10, 10, 5]
