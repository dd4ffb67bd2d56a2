"""Rules in place of new elements that packets find late: those of sets of intervals with several fields.

The kernel shows packets what a transaction has changed in such a set later than all the rest of it
(nft_pipapo_commit, at the end of the transaction; with 100,000 elements, 17 ms were seen). For that moment each
new element is a rule as well, in a chain for packets that have found no element. A second transaction takes the
rules away.
"""

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import NamedTuple

from ipvsproxy.ruleset.codec import rule_text
from ipvsproxy.ruleset.elements import Element
from ipvsproxy.ruleset.schema import ALLOWED, PING_ALLOWED, PORT_RANGES, RANGE_MASQUERADE, SetSchema
from nft import Transaction

MAX_RULES = 1000
"""In one chain; what other elements decide about may have to be tried again by clients."""


class ChainOfOthers(NamedTuple):
    """A chain for packets that have found no element of some sets, and the rules that the script has in it."""

    name: str
    rules: tuple[str, ...]


LATE_SETS: Mapping[SetSchema, ChainOfOthers] = {
    kind: chain
    for kinds, chain in (
        (ALLOWED, ChainOfOthers("excluded", ("drop",))),
        (PING_ALLOWED, ChainOfOthers("ping_excluded", ("drop",))),
        (PORT_RANGES, ChainOfOthers("outside_ranges", ("goto guard",))),
        (RANGE_MASQUERADE, ChainOfOthers("no_range_masquerade", ("accept",))),
    )
    for kind in kinds.values()
}
RulesInPlace = Mapping[ChainOfOthers, list[str]]


def rules_in_place(elements: Iterable[Element]) -> RulesInPlace:
    """Return rules that do what new elements of late sets do, by chain, MAX_RULES each at most."""
    found: dict[ChainOfOthers, list[Element]] = {}
    for element in [item for item in elements if item[0].set in LATE_SETS]:  # hardly any is
        found.setdefault(LATE_SETS[element[0].set], []).append(element)
    return {chain: [rule_text(*item) for item in islice(items, MAX_RULES)] for chain, items in found.items()}


def add_rules(transaction: Transaction, rules: RulesInPlace) -> None:
    """Have a transaction make rules in place of its elements, at the head of their chains."""
    for chain, texts in rules.items():
        transaction.insert_rules(chain.name, texts)


def withdraw_rules(transaction: Transaction, rules: RulesInPlace) -> None:
    """Have a transaction leave in their chains what the script has."""
    for chain in rules:
        transaction.replace_rules(chain.name, chain.rules)
