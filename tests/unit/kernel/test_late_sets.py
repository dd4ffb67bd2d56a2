"""What packets would find a moment late is decided by rules in its place, wherever that could be noticed."""

import errno
import re

import pytest

from ipvsproxy.kernel.late_sets import LATE_SETS, rules_in_place
from ipvsproxy.kernel.scripts import PARTS, Scripts
from ipvsproxy.plan.diff import ElementStep
from ipvsproxy.plan.state import Dirty
from ipvsproxy.ruleset.schema import SETS
from nft import NftError
from tests.support.elements import element
from tests.support.memory_kernel import MemoryNode

FOUR, SIX = "203.0.113.5", "2001:db8::5"
TO_OWN, MASKED = "goto own", "goto masquerade_always"
NAT4, NAT6 = (f"meta l4proto {{ tcp, udp, sctp }} ct original {ip} daddr . meta l4proto" for ip in ("ip", "ip6"))
RULES = [
    (
        element("allowed4", f"{FOUR} . tcp . 443 . 10.0.0.0/8"), "", "excluded", "drop",
        (f"{NAT4} . ct original proto-dst vmap {{ {FOUR} . tcp . 443 : goto late_0 }}",
         "ip saddr 10.0.0.0/8 return"),
    ),
    (
        element("allowed6", f"{SIX} . udp . 53 . fd00::/16"), "", "excluded", "drop",
        (f"{NAT6} . ct original proto-dst vmap {{ {SIX} . udp . 53 : goto late_0 }}",
         "ip6 saddr fd00::/16 return"),
    ),
    (
        element("ping_allowed4", f"{FOUR} . 10.0.0.0/8"), "", "ping_excluded", "drop",
        (f"ip daddr vmap {{ {FOUR} : goto late_0 }}",
         "ip saddr 10.0.0.0/8 return"),
    ),
    (
        element("ping_allowed6", f"{SIX} . fd00::/16"), "", "ping_excluded", "drop",
        (f"ip6 daddr vmap {{ {SIX} : goto late_0 }}",
         "ip6 saddr fd00::/16 return"),
    ),
    (
        element("port_ranges4", f"{FOUR} . udp . 30000-30010"), TO_OWN, "outside_ranges", "goto guard",
        (f"{NAT4} vmap {{ {FOUR} . udp : goto late_0 }}",
         "meta l4proto udp ct original proto-dst 30000-30010 goto own"),
    ),
    (
        element("port_ranges6", f"{SIX} . sctp . 21"), "drop", "outside_ranges", "goto guard",
        (f"{NAT6} vmap {{ {SIX} . sctp : goto late_0 }}",
         "meta l4proto sctp ct original proto-dst 21 drop"),
    ),
    (
        element("range_masquerade4", f"{FOUR} . udp . 1-65535"), MASKED, "no_range_masquerade", "accept",
        (f"{NAT4} vmap {{ {FOUR} . udp : goto late_0 }}",
         "meta l4proto udp ct original proto-dst 1-65535 goto masquerade_always"),
    ),
    (
        element("range_masquerade6", f"{SIX} . tcp . 1-2"), MASKED, "no_range_masquerade", "accept",
        (f"{NAT6} vmap {{ {SIX} . tcp : goto late_0 }}",
         "meta l4proto tcp ct original proto-dst 1-2 goto masquerade_always"),
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


def insertion(chain, lookup, *rules):
    """What leads from a chain to rules that stand in place of elements."""
    body = "".join(f"\t\t{rule}\n" for rule in rules)
    made = f"table inet ipvsproxy {{\n\tchain late_0 {{\n{body}\t}}\n}}\n"
    return f"{made}insert rule inet ipvsproxy {chain} {lookup}\n"


def withdrawal(chain, last):
    rules = f"flush chain inet ipvsproxy {chain}\nadd rule inet ipvsproxy {chain} {last}\n"
    return f"{rules}delete chain inet ipvsproxy late_0\n"


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


@pytest.mark.parametrize(("slot", "value", "chain", "last", "texts"), RULES)
def test_loaded_elements_are_rules_until_their_sets_are_seen(node, rules, slot, value, chain, last, texts):
    rules.load({slot: value})
    first, second = node.nft.transactions
    assert first.endswith(insertion(chain, *texts, last))
    assert second == withdrawal(chain, last)


@pytest.mark.parametrize(("slot", "value", "chain", "last", "texts"), RULES)
def test_restored_elements_are_rules_until_their_sets_are_seen(node, rules, slot, value, chain, last, texts):
    rules.load({slot: value})
    node.nft.transactions.clear()
    assert not rules.restore([slot.set.name], whole=False)
    first, second = node.nft.transactions
    assert first.endswith(insertion(chain, *texts, last))
    assert first.startswith(f"flush {'map' if slot.set.value else 'set'} inet ipvsproxy {slot.set.name}\n")
    assert second == withdrawal(chain, last)


@pytest.mark.parametrize(("slot", "value", "chain", "last", "texts"), RULES)
def test_elements_that_come_to_what_is_in_use_are_rules_until_they_are_seen(
    node, rules, slot, value, chain, last, texts
):
    add(rules, slot.restricted_frontend, "goto own" if slot.restricted_frontend.set.value else "")
    node.nft.transactions.clear()
    add(rules, slot, value)
    first, second = node.nft.transactions
    assert first.endswith(insertion(chain, *texts, last))
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


def test_frontends_with_the_same_intervals_share_a_chain():
    ranges, other = ("10.0.0.0/8", "192.168.0.0/16"), ("10.0.0.0/8",)
    frontends = [(f"10.0.{n // 256}.{n % 256} . tcp . 80", ranges if n % 2 else other) for n in range(3000)]
    many = [(element("allowed4", f"{name} . {source}"), "") for name, sources in frontends for source in sources]
    chains, ((chain, (lookup,)),) = (found := rules_in_place(many)).chains, found.lookups.items()
    assert chain.name == "excluded"
    assert chains == {
        f"late_{number}": (*(f"ip saddr {source} return" for source in sources), "drop")
        for number, sources in enumerate((other, ranges))
    }
    for number, sources in enumerate((other, ranges)):
        names = [name for name, mine in frontends if mine is sources]
        assert re.findall(rf"(\S+ \. tcp \. 80) : goto late_{number}\b", lookup) == names


def test_both_families_are_looked_up():
    both = [(element("port_ranges4", f"{FOUR} . tcp . 1-9"), TO_OWN)]
    both += [(element("port_ranges6", f"{SIX} . tcp . {ports}"), TO_OWN) for ports in ("1-9", "20")]
    found = rules_in_place(both)
    ((_, lookups),) = found.lookups.items()
    assert [lookup.split(" : ")[1] for lookup in lookups] == ["goto late_0 }", "goto late_1 }"]
    assert [len(rules) for rules in found.chains.values()] == [2, 3]


def test_what_is_found_at_once_needs_no_rules():
    others = [(element("vips4", FOUR), ""), (element("frontends4", f"{FOUR} . tcp . 80"), TO_OWN)]
    assert not rules_in_place(others)


def test_a_part_that_is_added_with_rules_in_place_is_known_afterwards(node, rules):
    """The chains of the moment must not count as those of another program."""
    slot = RULES[0][0]
    rules.load({slot.restricted_frontend: TO_OWN})
    add(rules, slot, "")
    assert [name for name in node.nft.chains if name.startswith("late_")] == []
    node.nft.transactions.clear()
    assert not rules.verify()
    assert node.nft.transactions == []
