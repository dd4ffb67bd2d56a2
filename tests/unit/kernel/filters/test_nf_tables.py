"""Rules as the kernel sends them, into conditions and verdicts; on a real kernel: integration/test_doctor.py."""

import struct
import sys

import pytest

from ipvsproxy.kernel import elements
from ipvsproxy.kernel.filters.nf_tables import _rules
from ipvsproxy.kernel.filters.sets import SetEntry, intervals
from ipvsproxy.kernel.wire.netlink import attribute, attributes
from ipvsproxy.ruleset.codec import RawElement
from ipvsproxy.ruleset.filters import UNKNOWN, Condition, judge
from tests.support.filter_rules import expression, target, u32, verdict

NETWORK, TRANSPORT, TCP = 1, 2, b"\x06"
PAYLOAD, META_MARK, META_L4PROTO, META_IIFNAME = "payload", 3, 16, 6
POD, PODS = bytes([10, 244, 1, 10]), bytes([10, 244, 0, 0])


def value(payload):
    return attribute(1, payload)


def payload(base, offset, length):
    return expression(PAYLOAD, (1, u32(1)), (2, u32(base)), (3, u32(offset)), (4, u32(length)))


def meta(key):
    return expression("meta", (1, u32(1)), (2, u32(key)))


def compare(data, operation=0):
    return expression("cmp", (1, u32(1)), (2, u32(operation)), (3, value(data)))


def mask(mask, xor=None):
    return expression("bitwise", (1, u32(1)), (2, u32(1)), (4, value(mask)), (5, value(xor or bytes(len(mask)))))


def match(name, revision, info):
    return expression("match", (1, name.encode() + b"\0"), (2, u32(revision)), (3, info))


def read(*expressions, comment=b""):
    (rule,) = read_all(*expressions, comment=comment)
    return rule


def read_all(*expressions, comment=b"", sets=None):
    data = attribute(3, struct.pack(">Q", 7)) + attribute(4, b"".join(expressions))
    if comment:
        data += attribute(7, bytes([0, len(comment) + 1]) + comment + b"\0")
    return list(_rules(dict(attributes(data)), (sets or {}).get))


def number(value_):
    return value_.to_bytes(4, sys.byteorder)


STATES = [expression("ct", (1, u32(1)), (2, u32(0))), mask(number(6))]
FIB_TYPE = expression("fib", (1, u32(1)), (2, u32(3)), (3, u32(2)))
SET_MARK = expression("meta", (2, u32(META_MARK)), (3, u32(1)))


def test_a_rule_with_all_that_people_write():
    rule = read(
        meta(META_L4PROTO), compare(TCP), payload(TRANSPORT, 2, 2), compare((80).to_bytes(2)),
        payload(NETWORK, 12, 4), mask(bytes([255, 255, 0, 0])), compare(PODS),
        expression("counter", (1, struct.pack(">Q", 9)), (2, struct.pack(">Q", 3))), verdict(-3, "other"),
        comment=b"why",
    )  # fmt: skip
    assert (rule.handle, rule.verdict, rule.target, rule.comment, rule.packets) == (7, "jump", "other", "why", 3)
    packet = {"l4proto": TCP, "dport": (80).to_bytes(2), "saddr": POD}
    assert judge(rule, packet) is True
    assert judge(rule, packet | {"saddr": bytes([10, 245, 1, 1])}) is False


@pytest.mark.parametrize(
    ("expressions", "packet", "expected"),
    [
        ([payload(NETWORK, 16, 1), compare(bytes([10]))], {"daddr": POD}, True),
        ([payload(NETWORK, 8, 8), compare(bytes(8))], {"saddr": bytes(16)}, True),
        ([payload(NETWORK, 9, 1), compare(TCP)], {"l4proto": TCP}, True),
        ([payload(NETWORK, 0, 1), compare(TCP)], {"l4proto": TCP}, None),
        ([payload(TRANSPORT, 2, 2), compare((80).to_bytes(2), 5)], {"dport": (79).to_bytes(2)}, False),
        ([payload(TRANSPORT, 2, 2), compare((80).to_bytes(2), 3)], {"dport": (79).to_bytes(2)}, True),
        ([payload(TRANSPORT, 2, 2), compare(bytes(2), 2)], {"dport": bytes(2)}, False),
        ([payload(TRANSPORT, 2, 2), compare(bytes(2), 5)], {"dport": bytes(2)}, True),
        ([payload(TRANSPORT, 2, 2), compare(b"\xff\xff", 4)], {"dport": b"\xff\xff"}, False),
        ([payload(TRANSPORT, 2, 2), compare(b"\xff\xff", 3)], {"dport": b"\xff\xff"}, True),
        ([payload(TRANSPORT, 0, 4), compare(bytes(4), 4)], {"sport": bytes(2), "dport": bytes(2)}, None),
        ([meta(META_MARK), mask(number(0x4000)), compare(number(0x4000))], {"mark": number(0xC000)}, True),
        ([meta(META_MARK), mask(number(0x4000)), compare(number(0), 1)], {"mark": number(0x8000)}, False),
        ([*STATES, compare(bytes(4), 1)], {"ctstate": number(2)}, True),
        ([*STATES, compare(bytes(4), 1)], {"ctstate": number(8)}, False),
        ([meta(META_IIFNAME), compare(b"cni0\0")], {"iifname": b"cni0"}, True),
        ([FIB_TYPE, compare(number(2))], {"daddrtype": number(2)}, True),
        ([payload(TRANSPORT, 2, 2), expression("lookup", (1, b"s\0"), (2, u32(1)))], {"dport": bytes(2)}, None),
        ([expression("range", (1, u32(1)), (2, u32(0)), (3, value(b"a")), (4, value(b"b")))], {}, None),
        ([expression("limit")], {}, None),
        ([expression("log"), expression("counter", (2, struct.pack(">Q", 0)))], {}, True),
    ],
)  # fmt: skip
def test_conditions(expressions, packet, expected):
    assert judge(read(*expressions), packet) is expected


@pytest.mark.parametrize(
    ("expressions", "verdict_", "marks"),
    [
        ([verdict(0)], "drop", 0),
        ([verdict(1)], "accept", 0),
        ([verdict(-5)], "return", 0),
        ([expression("masq")], "masquerade", 0),
        ([expression("reject")], "reject", 0),
        ([expression("nat", (1, u32(1)))], "dnat", 0),
        ([expression("nat", (1, u32(0)))], "snat", 0),
        ([target("DNAT")], "dnat", 0),
        ([target("LOG")], "", 0),
        ([target("NOTRACK")], "notrack", 0),
        ([target("CT", 2, number(1) + bytes(60))], "notrack", 0),
        ([target("CT", 2, number(0) + bytes(60))], "", 0),
        ([target("MARK", 2, number(0x4000) + number(0x4000))], "", 0x4000),
        ([meta(META_MARK), mask(number(0xFFFFBFFF), number(0x4000)), SET_MARK], "", 0x4000),
        ([expression("immediate", (1, u32(1)), (2, value(number(1)))), SET_MARK], "", 0xFFFFFFFF),
    ],
)  # fmt: skip
def test_verdicts_and_marks(expressions, verdict_, marks):
    rule = read(*expressions)
    assert (rule.verdict, rule.marks) == (verdict_, marks)


PORTS = struct.pack("=4H", 0, 65535, 80, 90)
STATE = bytes(146) + struct.pack("=HHH", 1, 0, 6) + bytes(12)


@pytest.mark.parametrize(
    ("name", "revision", "info", "packet", "expected"),
    [
        ("tcp", 0, PORTS + bytes(4), {"dport": (85).to_bytes(2)}, True),
        ("tcp", 0, PORTS + bytes([0, 0, 0, 2]), {"dport": (85).to_bytes(2)}, False),
        ("tcp", 0, PORTS + bytes([0, 2, 2, 0]), {"dport": (85).to_bytes(2)}, None),
        ("udp", 0, PORTS + bytes(2), {"dport": (91).to_bytes(2)}, False),
        ("multiport", 1, bytes([1, 1]) + struct.pack("=H", 80) + bytes(44), {"dport": (80).to_bytes(2)}, True),
        ("multiport", 1, bytes([1, 3]) + struct.pack("=H", 80) + bytes(44), {"dport": (80).to_bytes(2)}, None),
        ("addrtype", 1, struct.pack("=HHI", 0, 4, 0), {"daddrtype": number(2)}, True),
        ("addrtype", 1, struct.pack("=HHI", 0, 4, 2), {"daddrtype": number(2)}, False),
        ("addrtype", 1, struct.pack("=HHI", 4, 0, 0), {"daddrtype": number(2)}, None),
        ("conntrack", 3, STATE, {"ctstate": number(2)}, True),
        ("conntrack", 3, STATE, {"ctstate": number(8)}, False),
        ("mark", 1, number(0x4000) + number(0x4000) + bytes(4), {"mark": number(0x4001)}, True),
        ("comment", 0, b"any words\0".ljust(256, b"\0"), {}, True),
        ("statistic", 0, bytes(32), {}, None),
    ],
)
def test_matches_of_iptables(name, revision, info, packet, expected):
    rule = read(match(name, revision, info), verdict(1))
    assert judge(rule, packet) is expected
    assert rule.comment == ("any words" if name == "comment" else "")


def test_what_is_not_known_is_a_condition_of_its_own():
    assert read(expression("quota"), verdict(0)).matches == (Condition(UNKNOWN),)


# Sets and maps.


def lookup(to=None, flags=0):
    fields = [(1, b"s\0"), (2, u32(1)), (5, u32(flags))]
    return expression("lookup", *fields, *([(3, u32(to))] if to is not None else []))


def port(first, last=None, code=None, chain=""):
    return SetEntry(first.to_bytes(2), (last or first).to_bytes(2), code, chain)


DPORT, SET_OF_PORTS = payload(TRANSPORT, 2, 2), [port(22), port(30000, 32767)]


def holds(rule, **packet):
    return judge(rule, {name: v if isinstance(v, bytes) else v.to_bytes(2) for name, v in packet.items()})


def test_a_set_is_a_condition():
    (rule,) = read_all(DPORT, lookup(), verdict(1), sets={"s": SET_OF_PORTS})
    assert [port for port in (22, 23, 30000, 31001, 32768) if holds(rule, dport=port)] == [22, 30000, 31001]
    (rule,) = read_all(DPORT, lookup(flags=1), verdict(0), sets={"s": SET_OF_PORTS})
    assert [port for port in (22, 23) if holds(rule, dport=port)] == [23]
    (rule,) = read_all(DPORT, lookup(), verdict(0), sets={"s": []})
    assert holds(rule, dport=22) is False


def test_a_map_of_verdicts_is_many_rules():
    chosen = [port(80, code=0), port(81, code=-3, chain="other"), SetEntry(b"", b"", 1)]
    rules = read_all(DPORT, lookup(to=0), sets={"s": chosen})
    assert [(rule.verdict, rule.target) for rule in rules] == [("drop", ""), ("jump", "other"), ("accept", "")]
    assert [holds(rules[0], dport=80), holds(rules[2], dport=80), holds(rules[2], dport=9)] == [True, False, True]


def test_a_map_may_lead_to_a_chain_with_a_name_of_any_bytes():
    to = attribute(1, struct.pack(">i", -3)) + attribute(2, b"caf\xe9\0")
    item = attribute(1, attribute(1, value(b"\0\x50")) + attribute(2, attribute(2, to)))
    wire = type("OneSet", (), {"dump": lambda _, request: [request[16:20] + attribute(3, item)]})()
    (found,) = elements.read_all(wire, 2, "filter", "ports")
    assert (found.key, found.code, found.chain) == (b"\0\x50", -3, "caf\N{REPLACEMENT CHARACTER}")


def test_links_of_a_set():
    exact, prefix = b"lo".ljust(16, b"\0"), b"cni".ljust(16, b"\0")
    names = [SetEntry(exact, exact), SetEntry(prefix, b"cni".ljust(16, b"\xff"))]
    (rule,) = read_all(meta(META_IIFNAME), lookup(), verdict(1), sets={"s": names})
    assert [holds(rule, iifname=name) for name in (b"lo", b"lo2", b"cni0", b"eth0")] == [True, False, True, False]


def test_what_cannot_be_judged_is_a_doubt():
    (rule,) = read_all(DPORT, lookup(), verdict(0))
    assert rule.matches == (Condition(UNKNOWN),)
    (rule,) = read_all(DPORT, lookup(), verdict(0), sets={"s": [SetEntry(bytes(6), bytes(6))]})
    assert rule.matches == (Condition(UNKNOWN),)
    (rule,) = read_all(DPORT, mask(b"\xff\x00"), lookup(), verdict(0), sets={"s": SET_OF_PORTS})
    assert rule.matches == (Condition(UNKNOWN),)
    (rule,) = read_all(DPORT, lookup(to=0))
    assert rule.verdict == UNKNOWN
    (rule,) = read_all(DPORT, lookup(to=1), compare(POD), verdict(0), sets={"s": SET_OF_PORTS})
    assert [match.field for match in rule.matches] == ["dport", UNKNOWN]


def test_intervals_begin_and_stop():
    def mark(number_, *, stops=False):
        return RawElement(number_.to_bytes(2), stops=stops)

    found = [mark(65000), mark(22), mark(23, stops=True), mark(23), mark(30, stops=True), mark(0, stops=True)]
    assert list(intervals(found)) == [port(22), port(23, 29), port(65000, 65535)]
    assert list(intervals(found[::-1])) == list(intervals(found))


def test_a_packet_that_conntrack_shall_not_know():
    for more in ([], [verdict(1)]):
        assert read(DPORT, compare((80).to_bytes(2)), expression("notrack"), *more).verdict == "notrack"
