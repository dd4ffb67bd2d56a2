"""Which rules of others keep packets from conntrack; with packets: integration/test_untracked.py."""

import errno
import struct

import pytest
from structlog.testing import capture_logs

from ipvsproxy.kernel import notrack
from ipvsproxy.kernel.filters.legacy import PIECE
from ipvsproxy.kernel.notrack import Notrack, keeps_from_conntrack
from ipvsproxy.kernel.wire.netlink import KernelError, attribute
from tests.support.filter_rules import blob, entry, expression, standard, target, verdict


def rule(*expressions, table="raw", comment=b""):
    """A rule as the kernel lists it and tells of it."""
    found = bytes(4) + attribute(1, table.encode() + b"\0") + attribute(2, b"PREROUTING\0")
    found += attribute(4, b"".join(expressions))
    return found + (attribute(7, bytes([0, len(comment) + 1]) + comment + b"\0") if comment else b"")


def ct(flags):
    """What target CT is to do: flags, a zone, and what else it may."""
    return struct.pack("=HHII", flags, 7, 0, 0) + bytes(48)


ACCEPT = -2
HIDES = rule(expression("notrack"))


@pytest.mark.parametrize(
    ("found", "hides"),
    [
        (HIDES, True),
        (rule(expression("notrack"), verdict(1), comment=b"dns"), True),
        (rule(target("CT", 2, ct(1))), True),
        (rule(target("CT", 2, ct(0)), comment=b"a zone"), False),
        (rule(target("NOTRACK")), True),
        (rule(target("REJECT")), False),
        (rule(verdict(1), comment=b"notrack"), False),
        (rule(expression("notrack"), table="ipvsproxy"), False),  # direct server return
        (rule(expression("notrack"), table="ipvsproxy2"), True),
        (rule(target("CT", 2)), False),
    ],
)
def test_rules_that_keep_packets_from_conntrack(found, hides):
    assert keeps_from_conntrack(found) is hides


class HidingNode:
    """What is to be read of a node: rules of nf_tables, tables of legacy iptables, and a setting."""

    def __init__(self):
        self.rules, self.blobs, self.loose, self.failure = [], {}, 1, None

    def dump(self, _question):
        if self.failure:
            raise self.failure
        return self.rules


@pytest.fixture
def node(monkeypatch):
    made = HidingNode()
    monkeypatch.setattr(notrack, "Wire", lambda _: made)
    monkeypatch.setattr(notrack, "read_sysctl", lambda _: made.loose)
    monkeypatch.setattr(notrack, "blobs", lambda program, only: made.blobs.get((program, only), []))
    return made


def test_a_usual_node_has_none(node):
    node.rules = [rule(target("CT", 2, ct(0))), rule(expression("notrack"), table="ipvsproxy")]
    assert not Notrack().is_there()


def test_what_was_there_once_stays(node):
    found = Notrack()
    assert not found.is_there()
    node.rules = [rule(verdict(1)), HIDES]
    assert found.is_there()
    node.rules = []
    assert found.is_there()
    assert not Notrack().is_there()


@pytest.mark.parametrize(("loose", "is_there"), [(1, False), (0, True), (None, False)])
def test_connections_that_are_not_taken_up_in_the_middle(node, loose, is_there):
    node.loose = loose
    assert Notrack().is_there() is is_there


@pytest.mark.parametrize("program", ["iptables-legacy", "ip6tables-legacy"])
@pytest.mark.parametrize(("flags", "is_there"), [(1, True), (0, False)])
def test_the_table_raw_of_legacy_iptables(node, monkeypatch, program, flags, is_there):
    monkeypatch.setattr(notrack, "parse", lambda _, table: real_parse("iptables-legacy", table))
    info = ct(flags)
    hides = entry(PIECE.pack(PIECE.size + len(info), b"CT", 2) + info)
    node.blobs[program, "raw"] = [blob(hides, entry(standard(ACCEPT)), underflow=1)]
    assert Notrack().is_there() is is_there


real_parse = notrack.parse


def test_rules_that_cannot_be_read_may_hide_something(node):
    node.failure = KernelError("netlink dump", errno.EPERM)
    with capture_logs() as logs:
        assert Notrack().is_there()
    assert [entry["log_level"] for entry in logs] == ["warning"]
