import errno
import sys
from functools import partial

import pytest
from structlog.testing import capture_logs

from ipvsproxy.base import messages
from ipvsproxy.kernel import forward
from ipvsproxy.kernel.wire.netlink import KernelError, Lost, attribute
from ipvsproxy.ruleset.filters import Condition, FilterChain, FilterRule
from nft.fake import FakeNft


@pytest.mark.parametrize(
    "error", [Lost("netlink request", errno.ENOBUFS), KernelError("netlink dump", errno.EPERM)]
)
def test_chains_of_others_that_cannot_be_read_cost_nothing_else(monkeypatch, error):
    class Mute:
        def __init__(self, protocol):
            pass

        def request(self, _question):
            raise error

    monkeypatch.setattr(forward, "Wire", Mute)
    nft = FakeNft()
    with capture_logs() as logs:
        assert forward.Forwarding(nft).ensure()  # they may drop
    assert nft.transactions == []
    assert {entry["family"] for entry in logs} == {"ip", "ip6"}


class Chains:
    """The FORWARD chains of iptables-nft in both families, with our rule of an earlier mark."""

    def __init__(self, protocol):
        pass

    def request(self, _question):
        return b""

    def dump(self, _question):
        text = b"ipvsproxy replies 0x8000\0"
        data = bytes((0, len(text))) + text
        handle = attribute(forward.NFTA_RULE_HANDLE, (7).to_bytes(8, "big"))
        return [bytes(forward.NFGENMSG.size) + handle + attribute(forward.NFTA_RULE_USERDATA, data)]


@pytest.fixture
def forwarding(monkeypatch):
    monkeypatch.setattr(forward, "Wire", Chains)
    chains = {"FORWARD": FilterChain("ip", "filter", "FORWARD", policy="drop")}
    monkeypatch.setattr(forward, "read_table", lambda *_: chains)
    nft = FakeNft()
    return forward.Forwarding(nft), nft


STATE = partial(Condition, "ctstate", bytes(4), bytes(4), negated=True)
"""The condition of `ct state`, by a mask of states."""
ESTABLISHED, KNOWN, INVALID, NEW = (number.to_bytes(4, sys.byteorder) for number in (2, 6, 1, 8))


def chain(*rules, policy="accept", name="FORWARD"):
    return FilterChain("ip", "filter", name, policy=policy, rules=rules)


@pytest.mark.parametrize(
    ("chains", "drops"),
    [
        ([], False),
        ([chain()], False),
        ([chain(policy="drop")], True),
        ([chain(FilterRule(matches=(STATE(mask=KNOWN),), verdict="accept"), policy="drop")], False),
        ([chain(FilterRule(matches=(STATE(mask=ESTABLISHED),), verdict="accept"), policy="drop")], True),
        ([chain(FilterRule(matches=(STATE(mask=NEW),), verdict="accept"), policy="drop")], True),
        ([chain(FilterRule(verdict="drop"))], True),
        (
            [chain(FilterRule(matches=(Condition("daddr", b"\x0a\0\0\0", b"\x0a\0\0\xff"),), verdict="reject"))],
            True,
        ),
        ([chain(FilterRule(matches=(Condition("?"),), verdict="queue"))], True),
        ([chain(FilterRule(verdict="?"))], True),
        (
            [
                chain(
                    FilterRule(matches=(Condition("?"),), verdict="accept"),
                    FilterRule(verdict=""),
                    FilterRule(verdict="return"),
                )
            ],
            False,
        ),
        ([chain(FilterRule(matches=(STATE(mask=INVALID),), verdict="drop"))], False),
        ([chain(FilterRule(matches=(STATE(mask=NEW),), verdict="drop"))], False),
        ([chain(FilterRule(matches=(STATE(mask=KNOWN),), verdict="accept"), FilterRule(verdict="drop"))], False),
        (
            [
                chain(
                    FilterRule(matches=(STATE(mask=ESTABLISHED), Condition("?")), verdict="accept"),
                    FilterRule(verdict="drop"),
                )
            ],
            True,
        ),
        ([chain(FilterRule(verdict="jump", target="a")), chain(FilterRule(verdict="drop"), name="a")], True),
        (
            [
                chain(FilterRule(verdict="goto", target="a")),
                chain(FilterRule(verdict="jump", target="FORWARD"), name="a"),
            ],
            False,
        ),
        ([chain(), chain(FilterRule(verdict="drop"), name="a")], False),
    ],
)
def test_replies_are_marked_where_a_rule_may_lose_them(chains, drops):
    assert forward.may_drop({found.name: found for found in chains}) is drops


def test_where_nothing_can_drop_there_is_no_rule_and_an_old_one_goes(forwarding, monkeypatch):
    forwarding, nft = forwarding
    monkeypatch.setattr(forward, "read_table", lambda *_: {"FORWARD": chain()})
    assert not forwarding.ensure()
    assert nft.transactions == []
    forwarding.tidy()
    assert [text.split()[0] for text in nft.transactions] == ["delete", "delete"]


def test_new_connections_count_where_there_is_a_short_path(forwarding, monkeypatch):
    forwarding, _ = forwarding
    established = chain(FilterRule(matches=(STATE(mask=KNOWN),), verdict="accept"), policy="drop")
    monkeypatch.setattr(forward, "read_table", lambda *_: {"FORWARD": established})
    assert not forwarding.ensure()
    assert forwarding.ensure(new=True)


def test_what_was_needed_once_stays(forwarding, monkeypatch):
    forwarding, _ = forwarding
    assert forwarding.ensure()
    monkeypatch.setattr(forward, "read_table", lambda *_: {"FORWARD": chain()})
    assert forwarding.ensure()


def test_a_rule_of_another_mark_stays_until_ours_counts(forwarding):
    forwarding, nft = forwarding
    with capture_logs() as logs:
        forwarding.ensure()
    assert [text[:32] for text in nft.transactions] == [
        "insert rule ip filter FORWARD me", "insert rule ip6 filter FORWARD m",
    ]  # fmt: skip
    # At the head: behind a rule that drops it would be none.
    assert all(len(text.splitlines()) == 1 for text in nft.transactions)
    assert [entry["log_level"] for entry in logs] == ["info", "info"]
    nft.transactions.clear()
    forwarding.tidy()
    assert nft.transactions == [
        "delete rule ip filter FORWARD handle 7\n", "delete rule ip6 filter FORWARD handle 7\n"
    ]  # fmt: skip


def test_an_old_rule_that_cannot_be_removed_is_reported(forwarding):
    forwarding, nft = forwarding
    nft.fail_next = errno.EBUSY
    with capture_logs() as logs:
        forwarding.tidy()
    assert [entry["event"] for entry in logs] == [messages.FORWARD_RULE_STAYS]


def test_a_rule_that_cannot_be_added_is_not_reported_as_added(forwarding):
    forwarding, nft = forwarding
    nft.fail_next = errno.EBUSY
    with capture_logs() as logs:
        forwarding.ensure()
    assert [entry["log_level"] for entry in logs] == ["warning", "info"]


def test_a_rule_that_cannot_be_removed_is_reported(forwarding):
    forwarding, nft = forwarding
    nft.fail_next = errno.EBUSY
    (problem,) = forwarding.remove()
    assert problem.startswith("rule in ip filter FORWARD: ")
    assert forwarding.remove() == []
