"""Which rules `doctor` looks for: those of the parts that are there, in the order that they came in."""

from itertools import permutations

import pytest

from ipvsproxy.base.names import TABLE
from ipvsproxy.commands.survey_kernel import _our_rules
from ipvsproxy.diagnosis.facts import Facts, SettingsFacts
from ipvsproxy.diagnosis.finding import CheckResult
from ipvsproxy.diagnosis.programmed import check_ruleset
from ipvsproxy.diagnosis.shape import rules_by_chain
from ipvsproxy.kernel.scripts import RANGES_OF_NODE, part, ruleset
from ipvsproxy.ruleset.filters import FilterChain, FilterRule
from ipvsproxy.ruleset.schema import LONG_DATAGRAMS, SHORT_PATH
from tests.support.build import config

EXTENDED = "output"
"""The chain to which all these parts add rules."""
THREE = (LONG_DATAGRAMS, SHORT_PATH, RANGES_OF_NODE)


def loaded(*parts):
    """The chains of a kernel that has been given some parts, one after the other."""
    found = {}
    for text in (ruleset(quiet_arp=False, parts=()), *map(part, parts)):
        for name, ends in rules_by_chain(text).items():
            found.setdefault(name, []).extend(ends)
    return [
        FilterChain("inet", TABLE, name, "", "", 0, rules=tuple(map(ending_with, ends)))
        for name, ends in found.items()
    ]


def ending_with(end):
    verdict, _, target = end.partition(" ")
    return FilterRule(verdict=verdict, target=target)


def judged(chains):
    facts = Facts(
        settings=SettingsFacts("node1"), chains=tuple(chains), our_rules=_our_rules(config(), chains, None)
    )
    return list(check_ruleset(facts))


@pytest.mark.parametrize(
    "parts", [(), *((name,) for name in THREE), *permutations(THREE[1:]), *permutations(THREE)]
)
def test_parts_may_have_come_in_any_order(parts):
    chains = loaded(*parts)
    (finding,) = judged(chains)
    assert finding.verdict is CheckResult.OK
    assert sum(len(chain.rules) for chain in chains if chain.name == EXTENDED) == len(parts)


def test_a_rule_that_has_gone_from_a_chain_of_several_parts_is_missed():
    chains = loaded(*THREE)
    less = [
        FilterChain("inet", TABLE, c.name, "", "", 0, rules=c.rules[: -(c.name == EXTENDED) or None])
        for c in chains
    ]
    (finding,) = judged(less)
    assert finding.verdict is CheckResult.PROBLEM
    assert "chain output: 2 rules, not 3" in str(finding)
