"""Elements as text and as bytes. That the kernel has these bytes is seen in tests/integration."""

import sys

import pytest

from ipvsproxy.base.address import Cidr, parse_cidr, parse_ip
from ipvsproxy.base.frontend import FrontendKey, Protocol
from ipvsproxy.ruleset.codec import (
    RawElement,
    element_text,
    key_text,
    pack,
    pack_interval,
    pack_keys,
    pack_values,
    pack_verdict,
    texts,
    unpack,
    unpack_one,
)
from ipvsproxy.ruleset.elements import ElementKey, Interval
from ipvsproxy.ruleset.schema import (
    ALLOWED,
    AUDIENCES,
    ENDPOINTS,
    FRONTENDS,
    GROUP_VIEWS,
    HAIRPIN,
    HEALTH_CHECK_PORTS,
    INTERNAL_VIEWS,
    LARGEST_GROUP,
    POD_CIDRS,
    POD_INTERFACES,
    SENDERS,
    VIPS,
)
from tests.support.elements import element

WEB = FrontendKey(parse_ip("10.96.0.1"), Protocol.TCP, 443)
WEB6 = FrontendKey(parse_ip("fd00::1"), Protocol.TCP, 443)
FRONTEND = bytes.fromhex("0a600001 06000000 01bb0000")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("frontends4", "10.96.0.1 . tcp . 443"),
        ("allowed6", "fd00::1 . udp . 53 . fd01::/16"),
        ("allowed4", "10.96.0.1 . sctp . 443 . 192.0.2.7"),
        ("hairpin4", "10.244.0.1 . 10.244.0.1"),
        ("vips6", "fd00::1"),
        ("pod_cidrs4", "10.244.0.0/16"),
        ("pod_interfaces", '"cni*"'),
        ("health_check_ports", "30000"),
        ("group_views6", "fd00::1 . udp . 53 . 0:fff0"),
    ],
)
def test_the_text_of_keys(name, text):
    assert key_text(element(name, text)) == text
    assert element_text(element(name, text)) == f"{name} {{ {text} }}"


def test_elements_of_several_owners_as_text():
    other = FrontendKey(parse_ip("fd00::2"), Protocol.UDP, 53)
    elements = {
        ElementKey(VIPS[4], WEB.address): "",
        ElementKey(FRONTENDS[4], WEB): "accept",
        ElementKey(INTERNAL_VIEWS[4], WEB): FrontendKey(parse_ip("10.96.0.2"), Protocol.TCP, 80),
        ElementKey(POD_INTERFACES, None, "cni0"): "",
        ElementKey(FRONTENDS[6], other): "drop",
        ElementKey(SENDERS, None, "eth0"): parse_ip("192.0.2.1"),
        ElementKey(POD_CIDRS[4], None, parse_cidr("192.0.2.1/32")): "",
    }
    assert list(texts(elements.items())) == [
        ("vips4", "10.96.0.1", ""),
        ("frontends4", "10.96.0.1 . tcp . 443", "accept"),
        ("internal_views4", "10.96.0.1 . tcp . 443", "10.96.0.2 . 80"),
        ("pod_interfaces", '"cni0"', ""),
        ("frontends6", "fd00::2 . udp . 53", "drop"),
        ("senders4", '"eth0"', "192.0.2.1"),
        ("pod_cidrs4", "192.0.2.1", ""),
    ]


@pytest.mark.parametrize(
    ("kind", "owner", "rest", "data"),
    [
        (FRONTENDS[4], WEB, None, FRONTEND),
        (ALLOWED[4], WEB, parse_ip("1.2.3.4"), FRONTEND + bytes((1, 2, 3, 4))),
        (
            FRONTENDS[6],
            FrontendKey(parse_ip("fd00::1"), 132, 53),
            None,
            parse_ip("fd00::1") + bytes.fromhex("84000000 00350000"),
        ),
        (HEALTH_CHECK_PORTS, None, 30000, b"\x75\x30"),
        (POD_INTERFACES, None, "cni0", b"cni0" + bytes(12)),
        (VIPS[4], WEB.address, None, WEB.address),
        (HAIRPIN[4], WEB.address, WEB.address, WEB.address * 2),
    ],
)
def test_keys_to_look_up(kind, owner, rest, data):
    assert pack(kind, owner, rest) == data
    if not kind.interval:
        assert unpack(kind, [RawElement(data)]) == {ElementKey(kind, owner, rest): ""}


def test_a_range_is_no_key_to_look_up():
    with pytest.raises(TypeError, match="cannot be looked up"):
        pack(ALLOWED[4], WEB, parse_cidr("10.0.0.0/8"))


def test_numbers_that_are_in_no_packet_are_in_the_order_of_the_host():
    slot = ElementKey(ENDPOINTS[4], WEB, 5)
    packed = pack(ENDPOINTS[4], WEB, 5)
    assert packed == bytes.fromhex("0a600001 06000000 01bb0000") + (5).to_bytes(4, sys.byteorder)
    to = FrontendKey(parse_ip("10.244.1.1"), WEB.protocol, 8080)
    raw = RawElement(packed, value=bytes.fromhex("0af40101 1f900000"))
    assert unpack_one(ENDPOINTS[4], raw) == (slot, to)
    assert list(texts([(slot, to)])) == [("endpoints4", "10.96.0.1 . tcp . 443 . 5", "10.244.1.1 . 8080")]


def test_values_of_maps():
    verdicts = [
        RawElement(FRONTEND, code=1),
        RawElement(FRONTEND, code=0),
        RawElement(FRONTEND, code=-4, chain="refuse"),
        RawElement(FRONTEND, code=-5),
    ]
    slot = ElementKey(FRONTENDS[4], WEB)
    found = [unpack_one(FRONTENDS[4], raw) for raw in verdicts]
    assert found == [(slot, "accept"), (slot, "drop"), (slot, "goto refuse"), (slot, "-5")]
    inside = RawElement(FRONTEND, value=bytes.fromhex("0a600002 00500000"))
    to = FrontendKey(parse_ip("10.96.0.2"), Protocol.TCP, 80)
    assert unpack(INTERNAL_VIEWS[4], [inside]) == {ElementKey(INTERNAL_VIEWS[4], WEB): to}
    sender = RawElement(b"eth0".ljust(16, b"\0"), value=parse_ip("192.0.2.1"))
    assert unpack(SENDERS, [sender]) == {ElementKey(SENDERS, None, "eth0"): parse_ip("192.0.2.1")}


@pytest.mark.parametrize("number", [1, LARGEST_GROUP])
def test_groups_of_sources_are_numbers_of_the_host_as_a_meta_priority(number):
    data = (number * 16).to_bytes(4, sys.byteorder)
    pod, to = parse_ip("10.244.1.7"), FrontendKey(parse_ip("10.96.0.2"), Protocol.TCP, 80)
    assert pack(GROUP_VIEWS[4], WEB, number) == FRONTEND + data
    led = RawElement(FRONTEND + data, value=bytes.fromhex("0a600002 00500000"))
    assert unpack(GROUP_VIEWS[4], [led]) == {ElementKey(GROUP_VIEWS[4], WEB, number): to}
    member = ElementKey(AUDIENCES[4], pod)
    assert unpack(AUDIENCES[4], [RawElement(pod, value=data)]) == {member: number}
    assert list(texts([(member, number)])) == [("audiences4", "10.244.1.7", f"0:{number * 16:x}")]


def test_protocols_that_are_not_ours():
    icmp = FRONTEND[:4] + bytes.fromhex("01000000 01bb0000")
    (slot,) = unpack(FRONTENDS[4], [RawElement(icmp, code=1)])
    assert key_text(slot) == "10.96.0.1 . 1 . 443"


def rests(kind, found):
    return [slot.rest for slot in unpack(kind, found)]


def marks(kind, *pairs):
    return [RawElement(kind(first), stops=stops) for first, stops in pairs]


def test_intervals_of_addresses():
    found = marks(
        parse_ip, ("10.245.0.0", True), ("10.244.0.0", False), ("0.0.0.0", True), ("192.0.2.1", False),
        ("192.0.2.2", True), ("192.0.2.8", False), ("192.0.2.11", True), ("255.0.0.0", False),
    )  # fmt: skip
    assert rests(POD_CIDRS[4], found) == [
        parse_cidr("10.244.0.0/16"),
        parse_cidr("192.0.2.1/32"),
        Interval(parse_ip("192.0.2.8"), parse_ip("192.0.2.10")),
        parse_cidr("255.0.0.0/8"),
    ]
    assert [key_text(slot) for slot in unpack(POD_CIDRS[4], found)][2] == "192.0.2.8-192.0.2.10"


def test_no_intervals():
    assert unpack(POD_CIDRS[4], []) == {}


def test_intervals_that_touch():
    found = marks(parse_ip, ("10.0.0.0", False), ("10.0.1.0", True), ("10.0.1.0", False), ("10.0.2.0", True))
    assert rests(POD_CIDRS[4], found) == [parse_cidr("10.0.0.0/24"), parse_cidr("10.0.1.0/24")]


def test_names_of_links():
    def name(text):
        return text.encode().ljust(16, b"\0")

    exact = (int.from_bytes(name("br0")) + 1).to_bytes(16)
    found = [
        RawElement(name("br0")),
        RawElement(exact, stops=True),
        RawElement(name("cni")),
        RawElement(name("cnj"), stops=True),
    ]
    assert rests(POD_INTERFACES, found) == ["br0", "cni*"]


def test_source_ranges():
    first, last = FRONTEND + parse_ip("10.0.0.0"), FRONTEND + parse_ip("10.0.255.255")
    both = [RawElement(first, last), RawElement(first, first)]
    assert list(unpack(ALLOWED[4], both)) == [
        ElementKey(ALLOWED[4], WEB, Cidr(parse_ip("10.0.0.0"), 16)),
        ElementKey(ALLOWED[4], WEB, Cidr(parse_ip("10.0.0.0"), 32)),
    ]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("frontends4", "10.96.0.1 . tcp . 443"),
        ("endpoints6", "fd00::1 . udp . 53 . 63"),
        ("allowed4", "10.96.0.1 . sctp . 443 . 192.0.2.7"),
        ("allowed6", "fd00::1 . udp . 53 . fd01::/17"),
        ("ping_allowed4", "10.96.0.1 . 0.0.0.0/0"),
        ("hairpin6", "fd00::1 . fd00::1"),
        ("vips4", "10.96.0.1"),
        ("health_check_ports", "30000"),
        ("admitted4", "10.96.0.1 . tcp . 443 . 0:fff0"),
        ("port_ranges4", "10.96.0.1 . udp . 30000-31000"),
        ("range_masquerade6", "fd00::1 . tcp . 21"),
        ("links", '"eth0"'),
    ],
)
def test_a_key_is_packed_as_it_is_read(name, text):
    slot = element(name, text)
    key, end = pack_interval(slot) if slot.set.interval else (*pack_keys(slot.set, [(slot, "")]), b"")
    found, _ = unpack_one(slot.set, RawElement(key, end))
    assert found == slot


@pytest.mark.parametrize(
    ("kind", "owner", "rest", "value"),
    [
        (ENDPOINTS[4], WEB, 3, FrontendKey(parse_ip("10.244.0.1"), Protocol.TCP, 8080)),
        (INTERNAL_VIEWS[6], WEB6, None, FrontendKey(parse_ip("fd00::2"), Protocol.TCP, 80)),
        (AUDIENCES[4], parse_ip("10.244.0.9"), None, LARGEST_GROUP),
        (SENDERS, None, "eth0", parse_ip("192.0.2.1")),
    ],
)
def test_a_value_is_packed_as_it_is_read(kind, owner, rest, value):
    elements = [(ElementKey(kind, owner, rest), value)]
    (key,), (packed,) = pack_keys(kind, elements), pack_values(kind, elements)
    _, found = unpack_one(kind, RawElement(key, value=packed))
    assert found == value


@pytest.mark.parametrize("verdict", ["accept", "drop", "goto endpoints_12"])
def test_a_verdict_is_packed_as_it_is_read(verdict):
    code, chain = pack_verdict(verdict)
    (key,) = pack_keys(FRONTENDS[4], [(ElementKey(FRONTENDS[4], WEB), verdict)])
    assert unpack_one(FRONTENDS[4], RawElement(key, code=code, chain=chain))[1] == verdict


def test_a_verdict_of_others_is_not_packed():
    with pytest.raises(KeyError):
        pack_verdict("queue")
