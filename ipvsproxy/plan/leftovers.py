"""What a former kube-proxy has left in the packet filter, and the commands that take it away.

Its modes ipvs and iptables write into the tables of iptables-nft, which others use too, its mode nftables into
tables of its own. Names by contract 9.1 to 9.3; none of them are chains of the kubelet (KUBE-FIREWALL,
KUBE-KUBELET-CANARY, KUBE-IPTABLES-HINT, KUBE-MARK-DROP) and of others (KUBE-ROUTER-, KUBE-NWPLCY-, KUBE-POD-FW-).
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

TABLES = ("filter", "nat", "mangle")
"""In the order of removal: the old guard, which refuses Services that it does not know, stands in `filter`."""
OWN_TABLE = "kube-proxy"
MARK, MASQUERADE, HAIRPIN_SETS = "KUBE-MARK-MASQ", "KUBE-POSTROUTING", ("KUBE-LOOP-BACK", "KUBE-6-LOOP-BACK")
PATTERN = (
    "KUBE-(SERVICES|EXTERNAL-SERVICES|NODEPORTS|NODE-PORT|LOAD-BALANCER|POSTROUTING|MARK-MASQ|FORWARD"
    "|PROXY-FIREWALL|SOURCE-RANGES-FIREWALL|IPVS-FILTER|IPVS-OUT-FILTER|PROXY-CANARY|(SVC|SVL|SEP|EXT|FW|XLB)-[A-Z0-9]+)"
)
"""Names of chains, in a form that Python and `grep -E` understand."""
_CHAIN = re.compile(PATTERN)
_SETS = (
    "LOOP-BACK CLUSTER-IP EXTERNAL-IP EXTERNAL-IP-LOCAL LOAD-BALANCER LOAD-BALANCER-LOCAL LOAD-BALANCER-FW"
    " LOAD-BALANCER-SOURCE-CIDR LOAD-BALANCER-SOURCE-IP NODE-PORT-TCP NODE-PORT-LOCAL-TCP NODE-PORT-UDP"
    " NODE-PORT-LOCAL-UDP NODE-PORT-SCTP-HASH NODE-PORT-LOCAL-SCTP-HASH HEALTH-CHECK-NODE-PORT IPVS-IPS"
)
LONGEST_SET_NAME = 31
SETS = tuple(f"{prefix}{name}"[:LONGEST_SET_NAME] for name in _SETS.split() for prefix in ("KUBE-", "KUBE-6-"))
"""Names of ipsets, contract 9.2."""


@dataclass(frozen=True)
class Jump:
    """A rule that hands packets to another chain: the chain it stands in, its handle, and where it leads."""

    chain: str
    handle: int
    target: str


@dataclass(frozen=True)
class FoundTable:
    """A table of iptables-nft: the names of kube-proxy's chains in it, and the jumps in all other chains.

    `base` names the chains that hang on a hook.
    """

    family: str
    table: str
    chains: frozenset[str]
    base: frozenset[str]
    jumps: tuple[Jump, ...]


def is_leftover(chain: str) -> bool:
    """Whether a chain with this name in one of `TABLES` is kube-proxy's."""
    return _CHAIN.fullmatch(chain) is not None


def kept(found: FoundTable) -> frozenset[str]:
    """Return the chains that have to stay, since other programs use them.

    Some (portmap's `externalSetMarkChain`) have packets marked by KUBE-MARK-MASQ to be masqueraded later.
    """
    used = any(jump.target == MARK and jump.chain not in found.base for jump in found.jumps)
    return found.chains & {MARK, MASQUERADE} if used else frozenset()


def removal(found: FoundTable) -> list[str]:
    """Return the nft commands, for one transaction, that remove kube-proxy's chains and all that leads to them.

    Unlinked, flushed, deleted, in this order (contract 9.1): a chain that a rule leads to cannot be deleted.
    """
    removable = found.chains - kept(found)
    place = f"{found.family} {found.table}"
    leading = [jump for jump in found.jumps if jump.target in removable]
    chains = sorted(removable)
    return [
        *(f"delete rule {place} {jump.chain} handle {jump.handle}" for jump in leading),
        *(f"flush chain {place} {chain}" for chain in chains),
        *(f"delete chain {place} {chain}" for chain in chains),
    ]


class RemovedItem(NamedTuple):
    """Something that is removed: what it is (chains, rules, table, ipset), its name, and how many of it."""

    kind: str
    name: str
    number: int = 1


def going(found: Iterable[FoundTable], tables: Iterable[str], sets: Iterable[str]) -> list[RemovedItem]:
    """Return what is removed of a kube-proxy: its chains and the rules that lead to them, tables and ipsets."""
    items, is_used = [], False
    for table in found:
        staying = kept(table)
        is_used = is_used or bool(staying)
        removable = table.chains - staying
        leading = sum(jump.target in removable for jump in table.jumps)
        place = f"{table.family} {table.table}"
        items += [RemovedItem("chains", place, len(removable)), RemovedItem("rules", place, leading)]
    items += [RemovedItem("table", name) for name in tables]
    items += [RemovedItem("ipset", name) for name in sets if not (is_used and name in HAIRPIN_SETS)]
    return [item for item in items if item.number]
