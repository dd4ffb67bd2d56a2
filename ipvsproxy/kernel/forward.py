"""One rule in a chain of others: replies of Services pass a FORWARD chain whose policy is DROP.

An accept in a chain of our own ends only that chain, so what iptables' FORWARD drops stays dropped. Where the
chain `filter FORWARD` of iptables-nft exists, one rule at its head accepts the packets that our ruleset has
marked, as kube-proxy does there. Both the rule and the marks are there only once such a chain may drop a reply,
since they cost every packet something. iptables shows it as an ordinary mark rule; a rule that matched conntrack
instead would make `iptables -S` fail. Chains of legacy iptables are out of reach without its program.

Looked at and repaired with every verification; nothing else of other tables is read or written. Numbers:
include/uapi/linux/netfilter/nf_tables.h.
"""

import errno
import struct
import sys
from collections.abc import Callable, Iterator, Mapping

import structlog

from ipvsproxy.base import messages
from ipvsproxy.base.names import MASQUERADE_BIT, REPLIES_COMMENT
from ipvsproxy.kernel.filters.nf_tables import read_table
from ipvsproxy.kernel.ruleset import read_comment
from ipvsproxy.kernel.wire.netlink import KernelError, Wire, attribute, attributes, message
from ipvsproxy.kernel.wire.nfnetlink import (
    NETLINK_NETFILTER,
    NFGENMSG,
    NFT_MSG_GETCHAIN,
    NFT_MSG_GETRULE,
    NFTA_CHAIN_NAME,
    NFTA_CHAIN_TABLE,
    NFTA_RULE_CHAIN,
    NFTA_RULE_HANDLE,
    NFTA_RULE_TABLE,
    NFTA_RULE_USERDATA,
)
from ipvsproxy.ruleset.filters import FALL, RETURN, FilterChain, PacketFields, judge
from nft import Client, NftError, Table, Transaction

FAMILIES = {"ip": 2, "ip6": 10}
KNOWN = tuple({"ctstate": state.to_bytes(4, sys.byteorder)} for state in (2, 4))
"""All that is known of any reply: it is of an established connection, or an ICMP error about one (related)."""
NEW = {"ctstate": (8).to_bytes(4, sys.byteorder)}
"""What else crosses FORWARD where there is a short path: the first packet of a connection."""

log = structlog.get_logger()


class Forwarding:
    """Our rule in the FORWARD chains of iptables-nft, if there are such chains."""

    def __init__(self, nft: Client, mark: int = 1 << MASQUERADE_BIT) -> None:
        self._nft = nft
        self._is_needed = False
        self._states: tuple[PacketFields, ...] = KNOWN
        self._wire = Wire(NETLINK_NETFILTER)
        self._comment = f"{REPLIES_COMMENT} {mark:#x}"
        self._rule = f'meta mark & {mark:#x} == {mark:#x} counter accept comment "{self._comment}"'

    def ensure(self, *, new: bool = False) -> bool:
        """Put the rule where it is needed, at the head of each chain; return whether replies have to be marked.

        They have to once a chain may drop them (with `new`: or a new connection on the short path), and then as
        long as this process runs. A chain that cannot be read may. What goes wrong is logged, and affects nothing
        else. A rule for another mark stays: that mark is set as long as the rules of a former version are there.
        """
        self._states = (*KNOWN, NEW) if new else KNOWN
        self._for_each(self._look)
        if self._is_needed:
            self._for_each(self._ensure)
        return self._is_needed

    def _look(self, family: str) -> None:
        if self._is_needed:
            return
        self._is_needed = True
        self._is_needed = self._exists(family) and may_drop(
            read_table(self._wire, FAMILIES[family], "filter"), packets=self._states
        )

    def tidy(self) -> None:
        """Take away rules for other marks, and ours where it is not needed; what goes wrong is logged."""
        self._for_each(self._tidy)

    def _for_each(self, work: Callable[[str], None]) -> None:
        for family in FAMILIES:
            try:
                work(family)
            except KernelError as error:
                log.warning("Could not read the rules of chain FORWARD", family=family, err=str(error))

    def _tidy(self, family: str) -> None:
        keep = self._comment if self._is_needed else ""
        for problem in self._run(family, *_deletions(family, self._rules(family) or {}, keep)):
            log.warning(messages.FORWARD_RULE_STAYS, err=problem)

    def _ensure(self, family: str) -> None:
        rules = self._rules(family)
        if rules is None or self._comment in rules.values():
            return
        problems = self._run(family, f"insert rule {family} filter FORWARD {self._rule}")
        if problems:
            log.warning("Could not change a rule of chain FORWARD", err=problems[0])
        else:
            log.info("Added a rule to another program's chain", chain=f"{family} filter FORWARD", rule=self._rule)

    def remove(self) -> list[str]:
        """Take the rule away again and return what went wrong."""
        problems = []
        for family in FAMILIES:
            try:
                problems += self._run(family, *_deletions(family, self._rules(family) or {}))
            except KernelError as error:
                problems.append(f"rules of {family} filter FORWARD: {error}")
        return problems

    def _run(self, family: str, *commands: str) -> list[str]:
        """Carry out commands, all or none, and return what went wrong."""
        if not commands:
            return []
        transaction = Transaction(Table(family, "filter"))
        transaction.load("\n".join(commands))
        try:
            self._nft.run(transaction)
        except NftError as error:
            return [f"rule in {family} filter FORWARD: {error.text[:200]}"]
        return []

    def _rules(self, family: str) -> dict[int, str] | None:
        """Return the comments of the rules in the chain by their handles, None when there is no such chain."""
        body = NFGENMSG.pack(FAMILIES[family], 0, 0)
        body += attribute(NFTA_RULE_TABLE, b"filter\0") + attribute(NFTA_RULE_CHAIN, b"FORWARD\0")
        if not self._exists(family):
            return None
        return dict(_comments(self._wire.dump(message(NFT_MSG_GETRULE, 0, body))))

    def _exists(self, family: str) -> bool:
        body = NFGENMSG.pack(FAMILIES[family], 0, 0)
        body += attribute(NFTA_CHAIN_TABLE, b"filter\0") + attribute(NFTA_CHAIN_NAME, b"FORWARD\0")
        try:
            self._wire.request(message(NFT_MSG_GETCHAIN, 0, body))
        except KernelError as error:
            if error.errno == errno.ENOENT:
                return False
            raise
        return True


def may_drop(
    chains: Mapping[str, FilterChain], name: str = "FORWARD", packets: tuple[PacketFields, ...] = KNOWN
) -> bool:
    """Whether a packet may be lost in a chain, or in one that it leads to: one of a connection that is known.

    What cannot be judged counts as a loss.
    """
    return name in chains and any(_may_lose(packet, chains, name) for packet in packets)


def _may_lose(packet: PacketFields, chains: Mapping[str, FilterChain], name: str) -> bool:
    todo = [name]
    for found in todo:
        for verdict, target in _verdicts(chains[found], packet):
            if verdict not in ("jump", "goto"):
                return True
            if target not in todo and target in chains:
                todo.append(target)
    return False


def _verdicts(chain: FilterChain, packet: PacketFields) -> Iterator[tuple[str, str]]:
    """Yield what a chain may do to a packet but let it pass, up to the rule that accepts it for certain."""
    for rule in chain.rules:
        found = judge(rule, packet)
        if found and rule.verdict == "accept":
            return
        if found is not False and rule.verdict not in ("accept", FALL, RETURN):
            yield rule.verdict, rule.target
    if chain.policy != "accept":
        yield chain.policy, ""


def _deletions(family: str, rules: dict[int, str], keep: str = "") -> list[str]:
    ours = (handle for handle, text in rules.items() if text.startswith(REPLIES_COMMENT) and text != keep)
    return [f"delete rule {family} filter FORWARD handle {handle}" for handle in ours]


def _comments(parts: list[bytes]) -> Iterator[tuple[int, str]]:
    """Yield handle and comment of rules."""
    for part in parts:
        fields = dict(attributes(part, NFGENMSG.size))
        (handle,) = struct.unpack(">Q", fields[NFTA_RULE_HANDLE])
        yield handle, read_comment(bytes(fields.get(NFTA_RULE_USERDATA, b"")))
