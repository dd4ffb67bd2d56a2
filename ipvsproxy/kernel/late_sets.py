"""Rules in place of new elements that packets find late: those of sets of intervals with several fields.

The kernel shows packets what a transaction has changed in such a set later than all the rest of it
(nft_pipapo_commit, at the end of the transaction; with 100,000 elements, 17 ms were seen). For that moment each
new element is a rule as well, for packets that have found no element: one lookup, not late since it has no
interval, leads them to a chain with the intervals of their frontend. Frontends with the same intervals share
one. A second transaction takes all that away.
"""

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from ipvsproxy.base.frontend import FrontendKey
from ipvsproxy.ruleset.codec import interval_text, owners_text
from ipvsproxy.ruleset.elements import BySet, Element, ElementKey
from ipvsproxy.ruleset.schema import ALLOWED, PING_ALLOWED, PORT_RANGES, RANGE_MASQUERADE, SetSchema
from nft import Transaction

Owner = FrontendKey | bytes


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


class RulesInPlace(NamedTuple):
    """Chains with rules by name, and the rules that lead there from chains of others."""

    chains: Mapping[str, Sequence[str]]
    lookups: Mapping[ChainOfOthers, Sequence[str]]

    def __bool__(self) -> bool:
        return bool(self.chains)


def late_at_once(new: BySet, known: Container[ElementKey]) -> Iterator[Element]:
    """Yield new elements of late sets whose frontend is known, so that packets may meet them at once."""
    for kind in new.keys() & LATE_SETS.keys():
        for slot, value in new[kind]:
            if slot.restricted_frontend in known:
                yield slot, value


def late_of(new: BySet) -> BySet:
    """Take the elements of late sets out of new ones: where nothing asks for them yet, they can come before these.

    At a start rules of a kube-proxy may serve these frontends, so that packets meet what asks for ranges at once.
    """
    return {kind: new.pop(kind) for kind in LATE_SETS if kind in new}


def rules_in_place(elements: Iterable[Element]) -> RulesInPlace:
    """Return rules that do what new elements of late sets do."""
    chains: dict[str, Sequence[str]] = {}
    ways: dict[SetSchema, list[tuple[Owner, str]]] = {}
    for (kind, rules), owners in _by_rules(elements).items():
        name = f"late_{len(chains)}"
        chains[name] = (*rules, *LATE_SETS[kind].rules)
        ways.setdefault(kind, []).extend((owner, name) for owner in owners)
    lookups: dict[ChainOfOthers, list[str]] = {}
    for kind, ends in ways.items():
        lookups.setdefault(LATE_SETS[kind], []).append(owners_text(kind, ends))
    return RulesInPlace(chains, lookups)


def _by_rules(elements: Iterable[Element]) -> Mapping[tuple[SetSchema, tuple[str, ...]], Sequence[Owner]]:
    """Return the owners of elements of late sets by set and by the rules that do what their elements do."""
    rules: dict[tuple[SetSchema, Owner], list[str]] = {}
    for slot, value in [item for item in elements if item[0].set in LATE_SETS]:  # hardly any is
        if slot.owner is not None:
            rules.setdefault((slot.set, slot.owner), []).append(interval_text(slot, value))
    owners: dict[tuple[SetSchema, tuple[str, ...]], list[Owner]] = {}
    for (kind, owner), found in rules.items():
        owners.setdefault((kind, tuple(found)), []).append(owner)
    return owners


def add_rules(transaction: Transaction, rules: RulesInPlace) -> None:
    """Have a transaction make rules in place of its elements, and lead to them from the head of chains."""
    if rules:
        transaction.add_chains(rules.chains)
    for chain, texts in rules.lookups.items():
        transaction.insert_rules(chain.name, texts)


def withdraw_rules(transaction: Transaction, rules: RulesInPlace) -> None:
    """Have a transaction leave what the script has."""
    for chain in rules.lookups:
        transaction.replace_rules(chain.name, chain.rules)
    transaction.delete_chains(rules.chains)
