"""Elements that go to the kernel by netlink are as libnftables makes them, and are refused as it refuses them."""

from __future__ import annotations

import contextlib
import errno
import itertools
from collections.abc import Iterator

import pytest

from ipvsproxy.base.address import family, parse_cidr, parse_ip
from ipvsproxy.base.frontend import FrontendKey, Protocol
from ipvsproxy.kernel.element_changes import ElementTransaction, KernelNft
from ipvsproxy.kernel.elements import ElementReader
from ipvsproxy.kernel.forward import Forwarding
from ipvsproxy.kernel.notrack import Notrack
from ipvsproxy.kernel.parts import RulesetParts
from ipvsproxy.kernel.rules import Rules
from ipvsproxy.kernel.ruleset import Ruleset
from ipvsproxy.kernel.scripts import Scripts, ruleset
from ipvsproxy.kernel.tables import TABLE, delete_tables
from ipvsproxy.plan.diff import ElementStep
from ipvsproxy.plan.state import Dirty, KernelState
from ipvsproxy.ruleset.elements import ElementKey, ElementOwner, PortRange, Rest, Value
from ipvsproxy.ruleset.schema import ALLOWED, ENDPOINTS, FRONTENDS, SETS, VIPS, Field, OwnerKind, SetSchema
from nft import Libnftables, NftError
from tests.lab import netns
from tests.lab.lab import Lab
from tests.support.limited_socket import LimitedSocket

pytestmark = pytest.mark.needs("root", "nf_tables", "namespaces")

ADDRESSES = {4: parse_ip("10.96.0.1"), 6: parse_ip("fd00::1")}
CIDRS = {4: parse_cidr("192.0.2.0/25"), 6: parse_cidr("fd01::/33")}
VERDICTS = {"frontends": "goto own", "short_views": "goto internal_endpoints_2", "by_audience": "goto group_view"}
MASQUERADE = "goto masquerade_always"


class TwoWriters:
    """Our tables in a namespace without a proxy, and two ways to change their elements."""

    def __init__(self) -> None:
        self.nft, self.libnftables = KernelNft(), Libnftables()
        self._reader = ElementReader(TABLE.name)
        self.load()

    def load(self) -> None:
        transaction = delete_tables({})
        transaction.load(ruleset())
        self.libnftables.run(transaction)

    def all(self) -> dict[ElementKey, Value]:
        return {slot: value for kind in SETS.values() for slot, value in self._reader.all(kind).items()}

    def of(self, kind: SetSchema) -> dict[ElementKey, Value]:
        return self._reader.all(kind)

    def close(self) -> None:
        self.nft.close()
        self._reader.close()


@pytest.fixture
def tables(session_lab: Lab) -> Iterator[TwoWriters]:
    with netns.inside(session_lab.nodes[1].netns):  # which has no proxy
        opened = TwoWriters()
        with contextlib.closing(opened):
            yield opened
        opened.libnftables.run(delete_tables({}))


def one_of(kind: SetSchema, number: int = 0) -> tuple[ElementKey, Value]:
    """Return an element of a set, one of many."""
    version = kind.family or 4
    owner: ElementOwner = None
    if kind.owner is OwnerKind.FRONTEND:
        owner = FrontendKey(ADDRESSES[version], Protocol.UDP, 0 if kind.port_interval else 5060 + number)
    elif kind.owner is OwnerKind.ADDRESS:
        owner = ADDRESSES[version]
    rest: Rest = None
    if kind.port_interval:
        rest = PortRange(30000, 30100)
    elif len(kind.key) > kind.owner:
        rest = _rest(kind, version)
    return ElementKey(kind, owner, rest), _value(kind, version)


def _rest(kind: SetSchema, version: int) -> Rest:
    last = kind.key[-1]
    if last in (Field.IP4, Field.IP6):
        return CIDRS[version] if kind.interval else ADDRESSES[version]
    return "eth0" if last is Field.LINK else 7


def _value(kind: SetSchema, version: int) -> Value:
    if not kind.value:
        return ""
    if kind.value == (Field.VERDICT,):
        name = kind.name.rstrip("46")
        return VERDICTS.get(name, "goto own" if name == "port_ranges" else MASQUERADE)
    if len(kind.value) > 1:
        return FrontendKey(ADDRESSES[version], Protocol.UDP, 8080)
    return 7 if kind.value[0] is Field.AUDIENCE else ADDRESSES[version]


PACKED = [kind for kind in SETS.values() if kind.is_packed]


def test_nearly_all_sets_are_tried() -> None:
    assert {kind.name for kind in SETS.values()} - {kind.name for kind in PACKED} == {
        "pod_cidrs4", "pod_cidrs6", "pod_interfaces"
    }  # fmt: skip


@pytest.mark.parametrize("kind", PACKED, ids=repr)
def test_an_element_is_as_libnftables_makes_it(tables: TwoWriters, kind: SetSchema) -> None:
    slot, value = one_of(kind)
    there, gone = (
        ElementTransaction.of([ElementStep(slot, value)]),
        ElementTransaction.of([ElementStep(slot, None)]),
    )
    tables.libnftables.run(there)
    expected = tables.all()
    assert expected == {slot: value}
    tables.nft.run(gone)  # what one has made, the other deletes
    assert not tables.all()
    tables.nft.run(there)
    assert tables.all() == expected
    tables.libnftables.run(gone)
    assert not tables.all()


@pytest.mark.parametrize("version", [4, 6])
def test_a_value_is_replaced(tables: TwoWriters, version: int) -> None:
    slot, value = one_of(FRONTENDS[version])
    tables.nft.run(ElementTransaction.of([ElementStep(slot, value)]))
    tables.nft.run(ElementTransaction.of([ElementStep(slot, "drop", replaces=True)]))
    assert tables.all() == {slot: "drop"}


def _refused(version: int) -> dict[str, list[ElementStep]]:
    slot, _ = one_of(FRONTENDS[version])
    vip = ElementKey(VIPS[version], ADDRESSES[version])
    other = ElementKey(VIPS[version], ADDRESSES[version][:-1] + b"\x09")
    return {
        "another value is there": [ElementStep(slot, "drop")],
        "the element is missing": [ElementStep(vip, None)],
        "the chain is missing": [ElementStep(other, ""), ElementStep(slot, "goto nowhere", replaces=True)],
    }


@pytest.mark.parametrize(("version", "why"), list(itertools.product([4, 6], _refused(4))))
def test_a_refusal_changes_nothing_and_is_that_of_libnftables(tables: TwoWriters, version: int, why: str) -> None:
    there = dict([one_of(FRONTENDS[version]), one_of(ALLOWED[version])])
    tables.nft.run(ElementTransaction.of([ElementStep(slot, value) for slot, value in there.items()]))
    transaction = ElementTransaction.of(_refused(version)[why])
    codes = []
    for client in (tables.nft, tables.libnftables):
        with pytest.raises(NftError) as refused:
            client.run(transaction)
        codes.append(refused.value.errno)
        assert tables.all() == there
    assert codes[0] == codes[1]


@pytest.mark.parametrize("version", [4, 6])
def test_many_elements_are_one_transaction(tables: TwoWriters, version: int) -> None:
    kind, to = ENDPOINTS[version], FrontendKey(ADDRESSES[version], Protocol.TCP, 8080)
    keys = [FrontendKey(ADDRESSES[version], Protocol.TCP, port) for port in range(1, 4001)]
    many = {ElementKey(kind, key, number): to for key in keys for number in range(5)}
    tables.nft.run(ElementTransaction.of([ElementStep(slot, value) for slot, value in many.items()]))
    assert tables.of(kind) == many
    *all_but_one, last = many
    twice = [ElementStep(slot, None) for slot in (*all_but_one, all_but_one[0])]
    with pytest.raises(NftError):
        tables.nft.run(ElementTransaction.of(twice))
    assert tables.of(kind) == many
    tables.nft.run(ElementTransaction.of([ElementStep(slot, None) for slot in all_but_one]))
    assert tables.of(kind) == {last: to}
    assert family(keys[0].address) == version


def test_without_the_right_to_larger_buffers_many_elements_come_in_parts(
    tables: TwoWriters, monkeypatch: pytest.MonkeyPatch
) -> None:
    wire = tables.nft._wire
    monkeypatch.setattr(wire, "_socket", LimitedSocket(wire._socket))
    kind = FRONTENDS[4]
    many = {
        ElementKey(kind, FrontendKey(ADDRESSES[4], Protocol.TCP, port)): "goto own" for port in range(1, 20_001)
    }
    steps = [ElementStep(slot, value) for slot, value in many.items()]
    with pytest.raises(NftError) as refused:
        tables.nft.run(ElementTransaction.of(steps))
    assert refused.value.errno == errno.EMSGSIZE
    assert not tables.all()
    shadow, table, forwarding, notrack = KernelState(), Ruleset(TABLE.name), Forwarding(tables.nft), Notrack()
    with contextlib.closing(table), contextlib.closing(forwarding._wire), contextlib.closing(notrack._wire):
        rules = Rules(tables.nft, table, RulesetParts(forwarding, notrack), Scripts(), shadow, None)
        rules.load({})
        failed = Dirty()
        rules.change(steps, failed)
    assert not failed
    assert tables.of(kind) == shadow.elements == many
