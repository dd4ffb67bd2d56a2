"""The blob of a legacy table into chains; blobs are made here entry by entry, as iptables-legacy would."""

import pytest

from ipvsproxy.kernel.filters import legacy
from ipvsproxy.kernel.filters.legacy import PIECE, parse
from ipvsproxy.ruleset.filters import FilterChain, FilterTables
from tests.support.filter_rules import SIZE, blob, entry, standard

DROP, ACCEPT, RETURN = -1, -2, -5


def error(name):
    return PIECE.pack(64, b"ERROR", 0) + name.ljust(32, b"\0")


def made(policy, chain=b"PODS"):
    jump = SIZE * 3 + 40 * 2 + 64
    return blob(
        entry(standard(jump)), entry(standard(policy)),
        entry(error(chain)), entry(standard(ACCEPT), bytes([10, 244, 0, 0])), entry(standard(RETURN)),
        entry(error(b"ERROR")), underflow=1,
    )  # fmt: skip


def test_chains_policies_and_jumps():
    forward, pods = parse("iptables-legacy", made(DROP))
    assert (forward.name, forward.hook, forward.policy, forward.place) == (
        "FORWARD", "forward", "drop", "iptables-legacy filter FORWARD",
    )  # fmt: skip
    assert [(rule.verdict, rule.target) for rule in forward.rules] == [("jump", "PODS")]
    assert [rule.verdict for rule in pods.rules] == ["accept", "return"]
    book = FilterTables((forward, pods))
    assert book.walk(forward, {"saddr": bytes([10, 244, 1, 1])}).verdict == "accept"
    assert (
        book.walk(forward, {"saddr": bytes([192, 0, 2, 1])}).where
        == "the policy of iptables-legacy filter FORWARD"
    )


def test_names_may_be_of_any_bytes():
    forward, pods = parse("iptables-legacy", made(DROP, b"caf\xe9"))
    assert [(rule.verdict, rule.target) for rule in forward.rules] == [("jump", pods.name)]
    assert [rule.verdict for rule in pods.rules] == ["accept", "return"]


@pytest.mark.parametrize("rules", [1, 100])
def test_a_chain_is_made_once_however_many_rules_it_has(monkeypatch, rules):
    """Made anew with each rule it would copy all that it has: a verification reads table raw."""
    chains = []
    monkeypatch.setattr(legacy, "FilterChain", lambda *a, **b: chains.append(FilterChain(*a, **b)) or chains[-1])
    (found,) = parse("iptables-legacy", blob(*[entry(standard(ACCEPT))] * rules, underflow=rules - 1))
    assert len(found.rules) == rules - 1
    assert len(chains) == 1


def test_an_inverted_condition_and_a_link():
    chain, *_ = parse(
        "iptables-legacy",
        blob(
            entry(standard(DROP), bytes([10, 244, 0, 0]), inverted=0x08, out=b"eth"),
            entry(standard(ACCEPT)),
            underflow=1,
        ),
    )
    book = FilterTables((chain,))
    assert book.walk(chain, {"saddr": bytes([192, 0, 2, 1]), "oifname": b"eth0"}).verdict == "drop"
    assert book.walk(chain, {"saddr": bytes([192, 0, 2, 1]), "oifname": b"cni0"}).verdict == "accept"
    assert book.walk(chain, {"saddr": bytes([10, 244, 1, 1]), "oifname": b"eth0"}).verdict == "accept"
