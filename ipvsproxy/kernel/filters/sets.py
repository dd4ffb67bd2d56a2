"""Sets and maps of other programs, for rules that look something up in them: keys, and the verdicts of maps.

Only what can be judged is read: keys of one field, and no more of them than people write. Numbers:
include/uapi/linux/netfilter/nf_tables.h.
"""

import struct
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from typing import NamedTuple

from ipvsproxy.kernel.elements import read_all
from ipvsproxy.kernel.wire.netlink import Wire, attributes, message, text
from ipvsproxy.kernel.wire.nfnetlink import (
    NFGENMSG,
    NFT_MSG_GETSET,
    NFT_SET_CONCAT,
    NFT_SET_INTERVAL,
    NFTA_SET_FLAGS,
    NFTA_SET_NAME,
    NFTA_SET_TABLE,
)
from ipvsproxy.ruleset.codec import RawElement

U32 = struct.Struct(">I")
MOST = 256
"""Elements that are evaluated; longer lists (ipsets of a firewall) are left undecided."""


class SetEntry(NamedTuple):
    """Keys from `low` to `high` (both empty: every key), and what a map does: a verdict's code, and its chain."""

    low: bytes
    high: bytes
    code: int | None = None
    chain: str = ""


class SetReader:
    """All sets of this network namespace; elements are read when they are asked for."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._flags: dict[tuple[int, str, str], int] = {}
        for part in wire.dump(message(NFT_MSG_GETSET, 0, NFGENMSG.pack(0, 0, 0))):
            fields = dict(attributes(part, NFGENMSG.size))
            name = part[0], text(fields[NFTA_SET_TABLE]), text(fields[NFTA_SET_NAME])
            self._flags[name] = U32.unpack(fields[NFTA_SET_FLAGS])[0] if NFTA_SET_FLAGS in fields else 0
        self.entries = cache(self._entries)

    def _entries(self, family: int, table: str, name: str) -> tuple[SetEntry, ...] | None:
        """Return the entries of a set, None when they cannot be judged. Raises KernelError."""
        flags = self._flags.get((family, table, name), NFT_SET_CONCAT)
        if flags & NFT_SET_CONCAT:
            return None
        found = read_all(self._wire, family, table, name)
        entries = tuple(intervals(found) if flags & NFT_SET_INTERVAL else map(_single, found))
        return entries if len(entries) <= MOST else None


def _single(raw: RawElement) -> SetEntry:
    return SetEntry(raw.key, raw.key, raw.code, raw.chain)


def intervals(found: list[RawElement]) -> Iterator[SetEntry]:
    """Yield the intervals of a set: they begin with one element and stop before the next one."""
    marks: dict[bytes, RawElement] = {}
    for raw in found:
        # Where one interval stops and the next one starts, there are two elements with one key.
        if not raw.stops or raw.key not in marks:
            marks[raw.key] = raw
    yield from (_single(raw) for key, raw in marks.items() if not key)
    for low, after in pairwise([*sorted(filter(None, marks)), b""]):
        raw = marks[low]
        if not raw.stops:
            high = (int.from_bytes(after) - 1).to_bytes(len(low)) if after else b"\xff" * len(low)
            yield SetEntry(low, high, raw.code, raw.chain)
