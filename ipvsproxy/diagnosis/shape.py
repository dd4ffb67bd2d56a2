"""What rules each chain of our table must have, as far as one line tells: their number and how each one ends."""

import re
from collections.abc import Sequence

from ipvsproxy.ruleset.filters import FilterRule

NO_RULES = ("type ", "#", "policy ")
ENDS = (re.compile(r"\b((?:goto|jump) \w+|accept|drop|return)$"), re.compile(r"\b(masquerade|reject|dnat)\b"))
"""A verdict with its chain at the end of a rule, or else a statement that is one."""


def rules_by_chain(text: str) -> dict[str, tuple[str, ...]]:
    """Return how each rule of each chain in the text of a ruleset ends; empty where one word is not enough."""
    found: dict[str, list[str]] = {}
    chain = ""
    for line in map(str.strip, text.splitlines()):
        if line.startswith("chain ") and line.endswith("{"):
            chain = line.split()[1]
            found[chain] = []
        elif line == "}":
            chain = ""
        elif chain and line and not line.startswith(NO_RULES):
            end = next(filter(None, (pattern.search(line) for pattern in ENDS)), None)
            found[chain].append(end[1] if end else "")
    return {name: tuple(ends) for name, ends in found.items()}


def in_order(ends: tuple[str, ...], rules: Sequence[FilterRule]) -> tuple[str, ...]:
    """Return the ends of the rules of a chain that several parts of the ruleset have, in the order of the kernel.

    They add their rules as they are loaded, and are independent of each other.
    """
    seen = [ending(rule) for rule in rules]
    return tuple(sorted(ends, key=lambda end: seen.index(end) if end in seen else len(seen)))


def ending(rule: FilterRule) -> str:
    """Return how a rule ends, as `rules_by_chain` does."""
    return f"{rule.verdict} {rule.target}".rstrip()
