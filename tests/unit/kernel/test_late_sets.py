"""What packets would find a moment late is decided by rules in its place, wherever that could be noticed."""

import errno

import pytest

from ipvsproxy.kernel.late_sets import LATE_SETS, MAX_RULES, rules_in_place
from ipvsproxy.kernel.scripts import PARTS, Scripts
from ipvsproxy.plan.diff import ElementStep
from ipvsproxy.plan.state import Dirty
from ipvsproxy.ruleset.schema import SETS
from nft import NftError
from tests.support.elements import element
from tests.support.memory_kernel import MemoryNode

FOUR, SIX = "203.0.113.5", "2001:db8::5"
TO_OWN, MASKED = "goto own", "goto masquerade_always"
RULES = [
    (
        element("allowed4", f"{FOUR} . tcp . 443 . 10.0.0.0/8"), "", "excluded", "drop",
        f"ct original ip daddr {FOUR} meta l4proto tcp ct original proto-dst 443 ip saddr 10.0.0.0/8 return",
    ),
    (
        element("allowed6", f"{SIX} . udp . 53 . fd00::/16"), "", "excluded", "drop",
        f"ct original ip6 daddr {SIX} meta l4proto udp ct original proto-dst 53 ip6 saddr fd00::/16 return",
    ),
    (
        element("ping_allowed4", f"{FOUR} . 10.0.0.0/8"), "", "ping_excluded", "drop",
        f"ip daddr {FOUR} ip saddr 10.0.0.0/8 return",
    ),
    (
        element("ping_allowed6", f"{SIX} . fd00::/16"), "", "ping_excluded", "drop",
        f"ip6 daddr {SIX} ip6 saddr fd00::/16 return",
    ),
    (
        element("port_ranges4", f"{FOUR} . udp . 30000-30010"), TO_OWN, "outside_ranges", "goto guard",
        f"ct original ip daddr {FOUR} meta l4proto udp ct original proto-dst 30000-30010 goto own",
    ),
    (
        element("port_ranges6", f"{SIX} . sctp . 21"), "drop", "outside_ranges", "goto guard",
        f"ct original ip6 daddr {SIX} meta l4proto sctp ct original proto-dst 21 drop",
    ),
    (
        element("range_masquerade4", f"{FOUR} . udp . 1-65535"), MASKED, "no_range_masquerade", "accept",
        f"ct original ip daddr {FOUR} meta l4proto udp ct original proto-dst 1-65535 goto masquerade_always",
    ),
    (
        element("range_masquerade6", f"{SIX} . tcp . 1-2"), MASKED, "no_range_masquerade", "accept",
        f"ct original ip6 daddr {SIX} meta l4proto tcp ct original proto-dst 1-2 goto masquerade_always",
    ),
]  # fmt: skip


@pytest.fixture
def node():
    return MemoryNode()


@pytest.fixture
def rules(node):
    made = node.kernel().rules
    made.load({})
    node.nft.transactions.clear()
    return made


def insertion(chain, rule):
    return f"insert rule inet ipvsproxy {chain} {rule}"


def withdrawal(chain, last):
    return f"flush chain inet ipvsproxy {chain}\nadd rule inet ipvsproxy {chain} {last}\n"


def add(rules, slot, value, *deleted):
    """Have one element added, and others deleted in the same transaction."""
    failed = Dirty()
    rules.change([ElementStep(slot, value), *(ElementStep(other, None) for other in deleted)], failed)
    assert not failed


def test_all_sets_of_intervals_with_several_fields_are_late():
    assert {kind.name for kind in SETS.values() if kind.interval and kind.is_concatenated} == {
        kind.name for kind in LATE_SETS
    }
    assert {slot.set.name for slot, *_ in RULES} == {kind.name for kind in LATE_SETS}


@pytest.mark.parametrize("chain", sorted(set(LATE_SETS.values())))
def test_the_script_leads_to_a_chain_of_others_and_has_these_rules_in_it(chain):
    text = Scripts().whole(PARTS)
    body = "".join(f"\t\t{rule}\n" for rule in chain.rules)
    assert f"\tchain {chain.name} {{\n{body}\t}}\n" in text
    assert f"goto {chain.name}\n" in text


@pytest.mark.parametrize(("slot", "value", "chain", "last", "rule"), RULES)
def test_loaded_elements_are_rules_until_their_sets_are_seen(node, rules, slot, value, chain, last, rule):
    rules.load({slot: value})
    first, second = node.nft.transactions
    assert first.splitlines()[-1] == insertion(chain, rule)
    assert second == withdrawal(chain, last)


@pytest.mark.parametrize(("slot", "value", "chain", "last", "rule"), RULES)
def test_restored_elements_are_rules_until_their_sets_are_seen(node, rules, slot, value, chain, last, rule):
    rules.load({slot: value})
    node.nft.transactions.clear()
    assert not rules.restore([slot.set.name], whole=False)
    first, second = node.nft.transactions
    assert first.splitlines()[-1] == insertion(chain, rule)
    assert first.startswith(f"flush {'map' if slot.set.value else 'set'} inet ipvsproxy {slot.set.name}\n")
    assert second == withdrawal(chain, last)


@pytest.mark.parametrize(("slot", "value", "chain", "last", "rule"), RULES)
def test_elements_that_come_to_what_is_in_use_are_rules_until_they_are_seen(
    node, rules, slot, value, chain, last, rule
):
    add(rules, slot.restricted_frontend, "goto own" if slot.restricted_frontend.set.value else "")
    node.nft.transactions.clear()
    add(rules, slot, value)
    first, second = node.nft.transactions
    assert first.splitlines()[-1] == insertion(chain, rule)
    assert second == withdrawal(chain, last)
    # Nothing has to be covered when one goes.
    rules.change([ElementStep(slot, None)], Dirty())
    assert len(node.nft.transactions) == 3


@pytest.mark.parametrize(("slot", "value"), [row[:2] for row in RULES])
def test_what_is_not_in_use_yet_needs_no_rules(node, rules, slot, value):
    add(rules, slot, value)
    assert len(node.nft.transactions) == 1
    assert "insert rule" not in node.nft.transactions[0]


def test_rules_that_could_not_be_withdrawn_go_before_anything_else_changes(node, rules):
    """They would go on letting in what has been excluded since."""
    slot = RULES[0][0]
    add(rules, slot.restricted_frontend, "goto own")
    failing = [NftError(errno.ENOMEM, "no memory")]
    run = node.nft.run

    def run_but_once(transaction):
        if str(transaction).startswith("flush chain") and failing:
            raise failing.pop()
        run(transaction)

    node.nft.run = run_but_once
    add(rules, slot, "")
    assert rules.in_doubt
    node.nft.transactions.clear()
    assert not rules.reload()
    assert not rules.in_doubt
    assert node.nft.transactions[-1] == withdrawal("excluded", "drop")


def test_rules_are_few(node):
    addresses = (f"10.0.{n // 256}.{n % 256}" for n in range(MAX_RULES + 5))
    many = [(element("port_ranges4", f"{address} . tcp . 1-9"), TO_OWN) for address in addresses]
    ((chain, texts),) = rules_in_place(many).items()
    assert (chain.name, len(texts)) == ("outside_ranges", MAX_RULES)
    others = [(element("vips4", FOUR), ""), (element("frontends4", f"{FOUR} . tcp . 80"), TO_OWN)]
    assert rules_in_place(others) == {}
