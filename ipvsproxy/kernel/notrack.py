"""Are there packets that conntrack does not place? No nat chain sees them, so filter chains must, and those cost.

There are where another program has a rule that keeps packets from conntrack (notrack), in whatever chain and for
whichever packets. Rules of nf_tables have an expression for it, those of iptables a target: NOTRACK, or CT with a
flag. Legacy iptables sends no word of changes, so it is looked at with each verification. And where conntrack is
set to take up no connection in the middle. Our own rules for direct server return (nft/rulesets/direct_return.nft)
do not count: they are for packets of clients to frontends that IPVS serves.

Numbers: include/uapi/linux/netfilter/nf_tables.h, xt_CT.h.
"""

import structlog

from ipvsproxy.base.names import TABLE
from ipvsproxy.kernel.filters.legacy import parse
from ipvsproxy.kernel.filters.xt import read_target
from ipvsproxy.kernel.filters.xtables import PROGRAMS, blobs
from ipvsproxy.kernel.host import read_sysctl
from ipvsproxy.kernel.wire.netlink import KernelError, Wire, attribute, attributes, message
from ipvsproxy.kernel.wire.nfnetlink import (
    NETLINK_NETFILTER,
    NFGENMSG,
    NFT_MSG_GETRULE,
    NFTA_EXPR_NAME,
    NFTA_RULE_TABLE,
    NFTA_TARGET_INFO,
    NFTA_TARGET_NAME,
)
from ipvsproxy.ruleset.filters import UNTRACKED

EXPRESSION, TARGET = attribute(NFTA_EXPR_NAME, b"notrack\0"), attribute(NFTA_TARGET_NAME, b"NOTRACK\0")
CT_TARGET = attribute(NFTA_TARGET_NAME, b"CT\0")
OURS = attribute(NFTA_RULE_TABLE, f"{TABLE}\0".encode())
ONLY_TABLE = "raw"
"""The one table in which legacy iptables takes such a target."""
LOOSE = "net/netfilter/nf_conntrack_tcp_loose"

log = structlog.get_logger()


class Notrack:
    """Whether there are such packets; once there are, that is so as long as this process runs."""

    def __init__(self) -> None:
        self._wire = Wire(NETLINK_NETFILTER)
        self._is_there = False

    def is_there(self) -> bool:
        """Look at all rules, unless it is known. Where they cannot be read, there may be."""
        if not self._is_there:
            try:
                self._is_there = read_sysctl(LOOSE) == 0 or self._in_nf_tables() or _in_legacy()
            except KernelError as error:
                log.warning("Could not read the rules of other programs", err=str(error))
                self._is_there = True
        return self._is_there

    def _in_nf_tables(self) -> bool:
        rules = self._wire.dump(message(NFT_MSG_GETRULE, 0, NFGENMSG.pack(0, 0, 0)))
        return any(keeps_from_conntrack(rule) for rule in rules)


def keeps_from_conntrack(rule: bytes) -> bool:
    """Whether a rule, as the kernel lists it or tells of it, keeps packets from conntrack and is not ours."""
    if rule.startswith(OURS, NFGENMSG.size):
        return False
    at = rule.find(CT_TARGET)
    return EXPRESSION in rule or TARGET in rule or (at >= 0 and _has_flag(rule, at))


def _has_flag(rule: bytes, at: int) -> bool:
    """Whether a target CT does, whose fields begin at a place: name, revision, and what it is to do."""
    info = next((value for kind, value in attributes(rule, at) if kind == NFTA_TARGET_INFO), b"")
    return read_target("CT", 0, bytes(info)).verdict == UNTRACKED


def _in_legacy() -> bool:
    tables = ((program, blob) for program in PROGRAMS for blob in blobs(program, ONLY_TABLE))
    rules = (rule for program, blob in tables for chain in parse(program, blob) for rule in chain.rules)
    return any(rule.verdict == UNTRACKED for rule in rules)
