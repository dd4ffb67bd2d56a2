"""One rule in a chain of others: replies of Services pass a FORWARD chain whose policy is DROP.

An accept in a chain of our own ends only that chain, so what iptables' FORWARD drops stays dropped. Where the
chain `filter FORWARD` of iptables-nft exists, one rule at its head accepts the packets that our ruleset has
marked, as kube-proxy does there. iptables shows it as an ordinary mark rule; a rule that matched conntrack
instead would make `iptables -S` fail. Chains of legacy iptables are out of reach without its program.

Looked at and repaired with every verification; nothing else of other tables is read or written. Numbers:
include/uapi/linux/netfilter/nf_tables.h.
"""

import errno
import struct
from collections.abc import Iterator

import structlog

from ipvsproxy.kernel.netlink import KernelError, Wire, attribute, attributes, message
from ipvsproxy.kernel.ruleset import NETLINK_NETFILTER, NFGENMSG
from nft import Client, NftError, Table, Transaction

NFT_MSG_GETCHAIN, NFT_MSG_GETRULE = 10 << 8 | 4, 10 << 8 | 7
NFTA_CHAIN_TABLE, NFTA_CHAIN_NAME = 1, 3
NFTA_RULE_TABLE, NFTA_RULE_CHAIN, NFTA_RULE_HANDLE, NFTA_RULE_USERDATA = 1, 2, 3, 7
FAMILIES = {"ip": 2, "ip6": 10}
COMMENT = "ipvsproxy replies"
RULE = f'meta mark & 0x4000 == 0x4000 counter accept comment "{COMMENT}"'

log = structlog.get_logger()


class Forwarding:
    """Our rule in the FORWARD chains of iptables-nft, if there are such chains."""

    def __init__(self, nft: Client) -> None:
        self._nft = nft
        self._wire = Wire(NETLINK_NETFILTER)

    def ensure(self) -> None:
        """Put the rule at the head of each chain that lacks it; a refusal is logged, and costs only that."""
        for family in FAMILIES:
            rules = self._rules(family)
            if rules is None or any(mine for _, mine in rules):
                continue
            self._run(family, f"insert rule {family} filter FORWARD {RULE}")
            log.info("rule added to another program's chain", chain=f"{family} filter FORWARD", rule=RULE)

    def remove(self) -> None:
        """Take the rule away again."""
        for family in FAMILIES:
            for handle, mine in self._rules(family) or []:
                if mine:
                    self._run(family, f"delete rule {family} filter FORWARD handle {handle}")

    def _run(self, family: str, command: str) -> None:
        transaction = Transaction(Table(family, "filter"))
        transaction.load(command)
        try:
            self._nft.run(transaction)
        except NftError as error:
            log.warning("rule of FORWARD could not be changed", family=family, error=error.text)

    def _rules(self, family: str) -> list[tuple[int, bool]] | None:
        """Return (handle, is it ours) of the rules in the chain, None when there is no such chain."""
        body = NFGENMSG.pack(FAMILIES[family], 0, 0)
        body += attribute(NFTA_RULE_TABLE, b"filter\0") + attribute(NFTA_RULE_CHAIN, b"FORWARD\0")
        if not self._exists(family):
            return None
        return list(_handles(self._wire.dump(message(NFT_MSG_GETRULE, 0, body))))

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


def _handles(parts: list[bytes]) -> Iterator[tuple[int, bool]]:
    for part in parts:
        fields = dict(attributes(part, NFGENMSG.size))
        (handle,) = struct.unpack(">Q", fields[NFTA_RULE_HANDLE])
        yield handle, COMMENT.encode() in bytes(fields.get(NFTA_RULE_USERDATA, b""))
