"""Matches and targets of x_tables, which iptables writes, as conditions and verdicts of `ruleset.filters`.

Layouts: include/uapi/linux/netfilter/xt_*.h, as each begins. A match that is not listed here is one we cannot
read.
"""

import struct
import sys
from collections.abc import Callable
from typing import NamedTuple

from ipvsproxy.ruleset.filters import UNKNOWN, UNTRACKED, Condition

STATE_AT = 146
"""Offset of match_flags, invert_flags and state_mask in xt_conntrack_mtinfo2 and 3."""
LOCAL_TYPE = 1 << 2
XT_CT_NOTRACK = 1 << 0
VERDICTS = {
    "DNAT": "dnat", "SNAT": "snat", "MASQUERADE": "masquerade", "REDIRECT": "redirect", "REJECT": "reject",
    "NETMAP": "dnat", "NFQUEUE": "queue", "DROP": "drop", "ACCEPT": "accept",
}  # fmt: skip


class RulePiece(NamedTuple):
    """Conditions or a verdict of one piece of a rule; `marks` are the bits of the packet's mark it changes."""

    matches: tuple[Condition, ...] = ()
    verdict: str = ""
    marks: int = 0
    comment: str = ""


def read_match(name: str, revision: int, info: bytes) -> RulePiece:
    """Return what a match asks."""
    reader = _READERS.get(name)
    return reader(revision, info) if reader else RulePiece((Condition(UNKNOWN),))


def read_target(name: str, revision: int, info: bytes) -> RulePiece:
    """Return what a target does."""
    if name == "MARK" and revision == 2:
        mark, mask = struct.unpack_from("=II", info)
        return RulePiece(marks=mark | mask)
    if name == "NOTRACK" or (name == "CT" and int.from_bytes(info[:2], sys.byteorder) & XT_CT_NOTRACK):
        return RulePiece(verdict=UNTRACKED)
    return RulePiece(verdict=VERDICTS.get(name, ""))


def _ports(_: int, info: bytes) -> RulePiece:
    """Source and destination ports of `tcp` and `udp`; flags of TCP are a condition we do not know."""
    sport, sport_to, dport, dport_to = struct.unpack_from("=4H", info)
    is_tcp = len(info) > 10
    inverted = info[11] if is_tcp and len(info) > 11 else info[8]
    matches = []
    for field, low, high, bit in (("sport", sport, sport_to, 1), ("dport", dport, dport_to, 2)):
        if (low, high) != (0, 65535):
            matches.append(Condition(field, low.to_bytes(2), high.to_bytes(2), b"", bool(inverted & bit)))
    if is_tcp and (info[8] or info[9]):
        matches.append(Condition(UNKNOWN))
    return RulePiece(tuple(matches))


def _multiport(revision: int, info: bytes) -> RulePiece:
    """One port or range is a condition; of several we know no more than that there are some."""
    flags, count = info[0], info[1]
    ports = struct.unpack_from("=15H", info, 2)
    field = {0: "sport", 1: "dport"}.get(flags, UNKNOWN)
    is_range = revision >= 1 and bool(info[32])
    if revision >= 1 and count in (1, 2) and is_range is (count == 2):
        low, high = ports[0], ports[count - 1]
        return RulePiece((Condition(field, low.to_bytes(2), high.to_bytes(2), b"", bool(info[47])),))
    if revision == 0 and count == 1:
        return RulePiece((Condition(field, ports[0].to_bytes(2), ports[0].to_bytes(2)),))
    return RulePiece((Condition(UNKNOWN),))


def _addrtype(revision: int, info: bytes) -> RulePiece:
    """Whether the destination is local is a condition; all other types are not known."""
    source, destination = struct.unpack_from("=HH", info)
    if source or destination != LOCAL_TYPE:
        return RulePiece((Condition(UNKNOWN),))
    flags = struct.unpack_from("=I", info, 4)[0] if revision >= 1 else 0
    return RulePiece((Condition("daddrtype", _local(), _local(), b"", bool(flags & 2)),))


def _local() -> bytes:
    return (2).to_bytes(4, sys.byteorder)


def _conntrack(revision: int, info: bytes) -> RulePiece:
    """The state alone is a condition we know."""
    if revision < 2 or len(info) < STATE_AT + 6:
        return RulePiece((Condition(UNKNOWN),))
    asked, inverted, states = struct.unpack_from("=HHH", info, STATE_AT)
    if asked != 1:
        return RulePiece((Condition(UNKNOWN),))
    zero = bytes(4)
    return RulePiece((Condition("ctstate", zero, zero, states.to_bytes(4, sys.byteorder), negated=not inverted),))


def _mark(revision: int, info: bytes) -> RulePiece:
    if revision != 1:
        return RulePiece((Condition(UNKNOWN),))
    mark, mask = info[:4], info[4:8]
    return RulePiece((Condition("mark", mark, mark, mask, bool(info[8])),))


def _comment(_: int, info: bytes) -> RulePiece:
    return RulePiece(comment=info.split(b"\0", 1)[0].decode(errors="replace"))


_READERS: dict[str, Callable[[int, bytes], RulePiece]] = {
    "tcp": _ports,
    "udp": _ports,
    "multiport": _multiport,
    "addrtype": _addrtype,
    "conntrack": _conntrack,
    "mark": _mark,
    "comment": _comment,
}
