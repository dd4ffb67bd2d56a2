"""What rules of other programs would do to a packet, as far as that can be told."""

import pytest

from ipvsproxy.ruleset.filters import UNKNOWN, Condition, FilterChain, FilterRule, FilterTables, judge

POD = bytes([10, 244, 1, 10])
PACKET = {"saddr": POD, "l4proto": b"\x06", "dport": (80).to_bytes(2), "iifname": b"cni0"}
PODS = Condition("saddr", bytes([10, 244, 0, 0]), bytes([10, 244, 0, 0]), bytes([255, 255, 0, 0]))


def chain(*rules, name="f", hook="forward", policy="accept"):
    return FilterChain("inet", "fw", name, hook, "filter" if hook else "", 0, policy, rules)


def outcome(*chains, packet=PACKET):
    return FilterTables(chains).walk(chains[0], packet)


@pytest.mark.parametrize(
    ("match", "expected"),
    [
        (PODS, True),
        (Condition("saddr", POD, POD, b"", negated=True), False),
        (Condition("saddr", bytes(16), bytes(16)), False),
        (Condition("dport", (79).to_bytes(2), (81).to_bytes(2)), True),
        (Condition("dport", (81).to_bytes(2), (90).to_bytes(2)), False),
        (Condition("daddr", POD, POD), None),
        (Condition(UNKNOWN), None),
        (Condition("iifname", b"cni0\0", b"cni0\0"), True),
        (Condition("iifname", b"cni", b"cni"), True),
        (Condition("iifname", b"cni\0", b"cni\0"), False),
        (Condition("iifname", b"eth", b"eth", b"", negated=True), True),
    ],
)
def test_a_condition_holds_or_not_or_no_one_knows(match, expected):
    assert judge(FilterRule(matches=(match,)), PACKET) is expected


def test_one_condition_that_fails_outweighs_those_unknown():
    assert judge(FilterRule(matches=(Condition(UNKNOWN), Condition("l4proto", b"\x11", b"\x11"))), PACKET) is False


def test_the_policy_counts_when_no_rule_does():
    found = outcome(chain(FilterRule(1, (Condition("l4proto", b"\x11", b"\x11"),), "accept"), policy="drop"))
    assert (found.verdict, found.where, found.certain) == ("drop", "the policy of inet fw f", True)


def test_the_first_rule_that_ends_it_is_named():
    found = outcome(
        chain(
            FilterRule(7, (), "", "", 1),
            FilterRule(8, (PODS,), "drop", comment="no pods"),
            FilterRule(9, (), "accept"),
        )
    )
    assert (found.verdict, found.where) == ("drop", "rule 8 of inet fw f (no pods)")


def test_jumps_return_and_gotos_do_not():
    inner = chain(FilterRule(5, (PODS,), "return"), FilterRule(6, (), "drop"), name="inner", hook="")
    assert (
        outcome(chain(FilterRule(1, (), "jump", "inner"), FilterRule(2, (), "reject")), inner).verdict == "reject"
    )
    assert (
        outcome(chain(FilterRule(1, (), "goto", "inner"), FilterRule(2, (), "reject")), inner).verdict == "accept"
    )
    assert outcome(chain(FilterRule(1, (), "jump", "gone")), inner).verdict == "accept"
    endless = chain(FilterRule(1, (), "jump", "f"))
    assert outcome(endless).verdict == "accept"


def test_what_cannot_be_read_is_a_doubt_and_changes_no_verdict():
    inner = chain(FilterRule(5, (), "accept"), name="inner", hook="")
    found = outcome(chain(FilterRule(1, (Condition(UNKNOWN),), "jump", "inner"), policy="drop"), inner)
    assert (found.verdict, found.doubts) == ("drop", ("rule 5 of inet fw inner: accept",))


def test_a_mark_that_a_rule_has_changed_is_not_known_any_more():
    marked = Condition("mark", b"\0\1\0\0", b"\0\1\0\0", b"\0\1\0\0")
    packet = PACKET | {"mark": bytes(4)}
    assert outcome(chain(FilterRule(1, (marked,), "accept"), policy="drop"), packet=packet).certain
    found = outcome(
        chain(FilterRule(1, (PODS,), marks=0x100), FilterRule(2, (marked,), "accept"), policy="drop"),
        packet=packet,
    )
    assert (found.verdict, found.doubts) == ("drop", ("rule 2 of inet fw f: accept",))


def test_base_chains_in_the_order_of_their_priorities():
    late, early = chain(name="late"), FilterChain("ip", "t", "early", "forward", "filter", -5)
    other = FilterChain("ip6", "t", "six", "forward", "filter", -7)
    assert [c.name for c in FilterTables((late, early, other)).base("forward")] == ["early", "late"]
