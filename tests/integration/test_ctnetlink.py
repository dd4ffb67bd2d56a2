"""Sweeping conntrack on the real kernel: what is listed, what is deleted, and at which size of table."""

from __future__ import annotations

import contextlib
import pathlib
import resource
import socket
import struct
import time
from collections.abc import Iterator

import pytest

from ipvsproxy.base.address import Cidr, parse_cidr, parse_ip
from ipvsproxy.kernel import conntrack
from ipvsproxy.kernel.conntrack import NFGENMSG, NLA_F_NESTED, Conntrack
from ipvsproxy.kernel.wire.ctnetlink import AF, DESTINATION, SOURCE
from ipvsproxy.kernel.wire.netlink import NLM_F_CREATE, NLM_F_EXCL, Wire, attribute, message
from ipvsproxy.plan.stale import GONE, Sweep, SweepRule
from ipvsproxy.plan.state import Destination, FrontendKey
from tests.lab import netns
from tests.lab.lab import Lab

pytestmark = pytest.mark.needs("ip_vs")

CT_NEW, TIMEOUT, PROTOINFO = 0x100, 7, 4
UDP, TCP = socket.IPPROTO_UDP, socket.IPPROTO_TCP
MANY = 1_000_000


def frontend(number: int, family: int = 4, port: int = 53, proto: int = UDP) -> FrontendKey:
    return FrontendKey(parse_ip(f"10.96.7.{number}" if family == 4 else f"fd00:10:96:7::{number:x}"), proto, port)


def pod(number: int, family: int = 4, port: int = 5353) -> Destination:
    return Destination(parse_ip(f"10.244.7.{number}" if family == 4 else f"fd00:10:244:7::{number:x}"), port)


def client(number: int, family: int = 4) -> bytes:
    return struct.pack("!I", (11 << 24) + number) if family == 4 else struct.pack("!H10xI", 0x2001, number)


def creation(name: FrontendKey, endpoint: Destination, source: bytes, index: int, port: int = 4711) -> bytes:
    """A request for a tracked connection as IPVS's NAT would have left it."""
    family = 4 if len(source) == 4 else 6

    def direction(number: int, addresses: tuple[bytes, bytes], ports: tuple[int, int]) -> bytes:
        ip = attribute(SOURCE[family], addresses[0]) + attribute(DESTINATION[family], addresses[1])
        proto = attribute(1, bytes((name.protocol,)))
        proto += attribute(2, struct.pack("!H", ports[0])) + attribute(3, struct.pack("!H", ports[1]))
        parts = attribute(1 | NLA_F_NESTED, ip) + attribute(2 | NLA_F_NESTED, proto)
        return attribute(number | NLA_F_NESTED, parts)

    body = direction(1, (source, name.address), (port, name.port))
    body += direction(2, (endpoint.address, source), (endpoint.port, port))
    body += attribute(TIMEOUT, struct.pack("!I", 600))
    if name.protocol == TCP:
        established = attribute(1 | NLA_F_NESTED, attribute(1, b"\x03"))
        body += attribute(PROTOINFO | NLA_F_NESTED, established)
    return message(CT_NEW, NLM_F_CREATE | NLM_F_EXCL, NFGENMSG.pack(AF[family], 0, 0) + body, index)


class ConntrackTable:
    """The conntrack table of a node: what a test has put in, and what is left of it."""

    def __init__(self) -> None:
        self.wire = Wire(conntrack.NETLINK_NETFILTER)
        self.conntrack = Conntrack()

    def add(self, *entries: tuple[FrontendKey, Destination, bytes]) -> None:
        assert self.wire.batch([creation(*entry, index) for index, entry in enumerate(entries)]) == {}

    def left(self, *names: FrontendKey) -> set[tuple[FrontendKey, Destination, bytes]]:
        found = set()
        for family in (4, 6):
            for proto in (UDP, TCP):
                mine = {n: GONE for n in names if len(n.address) == {4: 4, 6: 16}[family] and n.protocol == proto}
                if mine:
                    entries = self.conntrack.entries(Sweep(family, proto, mine))
                    found |= {(e.frontend, e.endpoint, e.source) for e in entries}
        return found

    def listed(self, sweep: Sweep) -> int:
        """How many entries the kernel hands over for a sweep."""
        return sum(1 for _ in self.conntrack._dump(sweep))

    def close(self) -> None:
        self.wire.close()
        self.conntrack.close()


@pytest.fixture
def table(session_lab: Lab) -> Iterator[ConntrackTable]:
    with netns.inside(session_lab.nodes[1].netns):
        made = ConntrackTable()
    yield made
    for family in (4, 6):  # a deletion without a tuple empties the table of a family
        made.wire.batch([message(conntrack.IPCTNL_MSG_CT_DELETE, 0, NFGENMSG.pack(AF[family], 0, 0), 0)])
    made.close()


@pytest.mark.parametrize("family", [4, 6])
def test_only_stale_entries_of_the_frontends_go(table: ConntrackTable, family: int) -> None:
    mine, other = frontend(1, family), frontend(2, family)
    other_port, tcp = frontend(1, family, port=54), frontend(1, family, proto=TCP)
    old, new = pod(1, family), pod(2, family)
    kept = [
        (mine, new, client(1, family)),
        (other, old, client(2, family)),
        (other_port, old, client(3, family)),
        (tcp, old, client(4, family)),
    ]
    stale = [
        (mine, old, client(5, family)),
        (mine, pod(2, family, port=5354), client(6, family)),
        (mine, Destination(mine.address, mine.port), client(7, family)),
    ]
    table.add(*kept, *stale)
    assert table.conntrack.sweep(Sweep(family, UDP, {mine: SweepRule(frozenset({new}))})) == len(stale)
    assert table.left(mine, other, other_port, tcp) == set(kept)


def test_sources_that_are_no_longer_allowed(table: ConntrackTable) -> None:
    for proto in (UDP, TCP):
        name = frontend(1, proto=proto)
        table.add((name, pod(1), client(1)), (name, pod(1), client(1 << 16)))
        rule = SweepRule(None, (parse_cidr("11.0.0.0/16"), Cidr(parse_ip("12.0.0.0"), 8)))
        assert table.conntrack.sweep(Sweep(4, proto, {name: rule})) == 1
        assert table.left(name) == {(name, pod(1), client(1))}


@pytest.mark.parametrize("family", [4, 6])
def test_the_kernel_lists_no_more_than_it_was_asked_for(table: ConntrackTable, family: int) -> None:
    names = [frontend(n, family, port) for n in (1, 2, 3) for port in (53, 54)]
    names += [frontend(1, family, proto=TCP)]
    table.add(*((name, pod(1, family), client(n, family)) for n, name in enumerate(names)))
    one, same_port = {names[0]: GONE}, {frontend(n, family): GONE for n in (1, 2)}
    assert table.listed(Sweep(family, UDP, one)) == (1 if family == 4 else 3)  # IPv6: by port alone
    assert table.listed(Sweep(family, UDP, same_port)) == 3
    assert table.listed(Sweep(family, UDP, {names[0]: GONE, names[3]: GONE})) == 6
    assert table.listed(Sweep(family, TCP, {names[-1]: GONE})) == 1
    entries = list(table.conntrack.entries(Sweep(family, UDP, one)))
    assert [entry.frontend for entry in entries] == [names[0]]


def test_a_kernel_that_cannot_filter_is_asked_without(
    table: ConntrackTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    table.add((frontend(1), pod(1), client(1)), (frontend(2), pod(1), client(2)))
    unknown = attribute(conntrack.CTA_FILTER | NLA_F_NESTED, attribute(1, b"\xff\xff\xff\xff"))
    refused = message(conntrack.IPCTNL_MSG_CT_GET, 0, NFGENMSG.pack(AF[4], 0, 0) + unknown)
    monkeypatch.setattr(conntrack, "dump_request", lambda _: refused)
    assert table.listed(Sweep(4, UDP, {frontend(1): GONE})) == 2
    assert table.conntrack.sweep(Sweep(4, UDP, {frontend(1): GONE})) == 1
    assert table.left(frontend(1), frontend(2)) == {(frontend(2), pod(1), client(2))}


def test_a_new_connection_with_the_same_addresses_and_ports_is_left_alone(table: ConntrackTable) -> None:
    sweep = Sweep(4, UDP, {frontend(1): GONE})
    table.add((frontend(1), pod(1), client(1)))
    (old,) = table.conntrack.entries(sweep)
    assert table.conntrack._delete(4, [old]) == 1
    assert table.conntrack._delete(4, [old]) == 0
    table.add((frontend(1), pod(2), client(1)))
    assert table.conntrack._delete(4, [old]) == 0
    assert table.left(frontend(1)) == {(frontend(1), pod(2), client(1))}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_million_entries_need_no_memory(
    table: ConntrackTable, session_lab: Lab, capsys: pytest.CaptureFixture[str]
) -> None:
    """Stale ones are one in a thousand; the sweep is the worst there is, by protocol alone."""
    mine, others = frontend(1), frontend(2)
    with room_for(MANY + 100_000):
        for first in range(0, MANY, 20_000):
            table.add(*(
                (mine if n % 1000 == 0 else others, pod(1), client(n)) for n in range(first, first + 20_000)
            ))  # fmt: skip
        before, began = peak(), time.monotonic()
        sweep = Sweep(4, UDP, {mine: SweepRule(frozenset({pod(2)})), frontend(3, port=99): GONE})
        assert table.conntrack.sweep(sweep) == MANY // 1000
        seconds, grown = time.monotonic() - began, peak() - before
        assert grown < 8 << 10
        began = time.monotonic()
        assert table.conntrack.sweep(Sweep(4, UDP, {mine: GONE})) == 0
        exact = time.monotonic() - began
    with capsys.disabled():
        print(
            f"\n{MANY} entries: by protocol {seconds:.1f} s, one frontend {exact:.1f} s, {grown} KiB more memory"
        )


def peak() -> int:
    """The most memory this process has had so far, in KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@contextlib.contextmanager
def room_for(entries: int) -> Iterator[None]:
    limit = pathlib.Path("/proc/sys/net/netfilter/nf_conntrack_max")
    was = limit.read_text()
    limit.write_text(str(entries))
    yield
    limit.write_text(was)
