"""What rules of other programs would do to a packet, as far as that can be told."""

import pytest

from ipvsproxy.diagnosis.filters import UNKNOWN, Book, Chain, Match, Rule, judge

POD = bytes([10, 244, 1, 10])
PACKET = {"saddr": POD, "l4proto": b"\x06", "dport": (80).to_bytes(2), "iifname": b"cni0"}
PODS = Match("saddr", bytes([10, 244, 0, 0]), bytes([10, 244, 0, 0]), bytes([255, 255, 0, 0]))


def chain(*rules, name="f", hook="forward", policy="accept"):
    return Chain("inet", "fw", name, hook, "filter" if hook else "", 0, policy, rules)


def outcome(*chains, packet=PACKET):
    return Book(chains).walk(chains[0], packet)


@pytest.mark.parametrize(
    ("match", "expected"),
    [
        (PODS, True),
        (Match("saddr", POD, POD, b"", negated=True), False),
        (Match("saddr", bytes(16), bytes(16)), False),
        (Match("dport", (79).to_bytes(2), (81).to_bytes(2)), True),
        (Match("dport", (81).to_bytes(2), (90).to_bytes(2)), False),
        (Match("daddr", POD, POD), None),
        (Match(UNKNOWN), None),
        (Match("iifname", b"cni0\0", b"cni0\0"), True),
        (Match("iifname", b"cni", b"cni"), True),
        (Match("iifname", b"cni\0", b"cni\0"), False),
        (Match("iifname", b"eth", b"eth", b"", negated=True), True),
    ],
)
def test_a_condition_holds_or_not_or_nobody_knows(match, expected):
    assert judge(Rule(matches=(match,)), PACKET) is expected


def test_one_condition_that_fails_outweighs_those_unknown():
    assert judge(Rule(matches=(Match(UNKNOWN), Match("l4proto", b"\x11", b"\x11"))), PACKET) is False


def test_the_policy_counts_when_no_rule_does():
    found = outcome(chain(Rule(1, (Match("l4proto", b"\x11", b"\x11"),), "accept"), policy="drop"))
    assert (found.verdict, found.where, found.certain) == ("drop", "the policy of inet fw f", True)


def test_the_first_rule_that_ends_it_is_named():
    found = outcome(
        chain(Rule(7, (), "", "", 1), Rule(8, (PODS,), "drop", comment="no pods"), Rule(9, (), "accept"))
    )
    assert (found.verdict, found.where) == ("drop", "rule 8 of inet fw f (no pods)")


def test_jumps_return_and_gotos_do_not():
    inner = chain(Rule(5, (PODS,), "return"), Rule(6, (), "drop"), name="inner", hook="")
    assert outcome(chain(Rule(1, (), "jump", "inner"), Rule(2, (), "reject")), inner).verdict == "reject"
    assert outcome(chain(Rule(1, (), "goto", "inner"), Rule(2, (), "reject")), inner).verdict == "accept"
    assert outcome(chain(Rule(1, (), "jump", "gone")), inner).verdict == "accept"
    endless = chain(Rule(1, (), "jump", "f"))
    assert outcome(endless).verdict == "accept"


def test_what_cannot_be_read_is_a_doubt_and_changes_no_verdict():
    inner = chain(Rule(5, (), "accept"), name="inner", hook="")
    found = outcome(chain(Rule(1, (Match(UNKNOWN),), "jump", "inner"), policy="drop"), inner)
    assert (found.verdict, found.doubts) == ("drop", ("rule 5 of inet fw inner: accept",))


def test_a_mark_that_a_rule_has_changed_is_not_known_any_more():
    marked = Match("mark", b"\0\1\0\0", b"\0\1\0\0", b"\0\1\0\0")
    packet = PACKET | {"mark": bytes(4)}
    assert outcome(chain(Rule(1, (marked,), "accept"), policy="drop"), packet=packet).certain
    found = outcome(
        chain(Rule(1, (PODS,), marks=0x100), Rule(2, (marked,), "accept"), policy="drop"), packet=packet
    )
    assert (found.verdict, found.doubts) == ("drop", ("rule 2 of inet fw f: accept",))


def test_base_chains_in_the_order_of_their_priorities():
    late, early = chain(name="late"), Chain("ip", "t", "early", "forward", "filter", -5)
    other = Chain("ip6", "t", "six", "forward", "filter", -7)
    assert [c.name for c in Book((late, early, other)).base("forward")] == ["early", "late"]
