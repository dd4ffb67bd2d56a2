"""Transactions of elements as netlink messages; the kernel sees them in tests/integration/test_elements.py."""

import errno

import pytest
from msgspec.structs import replace

from ipvsproxy.base.address import parse_cidr, parse_ip
from ipvsproxy.base.frontend import FrontendKey, Protocol
from ipvsproxy.kernel import element_changes, elements
from ipvsproxy.kernel.element_changes import ElementTransaction, KernelNft
from ipvsproxy.kernel.tables import new_transaction
from ipvsproxy.kernel.wire.netlink import HEADER, NLM_F_ACK, NLM_F_CREATE, KernelError, Lost, attributes
from ipvsproxy.kernel.wire.nfnetlink import NFGENMSG, NFPROTO_ARP, NFPROTO_INET
from ipvsproxy.plan.diff import ElementStep
from ipvsproxy.ruleset.codec import unpack_one
from ipvsproxy.ruleset.elements import ElementKey, PortRange
from ipvsproxy.ruleset.schema import (
    ALLOWED,
    ENDPOINTS,
    FRONTENDS,
    HEALTH_CHECK_PORTS,
    LINKS,
    PORT_RANGES,
    SENDERS,
    VIPS,
)
from nft import NftError
from tests.support.elements import element

WEB = FrontendKey(parse_ip("10.96.0.1"), Protocol.TCP, 443)
STEPS = [
    ElementStep(ElementKey(FRONTENDS[4], WEB), "drop", replaces=True),
    ElementStep(ElementKey(VIPS[4], WEB.address), None),
    ElementStep(ElementKey(LINKS, None, "eth0"), ""),
]
NEW, DELETE, BEGIN, END = 10 << 8 | 12, 10 << 8 | 14, 0x10, 0x11


class TransactionWire:
    """Remembers the messages of a transaction, and replies as told."""

    def __init__(self, failure=None):
        self.messages, self.failure = [], failure

    def transaction(self, pieces):
        if isinstance(self.failure, Exception):
            raise self.failure
        for piece in pieces:
            length, kind, flags, sequence, _ = HEADER.unpack_from(piece)
            assert length == len(piece)
            self.messages.append((kind, flags, sequence, piece[16:]))
        return self.failure


class FakeLibnftables:
    def __init__(self):
        self.written = []

    def run(self, transaction):
        self.written.append(str(transaction))


@pytest.fixture
def nft(monkeypatch):
    monkeypatch.setattr(element_changes, "Libnftables", FakeLibnftables)
    monkeypatch.setattr(element_changes, "Wire", lambda _: TransactionWire())
    return KernelNft()


def places(body):
    found = dict(attributes(body, NFGENMSG.size))
    return NFGENMSG.unpack_from(body)[0], *(bytes(found[number]).rstrip(b"\0").decode() for number in (1, 2))


def test_what_goes_comes_before_what_is_added(nft):
    nft.run(ElementTransaction.of(STEPS))
    sent = nft._wire.messages
    assert [kind for kind, _, _, _ in sent] == [BEGIN, DELETE, DELETE, NEW, NEW, END]
    assert [sequence for _, _, sequence, _ in sent[:-1]] == [0, 1, 2, 3, 4]
    assert [places(body) for _, _, _, body in sent[1:-1]] == [
        (NFPROTO_INET, "ipvsproxy", "frontends4"),
        (NFPROTO_INET, "ipvsproxy", "vips4"),
        (NFPROTO_INET, "ipvsproxy", "frontends4"),
        (NFPROTO_ARP, "ipvsproxy", "links"),
    ]
    assert not nft._libnftables.written


@pytest.mark.parametrize(
    ("slot", "value"),
    [
        (ElementKey(HEALTH_CHECK_PORTS, None, 32000), ""),  # two bytes, filled up to four
        (ElementKey(LINKS, None, "eth0"), ""),
        (ElementKey(SENDERS, None, "eth0"), WEB.address),
        (ElementKey(FRONTENDS[4], WEB), "goto endpoints_2"),
        (ElementKey(FRONTENDS[6], replace(WEB, address=parse_ip("fd00::1"))), "drop"),
        (ElementKey(ENDPOINTS[4], WEB, 7), replace(WEB, port=8443)),
        (ElementKey(ALLOWED[4], WEB, parse_cidr("192.0.2.0/24")), ""),
        (ElementKey(PORT_RANGES[4], replace(WEB, port=0), PortRange(8000, 8010)), "goto own"),
    ],
)
def test_what_is_sent_is_read_back(nft, slot, value):
    nft.run(ElementTransaction.of([ElementStep(slot, value)] * 2))  # the second begins where the first one ends
    (body,) = [body for kind, _, _, body in nft._wire.messages if kind == NEW]
    assert [unpack_one(slot.set, raw) for raw in elements._elements(body)] == [(slot, value)] * 2


def test_one_reply_is_asked_for(nft):
    nft.run(ElementTransaction.of(STEPS))
    assert [bool(flags & NLM_F_ACK) for _, flags, _, _ in nft._wire.messages] == [False] * 4 + [True, False]


def test_only_what_is_added_may_be_created(nft):
    nft.run(ElementTransaction.of(STEPS))
    created = [bool(flags & NLM_F_CREATE) for _, flags, _, _ in nft._wire.messages[1:-1]]
    assert created == [False, False, True, True]


def test_the_text_of_a_transaction_is_that_of_its_steps():
    written = new_transaction()
    ElementTransaction.of(STEPS).write(written)
    assert str(ElementTransaction.of(STEPS)) == str(written)
    assert str(written).splitlines() == [
        "delete element inet ipvsproxy frontends4 { 10.96.0.1 . tcp . 443 }",
        "delete element inet ipvsproxy vips4 { 10.96.0.1 }",
        "add element inet ipvsproxy frontends4 { 10.96.0.1 . tcp . 443 : drop }",
        'add element arp ipvsproxy links { "eth0" }',
    ]


def test_a_list_of_elements_fits_an_attribute(nft):
    steps = [ElementStep(ElementKey(VIPS[4], number.to_bytes(4)), "") for number in range(5000)]
    nft.run(ElementTransaction.of(steps))
    lists = [body for kind, _, _, body in nft._wire.messages if kind == NEW]
    assert len(lists) > 1
    assert all(len(body) < 1 << 16 for body in lists)
    found = [dict(attributes(body, NFGENMSG.size))[3] for body in lists]
    assert sum(1 for listed in found for _ in attributes(listed)) == 5000


def test_intervals_of_one_field_and_rules_go_through_libnftables(nft):
    interval = ElementTransaction.of([ElementStep(element("pod_cidrs4", "10.244.0.0/16"), ""), *STEPS])
    rules = new_transaction()
    rules.insert_rules("excluded", ["drop"])
    for transaction in (interval, rules):
        nft.run(transaction)
    assert nft._libnftables.written == [str(interval), str(rules)]
    assert not nft._wire.messages
    assert not interval.is_packed


def test_nothing_is_sent_for_nothing(nft):
    assert not ElementTransaction.of([])
    nft.run(ElementTransaction.of([]))
    assert not nft._wire.messages


def test_a_refusal_names_the_set(nft):
    nft._wire = TransactionWire((3, errno.EEXIST))
    with pytest.raises(NftError, match=r"File exists \(set frontends4\)") as refused:
        nft.run(ElementTransaction.of(STEPS))
    assert refused.value.errno == errno.EEXIST


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        ((0, errno.EPERM), errno.EPERM),
        (KernelError("netlink transaction", errno.EMSGSIZE), errno.EMSGSIZE),
        (Lost("netlink transaction", errno.ENOBUFS), errno.ENOBUFS),
    ],
)
def test_what_fails_as_a_whole_has_the_error_of_the_kernel(nft, failure, code):
    nft._wire = TransactionWire(failure)
    with pytest.raises(NftError) as refused:
        nft.run(ElementTransaction.of(STEPS))
    assert refused.value.errno == code
