"""What a former kube-proxy has left in the kernel goes, once everything of ours is live (contract 4.18).

Rules of iptables-nft are ordinary nft rules with chains of their own: they are read over nfnetlink, without
listing kube-proxy's, and removed by libnftables, one transaction for each table. The nftables mode has tables
of its own, the ipvs mode ipsets, which are destroyed over netlink. Legacy iptables is only looked at.

Removed once for each start: what comes back has been written by a kube-proxy that is running, which is reported
and not fought with. Numbers: include/uapi/linux/netfilter/nf_tables.h, netfilter/ipset/ip_set.h.
"""

import errno
import struct
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import structlog

from ipvsproxy.kernel.forward import FAMILIES, NFT_MSG_GETCHAIN, NFT_MSG_GETRULE
from ipvsproxy.kernel.netlink import NLM_F_EXCL, KernelError, Wire, attribute, attributes, message
from ipvsproxy.kernel.ruleset import NETLINK_NETFILTER, NFGENMSG, NFT_MSG_GETTABLE
from ipvsproxy.kernel.xtables import legacy_leftovers
from ipvsproxy.plan.leftovers import (
    HAIRPIN_SETS,
    OWN_TABLE,
    PATTERN,
    SETS,
    TABLES,
    Found,
    Jump,
    is_leftover,
    kept,
    removal,
)
from nft import Client, NftError, Table, Transaction

TABLE_NAME, CHAIN_TABLE, CHAIN_NAME, CHAIN_HOOK = 1, 1, 3, 4
RULE_TABLE, RULE_CHAIN, RULE_HANDLE, RULE_EXPRESSIONS = 1, 2, 3, 4
EXPRESSION_NAME, EXPRESSION_DATA, IMMEDIATE_DATA, DATA_VERDICT, VERDICT_CHAIN = 1, 2, 2, 2, 2
IPSET_DESTROY, IPSET_PROTOCOL, IPSET_SETNAME = 6 << 8 | 3, 1, 2
IPSET_VERSION = 6
IPSET_MODULE = Path("/sys/module/ip_set")
BUSY_SECONDS, BUSY_PAUSE = 2.0, 0.02

log = structlog.get_logger()


class Leftovers:
    """Rules, tables and sets of kube-proxy in this network namespace. Belongs to the loop's thread."""

    def __init__(self, nft: Client) -> None:
        self._nft = nft
        self._wire = Wire(NETLINK_NETFILTER)
        self._removed = False
        self._said: list[str] = []

    def tend(self) -> str:
        """Remove what is there, the first time; later on say when it has come back, and return what that means.

        Logs what goes wrong.
        """
        try:
            if self._removed:
                return self._watch()
            self._remove_at_last()
        except KernelError as error:
            log.warning("cannot look for what kube-proxy left", error=str(error))
        return ""

    def _remove_at_last(self) -> None:
        problems = self.remove(0.0 if self._said else BUSY_SECONDS)
        for problem in problems:
            if problem not in self._said:
                log.warning("what kube-proxy left could not be removed, trying again", error=problem)
        self._said = problems
        if not problems:
            self._removed = True
            for advice in legacy_advice():
                log.warning(advice)

    def remove(self, patience: float = BUSY_SECONDS) -> list[str]:
        """Remove everything but what legacy iptables holds, and return what could not be removed.

        Rules let go of their sets a moment after they have gone; so long, in seconds, it may take at most. Raises
        KernelError when the kernel cannot be read.
        """
        problems, is_used = self._remove_rules()
        problems += self._remove_tables()
        if legacy_leftovers():
            return problems  # whose rules hold on to the sets
        doomed = [name for name in SETS if not (is_used and name in HAIRPIN_SETS)]
        return problems + destroy_sets(doomed, self._wire, patience)

    def _remove_rules(self) -> tuple[list[str], bool]:
        """Remove chains and jumps; return the problems, and whether other programs go on using some of them."""
        problems, is_used = [], False
        for found in self._find():
            staying = kept(found)
            if staying:
                is_used = True
                log.warning("other programs use chains of kube-proxy, which stay", chains=sorted(staying))
            where = f"{found.family} {found.table}"
            problems += self._run(where, removal(found), chains=len(found.chains - staying))
        return problems, is_used

    def _remove_tables(self) -> list[str]:
        problems = []
        for family in FAMILIES:
            if self._has(NFT_MSG_GETTABLE, family, attribute(TABLE_NAME, _text(OWN_TABLE))):
                where = f"{family} {OWN_TABLE}"
                problems += self._run(where, [f"delete table {where}"], tables=1)
        return problems

    def _run(self, where: str, commands: Sequence[str], **counts: int) -> list[str]:
        """Carry out commands on one table, all or none, and return what went wrong."""
        if not commands:
            return []
        transaction = Transaction(Table(*where.split()))
        transaction.load("\n".join(commands))
        try:
            self._nft.run(transaction)
        except NftError as error:
            return [f"{where}: {error.text[:200]}"]
        log.info("removed what kube-proxy left", table=where, **counts)
        return []

    def _watch(self) -> str:
        """Say once that a kube-proxy is at work; the kubelet makes some of the chains as well, but not these."""
        came_back = [
            f"{family} {what}"
            for family in FAMILIES
            for what, kind, body in (
                (f"table {OWN_TABLE}", NFT_MSG_GETTABLE, attribute(TABLE_NAME, _text(OWN_TABLE))),
                ("chain nat KUBE-SERVICES", NFT_MSG_GETCHAIN, _chain("nat", "KUBE-SERVICES")),
            )
            if self._has(kind, family, body)
        ]
        if came_back and not self._said:
            log.error(
                "a kube-proxy is running on this node and writes rules: stop it, then restart ipvsproxy,"
                " which removes them",
                found=came_back,
            )
        self._said = came_back
        return f"a kube-proxy is running and writes {', '.join(came_back)}" if came_back else ""

    def _find(self) -> Iterator[Found]:
        for table in TABLES:
            for family, number in FAMILIES.items():
                chains = self._chains(number, table)
                ours = frozenset(filter(is_leftover, chains))
                if ours:
                    jumps = [jump for name in chains.keys() - ours for jump in self._jumps(number, table, name)]
                    base = frozenset(name for name, is_base in chains.items() if is_base)
                    yield Found(family, table, ours, base, tuple(jumps))

    def _chains(self, family: int, table: str) -> dict[str, bool]:
        """Return the names of a table's chains, and whether each hangs on a hook."""
        parts = self._wire.dump(message(NFT_MSG_GETCHAIN, 0, NFGENMSG.pack(family, 0, 0)))
        chains = (dict(attributes(part, NFGENMSG.size)) for part in parts)
        return {
            _string(chain[CHAIN_NAME]): CHAIN_HOOK in chain
            for chain in chains
            if _string(chain[CHAIN_TABLE]) == table
        }

    def _jumps(self, family: int, table: str, chain: str) -> Iterator[Jump]:
        body = (
            NFGENMSG.pack(family, 0, 0) + attribute(RULE_TABLE, _text(table)) + attribute(RULE_CHAIN, _text(chain))
        )
        for part in self._wire.dump(message(NFT_MSG_GETRULE, 0, body)):
            rule = dict(attributes(part, NFGENMSG.size))
            for target in targets(rule.get(RULE_EXPRESSIONS, memoryview(b""))):
                yield Jump(chain, struct.unpack(">Q", rule[RULE_HANDLE])[0], target)

    def _has(self, kind: int, family: str, body: bytes) -> bool:
        try:
            self._wire.request(message(kind, 0, NFGENMSG.pack(FAMILIES[family], 0, 0) + body))
        except KernelError as error:
            if error.errno == errno.ENOENT:
                return False
            raise
        return True


def targets(expressions: memoryview) -> Iterator[str]:
    """Yield the chains that a rule jumps or goes to; its expressions as the kernel sends them."""
    for _, element in attributes(expressions):
        expression = dict(attributes(element))
        if _string(expression[EXPRESSION_NAME]) != "immediate":
            continue
        data = dict(attributes(expression[EXPRESSION_DATA])).get(IMMEDIATE_DATA, memoryview(b""))
        verdict = dict(attributes(data)).get(DATA_VERDICT, memoryview(b""))
        chain = dict(attributes(verdict)).get(VERDICT_CHAIN)
        if chain is not None:
            yield _string(chain)


def destroy_sets(names: Sequence[str], wire: Wire, patience: float) -> list[str]:
    """Destroy those of the ipsets that exist, within some seconds, and return what could not be.

    A kernel that has not loaded ipset is not asked, since that would load it.
    """
    deadline = time.monotonic() + patience
    left = list(names) if IPSET_MODULE.exists() else []
    refused: dict[str, int] = {}
    while left:
        failures = wire.batch([_destroy(name, index) for index, name in enumerate(left)])
        if len(failures) < len(left):
            log.info("removed what kube-proxy left", ipsets=len(left) - len(failures))
        refused = {left[index]: code for index, code in failures.items() if code != errno.ENOENT}
        left = list(refused)
        if time.monotonic() > deadline:
            break
        if left:
            time.sleep(BUSY_PAUSE)
    return [f"ipset {name} is in use (error {code})" for name, code in refused.items()]


def _destroy(name: str, sequence: int) -> bytes:
    body = NFGENMSG.pack(FAMILIES["ip"], 0, 0) + attribute(IPSET_PROTOCOL, bytes([IPSET_VERSION]))
    # Exclusively: without it, newer kernels count what does not exist as destroyed.
    return message(IPSET_DESTROY, NLM_F_EXCL, body + attribute(IPSET_SETNAME, _text(name)), sequence)


def legacy_advice() -> list[str]:
    """Return what the operator has to do about rules in legacy iptables, if there are any."""
    return [
        "kube-proxy has left rules in legacy iptables, which only its program removes, so run on this host:"
        f" {program}-save | grep -vwE '{PATTERN}' | {program}-restore"
        for program in legacy_leftovers()
    ]


def _chain(table: str, name: str) -> bytes:
    return attribute(CHAIN_TABLE, _text(table)) + attribute(CHAIN_NAME, _text(name))


def _text(name: str) -> bytes:
    return name.encode() + b"\0"


def _string(payload: memoryview) -> str:
    return bytes(payload).rstrip(b"\0").decode(errors="replace")
