"""What the static rulesets must say, whatever else changes in them: their hooks, and both families alike.

Packets tell what rules do (tests/integration); a rule for one family only, or a chain on the wrong side of IPVS in
a path that no test takes, is seen here.
"""

import itertools
import re
from collections import Counter
from importlib.resources import files

import pytest

from ipvsproxy.base.names import NAT_PRIORITY
from ipvsproxy.diagnosis.shape import rules_by_chain
from ipvsproxy.kernel.scripts import FOR_UNTRACKED, PARTS, SHORT_INVALID, Scripts, part
from ipvsproxy.ruleset.schema import MOST_ENDPOINTS, SETS, SHORT_PATH, SHORT_VIEWS, VIEW_INVALID

IPVS_INPUT, IPVS_OUTPUT, NAT, CONNTRACK, POSTROUTING, RAW, DEFRAG = 98, -99, -100, -200, 100, -300, -400
NAMED = {"filter": 0, "srcnat": POSTROUTING, "mangle": -150}
HOOK = re.compile(r"type (\w+) hook (\w+) priority (\w+|-?\d+)(?: ([+-]) (\d+))?;")
BASES = {
    # The kernel runs all nat chains at -100 (output, prerouting) or 100; what counts is to be before others' ones.
    "prerouting": ("nat", "prerouting", range(CONNTRACK + 1, NAT)),
    # Before prerouting: the view for a group of sources comes before that for all local pods.
    "by_source": ("nat", "prerouting", range(CONNTRACK + 1, -110)),
    # As "leaving", for first packets only.
    "to_group": ("nat", "postrouting", range(POSTROUTING)),
    # Before IPVS.
    "untracked_by_source": ("filter", "input", range(CONNTRACK + 1, IPVS_INPUT)),
    "output_nat": ("nat", "output", range(CONNTRACK + 1, NAT)),
    "postrouting": ("nat", "postrouting", range(POSTROUTING, POSTROUTING + 1)),
    # What IPVS has not taken: the kernel runs nat chains of this hook at 100.
    "input": ("nat", "input", range(IPVS_INPUT + 2, IPVS_INPUT + 3)),
    # The same, and before "input" refuses.
    "handover": ("nat", "input", range(IPVS_INPUT, POSTROUTING)),
    # Before IPVS.
    "held": ("filter", "input", range(CONNTRACK + 1, IPVS_INPUT)),
    "held_node": ("filter", "output", range(CONNTRACK + 1, IPVS_OUTPUT)),
    "handover_node": ("filter", "output", range(IPVS_OUTPUT + 1, 0)),
    "handover_open": ("filter", "input", range(POSTROUTING + 1, 300)),
    "output": ("filter", "output", range(NAT + 1, IPVS_OUTPUT + 1)),
    # Marked before the FORWARD chain of iptables looks, and unmarked after it.
    "forward": ("filter", "forward", range(-300, 0)),
    "unmark": ("filter", "forward", range(1, 100)),
    # Before the decision about the frontend: a client that is excluded gets no answer.
    "prerouting_ranges": ("nat", "prerouting", range(CONNTRACK + 1, NAT_PRIORITY)),
    "output_ranges": ("nat", "output", range(CONNTRACK + 1, NAT_PRIORITY)),
    # Before IPVS, which takes what conntrack does not place (a client's reset, for one), and before the host.
    "input_invalid": ("filter", "input", range(CONNTRACK + 1, IPVS_INPUT)),
    # What conntrack cannot translate must come to nobody.
    "forward_short": ("filter", "forward", range(CONNTRACK + 1, 300)),
    # Before the chain for single ports, which ends with what is true of all others.
    "postrouting_ranges": ("nat", "postrouting", range(CONNTRACK + 1, POSTROUTING)),
    # Echo requests are answered behind the hook; who answers is a matter of the local address alone.
    "input_ping": ("filter", "input", range(CONNTRACK + 1, IPVS_INPUT)),
    # Before conntrack confirms a new connection, and before masquerading has changed its source.
    "leaving": ("nat", "postrouting", range(POSTROUTING)),
    # Whole packets, before conntrack and before others look at where they come from.
    "answers": ("filter", "prerouting", range(DEFRAG + 1, RAW)),
    # Copies of them, as they are sent.
    "copies": ("filter", "output", range(CONNTRACK + 1, 300)),
    # As soon as conntrack has called them invalid.
    "requests": ("filter", "prerouting", range(CONNTRACK + 1, NAT)),
}
"""By chain: kind, hook, and the priorities that do (docs/internals-packets.md, hooks and priorities)."""


def chains(*names):
    """Return the lines of each chain of some scripts, without comments."""
    found = {}
    texts = (files("nft").joinpath("rulesets", f"{name}.nft").read_text() for name in names)
    for whole in "".join(texts).splitlines():
        line = whole.partition("#")[0].strip()
        if match := re.match(r"chain (\w+) {", line):
            lines = found.setdefault(match[1], [])
        elif line == "}":
            lines = []
        elif found and line and not (lines and line.startswith("type ")):  # once for both tables of a family each
            lines.append(line)
    return found


def words(pattern, found):
    """Return what a pattern finds in the rules of some chains."""
    return {word for rules in found.values() for rule in rules for word in re.findall(pattern, rule)}


PART_CHAINS = {name: chains(name) for name in PARTS} | {SHORT_PATH: chains(SHORT_PATH, SHORT_INVALID)}
OWNERS = [chains("ipvsproxy"), chains("handover"), *PART_CHAINS.values()]
CHAINS: dict[str, list[str]] = {}
for owner in OWNERS:
    for chain, lines in owner.items():
        CHAINS.setdefault(chain, lines[:1]).extend(lines[1:])
SHARED = {"output", "input_invalid"}
"""Chains to which several parts add rules, and which each of them declares alike."""
FIRST = re.compile(
    r"ct state (?:(?:invalid|invalid,untracked|untracked) (?:goto|jump)|!= \w+ accept)"
    r"|ip saddr \. meta l4proto \. th sport @direct4 goto answer"  # before conntrack
    r"|@nh,0,32 & 0x0000fc00 != 0 meta l4proto udp jump allow_fragments"  # which is a matter of the length
    r"|icmp type echo-request goto check_ping"  # which is a matter of the protocol alone
    r"|ct direction original ct status and dnat == 0 accept|meta mark & \$reply == 0 accept"
)
"""What may come first in a filter chain: it has done with packets of established connections, or nearly so."""


def priority(chain):
    kind, hook, base, sign, more = HOOK.match(chain[0]).groups()
    number = NAMED[base] if base in NAMED else int(base)
    return kind, hook, number + (int(f"{sign}{more}") if more else 0)


def test_every_chain_hangs_where_it_must():
    found = {name: priority(lines) for name, lines in CHAINS.items() if lines[0].startswith("type ")}
    assert found.keys() == BASES.keys()
    for name, (kind, hook, number) in found.items():
        assert (kind, hook) == BASES[name][:2], name
        assert number in BASES[name][2], name


@pytest.mark.parametrize("chain", CHAINS)
def test_policies_accept(chain):
    """What is not ours passes: a packet is refused by a rule, never for the lack of one."""
    assert not CHAINS[chain][0].startswith("type ") or CHAINS[chain][0].endswith("policy accept;")


def test_no_chain_has_two_owners():
    owners = Counter(name for found in OWNERS for name in found)
    assert {name for name, count in owners.items() if count > 1} == SHARED
    for name in SHARED:
        heads, rules = zip(*((found[name][0], found[name][1:]) for found in OWNERS if name in found), strict=True)
        assert len(set(heads)) == 1
        assert heads[0].startswith("type ")
        assert all(" jump " in rule for rule in itertools.chain(*rules))  # what follows is another part's
        targets = led_to({name: list(itertools.chain(*rules))})
        assert not any("accept" in rule for target in targets for rule in CHAINS[target])


# A SYN that is sent once more is new, and meets no nat chain; and these are there for seconds.
OF_ALL_STATES = ("handover_open", "handover_node")


@pytest.mark.parametrize(
    "name", [name for name in CHAINS if BASES.get(name, ("",))[0] == "filter" and name not in OF_ALL_STATES]
)
def test_filter_chains_ask_for_the_state_of_the_connection_first(name):
    """Every packet of the node pays for what comes before."""
    first = [found[name][1] for found in OWNERS if name in found]
    assert first
    assert all(map(FIRST.match, first))


@pytest.mark.parametrize("part", PARTS)
def test_a_part_cannot_be_loaded_without_the_table_it_adds_to(part):
    """It would make a table of its own, without the rest."""
    names_sets = any("@" in rule for rules in PART_CHAINS[part].values() for rule in rules)
    assert names_sets or led_to(PART_CHAINS[part]) - PART_CHAINS[part].keys()


def led_to(found):
    return words(r"(?:goto|jump) (\w+)", found)


def test_a_part_that_another_one_needs_comes_behind_it():
    """Parts are loaded in the order of their names."""
    assert [(first, second) for first, second in FOR_UNTRACKED.items() if second < first] == []


def test_no_forwarded_packet_is_asked_for_its_state_where_conntrack_is_liberal():
    usual, liberal = (rules_by_chain(Scripts(is_liberal=is_set).part(SHORT_PATH)) for is_set in (False, True))
    assert usual.keys() - liberal.keys() == {"forward_short", "not_from_endpoint", "not_from_node", "output"}
    assert liberal.items() <= usual.items()
    usual, liberal = (Scripts(is_liberal=is_set).part(VIEW_INVALID) for is_set in (False, True))
    assert "ct state invalid" in usual
    assert liberal == ""


def test_sets_that_only_a_part_asks_for_need_that_part():
    core = words(r"@(\w+)\b(?!,)", chains("ipvsproxy"))
    for name_of_part, found in PART_CHAINS.items():
        asked = words(r"@(\w+)\b(?!,)", found) - core
        needing = {name: kind for name, kind in SETS.items() if kind.part == name_of_part}
        # What a verdict of the internal view leads to is in the part.
        assert {name for name, kind in needing.items() if kind not in SHORT_VIEWS.values()} <= asked
        assert all(SETS[name].part for name in asked)


def test_no_extension_header_leads_an_ipv6_packet_past_a_rule():
    """`ip6 nexthdr` is the protocol only where no such header is: then what it does not find must be dropped."""
    found = [rule for rules in CHAINS.values() for rule in rules if "ip6 nexthdr" in rule]
    assert found
    assert [
        rule for rule in found if not re.search(r"@\w+ ip6 daddr \. ip6 nexthdr [^@]+ != @\w+ drop$", rule)
    ] == []
    assert [rule for rule in found if rule.count("ip6 nexthdr") > 1] == []


def other_family(rule):
    """Return the rule for IPv6 of one for IPv4."""
    for four, six in (
        (r"\bicmp\b", "icmpv6"),
        (r"\bip protocol\b", "ip6 nexthdr"),
        (r"\bip\b", "ip6"),
        (r"(@|\bgoto |\bjump )(\w+)4\b", r"\g<1>\g<2>6"),
    ):
        rule = re.sub(four, six, rule)
    return rule


ONLY_IPV4 = {"allow_fragments"}
"""IPv6 has no "don't fragment"."""


@pytest.mark.parametrize("chain", CHAINS.keys() - ONLY_IPV4)
def test_what_holds_for_one_family_holds_for_the_other(chain):
    rules = CHAINS[chain]
    if chain.endswith(("4", "6")):  # of one family
        assert [other_family(rule) for rule in CHAINS[f"{chain[:-1]}4"]] == CHAINS[f"{chain[:-1]}6"]
        assert not any(re.search(rf"@\w+{10 - int(chain[-1])}\b", rule) for rule in rules)
        return
    four = [rule for rule in rules if other_family(rule) != rule]
    six = [rule for rule in rules if re.search(r"\bip6\b|\bicmpv6\b", rule)]
    assert [other_family(rule) for rule in four] == six


def test_sets_are_declared_alike_for_both_families():
    lines = files("nft").joinpath("rulesets", "ipvsproxy.nft").read_text().splitlines()
    declared = [line.strip() for line in lines if re.match(r"\s*(set|map) \w+ {", line)]
    four = [re.sub(r"\b(\w+)4 {", r"\1{", line) for line in declared if re.match(r"\w+ \w+4 ", line)]
    six = [re.sub(r"\b(\w+)6 {", r"\1{", line) for line in declared if re.match(r"\w+ \w+6 ", line)]
    assert four
    assert [other_family(line) for line in four] == six


@pytest.mark.parametrize("name", ["ipvsproxy.nft", "quiet.nft"])
def test_sets_are_declared_in_a_form_that_older_libraries_read(name):
    """What libnftables 1.1 adds to a set declared by `type` crashes 1.0.6, also the nft of the host."""
    declared = re.findall(
        r"^\s*(?:set|map) \w+ {(.*)$", files("nft").joinpath("rulesets", name).read_text(), re.MULTILINE
    )
    assert declared
    assert [body for body in declared if not body.startswith(" typeof ")] == []


def test_no_chain_is_left_out_and_none_leads_nowhere():
    leads_to = led_to(CHAINS)
    # Named by elements of the verdict maps.
    by_elements = {
        "own",
        "endpoints_1",
        "internal_endpoints_1",
        "refuse",
        "inside_only",
        "group_view",
        "admit_or_refuse",
        "admit_or_drop",
    }
    by_elements |= {"masquerade_always", "masquerade_unless_local_pod"}
    assert leads_to | by_elements == CHAINS.keys() - BASES.keys()
    assert not leads_to & by_elements - {"own", "refuse", "masquerade_always", "admit_or_drop"}
    core = chains("ipvsproxy").keys()
    needs = {second: first for first, second in FOR_UNTRACKED.items()}
    for name, found in PART_CHAINS.items():
        there = core | by_elements | PART_CHAINS.get(needs.get(name), {}).keys()
        assert led_to(found) - there == found.keys() - BASES.keys() - by_elements


def test_the_short_path_has_a_chain_for_each_number_of_endpoints():
    text = part(SHORT_PATH)
    found = re.findall(r"chain endpoints_(\d+) {\s+dnat ip to .* mod (\d+) .*\s+dnat ip6 to .* mod (\d+) .*", text)
    assert found == [(str(number),) * 3 for number in range(1, MOST_ENDPOINTS + 1)]


def test_only_packets_of_the_arp_family_are_silenced():
    quiet = chains("quiet")
    assert [priority(quiet[name])[:2] for name in ("input", "output")] == [
        ("filter", "input"),
        ("filter", "output"),
    ]
    rules = [rule for lines in quiet.values() for rule in lines[1:]]
    assert all(rule.startswith("arp operation request ") and "@quiet4" in rule for rule in rules)
    assert len(rules) == 2


def test_of_a_packet_mark_only_our_bit_changes_and_of_conntrack_nothing():
    rules = [rule for lines in CHAINS.values() for rule in lines if re.search(r"\b(?:mark|label) set ", rule)]
    assert rules
    assert all(re.search(r" meta mark set meta mark (?:or \$reply|and \$others) accept$", rule) for rule in rules)


def test_the_number_of_a_group_stays_in_no_packet_that_goes_on():
    """But in what a view leads away, as far as the link of the endpoint (docs/decisions/0054)."""
    admitted = [rule for name in ("check_group", "check_group_of_receiver") for rule in CHAINS[name]]
    accepting = [rule for rule in admitted if "accept" in rule]
    assert len(accepting) == 6
    assert all(rule.endswith("meta priority set 0 accept") for rule in accepting)
    assert CHAINS["lead_group"][-1] == "meta priority set 0"
