"""What a kube-proxy of any mode has in the packet filter, read and never changed.

Rules of iptables-nft are ordinary nft rules with chains of their own, read over nfnetlink without listing those of
kube-proxy. Numbers: include/uapi/linux/netfilter/nf_tables.h, netfilter/ipset/ip_set.h.
"""

import errno
import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path

from ipvsproxy.kernel.filters.legacy import read_legacy
from ipvsproxy.kernel.filters.xtables import legacy_leftovers
from ipvsproxy.kernel.forward import FAMILIES
from ipvsproxy.kernel.wire.netlink import KernelError, Wire, attribute, attributes, message
from ipvsproxy.kernel.wire.nfnetlink import (
    IPSET_ATTR_PROTOCOL,
    IPSET_ATTR_SETNAME,
    IPSET_CMD_HEADER,
    IPSET_PROTOCOL,
    NETLINK_NETFILTER,
    NFGENMSG,
    NFT_MSG_GETCHAIN,
    NFT_MSG_GETRULE,
    NFT_MSG_GETTABLE,
    NFTA_CHAIN_HOOK,
    NFTA_CHAIN_NAME,
    NFTA_CHAIN_TABLE,
    NFTA_DATA_VERDICT,
    NFTA_EXPR_DATA,
    NFTA_EXPR_NAME,
    NFTA_IMMEDIATE_DATA,
    NFTA_RULE_CHAIN,
    NFTA_RULE_EXPRESSIONS,
    NFTA_RULE_HANDLE,
    NFTA_RULE_TABLE,
    NFTA_TABLE_NAME,
    NFTA_VERDICT_CHAIN,
)
from ipvsproxy.plan.leftovers import OWN_TABLE, SETS, TABLES, FoundTable, Jump, RemovedItem, going, is_leftover

IPSET_MODULE = Path("/sys/module/ip_set")
TABLE_FAMILIES = {4: "ip", 6: "ip6"}
SERVICES = "KUBE-SERVICES"
MODES = {"KUBE-NODE-PORT": "ipvs", "KUBE-NODEPORTS": "iptables"}
"""The chain for NodePorts, to which nat KUBE-SERVICES always leads, has another name in each mode."""


class KubeProxyState:
    """Chains, tables and sets of kube-proxy. Every method raises KernelError when the kernel refuses to tell."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    def chains(self) -> Iterator[FoundTable]:
        """Yield each table of iptables-nft in which kube-proxy has chains."""
        for table in TABLES:
            for family, number in FAMILIES.items():
                chains = self._chains(number, table)
                ours = frozenset(filter(is_leftover, chains))
                if ours:
                    jumps = [jump for name in chains.keys() - ours for jump in self._jumps(number, table, name)]
                    base = frozenset(name for name, is_base in chains.items() if is_base)
                    yield FoundTable(family, table, ours, base, tuple(jumps))

    def tables(self) -> list[str]:
        """Return the tables of the nftables mode."""
        body = attribute(NFTA_TABLE_NAME, text(OWN_TABLE))
        return [f"{family} {OWN_TABLE}" for family in FAMILIES if self._has(NFT_MSG_GETTABLE, family, body)]

    def sets(self) -> list[str]:
        """Return the ipsets of the ipvs mode; a kernel that has not loaded ipset is not asked."""
        return [name for name in SETS if self._has_set(name)] if IPSET_MODULE.exists() else []

    def sure_signs(self) -> list[str]:
        """Return what only a kube-proxy writes; the kubelet makes some of the chains as well, but not these."""
        return [f"{table.split()[0]} table {OWN_TABLE}" for table in self.tables()] + [
            f"{family} chain nat {SERVICES}"
            for family in FAMILIES
            if self._has(NFT_MSG_GETCHAIN, family, _chain("nat", SERVICES))
        ]

    def programmed(self) -> dict[int, str]:
        """Return the mode of the kube-proxy that has programmed a family, for each (4, 6) where one has.

        Each mode writes last what is looked for here: nftables its table, in the transaction with all Services;
        ipvs and iptables the rules of the chain nat KUBE-SERVICES, after virtual servers, addresses and ipsets.
        The chain itself comes earlier, and empty (contract 9.1 to 9.3). Both backends of iptables count.
        """
        tables = self.tables()
        found = {}
        for number, family in TABLE_FAMILIES.items():
            if f"{family} {OWN_TABLE}" in tables:
                found[number] = "nftables"
            elif mode := mode_of(self._services(family) | legacy_services(family)):
                found[number] = mode
        return found

    def _services(self, family: str) -> set[str]:
        """Return the chains to which nat KUBE-SERVICES leads."""
        if not self._has(NFT_MSG_GETCHAIN, family, _chain("nat", SERVICES)):
            return set()
        return {jump.target for jump in self._jumps(FAMILIES[family], "nat", SERVICES)}

    def going(self) -> list[RemovedItem]:
        """Return what a run, or cleanup, removes."""
        return going(self.chains(), self.tables(), self.sets())

    def _chains(self, family: int, table: str) -> dict[str, bool]:
        """Return the names of a table's chains, and whether each hangs on a hook."""
        parts = self._wire.dump(message(NFT_MSG_GETCHAIN, 0, NFGENMSG.pack(family, 0, 0)))
        chains = (dict(attributes(part, NFGENMSG.size)) for part in parts)
        return {
            _string(chain[NFTA_CHAIN_NAME]): NFTA_CHAIN_HOOK in chain
            for chain in chains
            if _string(chain[NFTA_CHAIN_TABLE]) == table
        }

    def _jumps(self, family: int, table: str, chain: str) -> Iterator[Jump]:
        body = (
            NFGENMSG.pack(family, 0, 0)
            + attribute(NFTA_RULE_TABLE, text(table))
            + attribute(NFTA_RULE_CHAIN, text(chain))
        )
        for part in self._wire.dump(message(NFT_MSG_GETRULE, 0, body)):
            rule = dict(attributes(part, NFGENMSG.size))
            for target in targets(rule.get(NFTA_RULE_EXPRESSIONS, memoryview(b""))):
                yield Jump(chain, struct.unpack(">Q", rule[NFTA_RULE_HANDLE])[0], target)

    def _has(self, kind: int, family: str, body: bytes) -> bool:
        return self._asked(kind, NFGENMSG.pack(FAMILIES[family], 0, 0) + body)

    def _has_set(self, name: str) -> bool:
        body = NFGENMSG.pack(FAMILIES["ip"], 0, 0) + attribute(IPSET_ATTR_PROTOCOL, bytes([IPSET_PROTOCOL]))
        return self._asked(IPSET_CMD_HEADER, body + attribute(IPSET_ATTR_SETNAME, text(name)))

    def _asked(self, kind: int, body: bytes) -> bool:
        try:
            self._wire.request(message(kind, 0, body))
        except KernelError as error:
            if error.errno == errno.ENOENT:
                return False
            raise
        return True


def legacy_services(family: str) -> set[str]:
    """Return the chains to which nat KUBE-SERVICES of legacy iptables leads."""
    place = family, "nat", SERVICES
    chains = (chain for chain in read_legacy() if (chain.family, chain.table, chain.name) == place)
    return {rule.target for chain in chains for rule in chain.rules}


def mode_of(targets: Iterable[str]) -> str:
    """Return the mode in which nat KUBE-SERVICES leads to these chains, '' while it is not filled."""
    return next((MODES[name] for name in targets if name in MODES), "")


def programmed() -> dict[int, str]:
    """Return the mode of the kube-proxy that has programmed a family, for each (4, 6). Raises KernelError."""
    with closing(Wire(NETLINK_NETFILTER)) as wire:
        return KubeProxyState(wire).programmed()


def written_by_kube_proxy() -> list[str]:
    """Return what only a kube-proxy writes, in nftables and in legacy iptables. Raises KernelError."""
    with closing(Wire(NETLINK_NETFILTER)) as wire:
        found = KubeProxyState(wire).sure_signs()
    return found + [f"rules in {program}" for program in legacy_leftovers()]


def mode_of_rules() -> str:
    """Return the mode that has written what there is, empty where there is nothing. Raises KernelError."""
    with closing(Wire(NETLINK_NETFILTER)) as wire:
        state = KubeProxyState(wire)
        if state.tables():
            return "nftables"
        return "ipvs" if state.sets() else "iptables" if state.sure_signs() else ""


def removed_by_a_run() -> Sequence[RemovedItem]:
    """Return what a run removes of a kube-proxy. Raises KernelError."""
    with closing(Wire(NETLINK_NETFILTER)) as wire:
        return KubeProxyState(wire).going()


def targets(expressions: memoryview) -> Iterator[str]:
    """Yield the chains that a rule jumps or goes to; its expressions as the kernel sends them."""
    for _, element in attributes(expressions):
        expression = dict(attributes(element))
        if _string(expression[NFTA_EXPR_NAME]) != "immediate":
            continue
        data = dict(attributes(expression[NFTA_EXPR_DATA])).get(NFTA_IMMEDIATE_DATA, memoryview(b""))
        verdict = dict(attributes(data)).get(NFTA_DATA_VERDICT, memoryview(b""))
        chain = dict(attributes(verdict)).get(NFTA_VERDICT_CHAIN)
        if chain is not None:
            yield _string(chain)


def _chain(table: str, name: str) -> bytes:
    return attribute(NFTA_CHAIN_TABLE, text(table)) + attribute(NFTA_CHAIN_NAME, text(name))


def text(name: str) -> bytes:
    """Return a name as the kernel wants it."""
    return name.encode() + b"\0"


def _string(payload: memoryview) -> str:
    return bytes(payload).rstrip(b"\0").decode(errors="replace")
