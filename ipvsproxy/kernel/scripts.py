"""The static rulesets as text: what every node needs, and parts that only some need (nft/rulesets)."""

import re
from collections.abc import Iterable
from importlib.resources import files
from typing import NamedTuple

from ipvsproxy.base.names import MASQUERADE_BIT
from ipvsproxy.ruleset.schema import (
    BY_SOURCE,
    DIRECT_RETURN,
    LONG_DATAGRAMS,
    MOST_ENDPOINTS,
    PING,
    RANGES_BY_IPVS,
    RANGES_OF_PORTS,
    SHORT_LOCAL,
    SHORT_PATH,
    SOURCE_RANGES,
    VIEW_INVALID,
)

REPLIES = "replies"
"""The part that a FORWARD chain of iptables-nft makes necessary."""
RANGES_OF_NODE = "source_ranges_output"
SHORT_UNTRACKED = "short_untracked"
FOR_UNTRACKED = {RANGES_BY_IPVS: RANGES_OF_NODE, SHORT_PATH: SHORT_UNTRACKED}
"""Parts that others need once there are packets that conntrack does not place (`kernel.notrack`)."""
PARTS = (
    SOURCE_RANGES,
    RANGES_BY_IPVS,
    BY_SOURCE,
    VIEW_INVALID,
    SHORT_PATH,
    SHORT_LOCAL,
    PING,
    RANGES_OF_PORTS,
    DIRECT_RETURN,
    LONG_DATAGRAMS,
    REPLIES,
    *FOR_UNTRACKED.values(),
)
"""Scripts that add chains to the table of `ipvsproxy.nft`, or tables, for nodes that need them."""
FOR_ALL = tuple(name for name in PARTS if name != DIRECT_RETURN)
"""Parts that each kernel must take: direct server return has expressions (dup) that only Services with it need."""
SHORT_INVALID = "short_invalid"
"""The script that belongs to the short path unless conntrack is liberal."""

DEFAULT_MARK = 1 << MASQUERADE_BIT
ONE_CHAIN = re.compile(r"\tchain \w*endpoints_1 {.*?\n\t}\n", re.DOTALL)


class Scripts(NamedTuple):
    """The scripts for the settings of a node."""

    mark: int = DEFAULT_MARK
    quiet_arp: bool = True
    is_liberal: bool = False
    """Whether conntrack translates TCP packets that are out of the window (nf_conntrack_tcp_be_liberal)."""

    def whole(self, parts: Iterable[str]) -> str:
        """Return all of it, with some parts."""
        return ruleset(self.mark, quiet_arp=self.quiet_arp, is_liberal=self.is_liberal, parts=parts)

    def part(self, name: str) -> str:
        """Return one part alone."""
        return part(name, self.mark, is_liberal=self.is_liberal)


def ruleset(
    mark: int = DEFAULT_MARK, *, quiet_arp: bool = True, is_liberal: bool = False, parts: Iterable[str] = PARTS
) -> str:
    """Return the text of the static ruleset: `ipvsproxy.nft`, `quiet.nft` and some parts.

    `mark` is the bit of the packet mark for replies.
    """
    names = ["ipvsproxy", *(["quiet"] if quiet_arp else [])]
    return "".join(map(script, names)) + "".join(part(name, mark, is_liberal=is_liberal) for name in sorted(parts))


def part(name: str, mark: int = DEFAULT_MARK, *, is_liberal: bool = False) -> str:
    """Return the text of one of the parts; empty for that about invalid packets where conntrack is liberal."""
    text = "" if name == VIEW_INVALID and is_liberal else script(name)
    if name == SHORT_PATH and not is_liberal:
        text += script(SHORT_INVALID)
    if name in (SHORT_PATH, SHORT_LOCAL):
        return ONE_CHAIN.sub(_for_all_numbers, text)
    text = text.replace("redefine reply = 0x00004000", f"redefine reply = {mark:#010x}", 1)
    return text.replace("redefine others = 0xffffbfff", f"redefine others = {mark ^ 0xFFFFFFFF:#010x}", 1)


def _for_all_numbers(chain: re.Match[str]) -> str:
    """Return the chains for all numbers of endpoints; the file has that for one."""
    numbers = range(1, MOST_ENDPOINTS + 1)
    return "".join(
        chain[0].replace("endpoints_1 ", f"endpoints_{n} ").replace("mod 1 ", f"mod {n} ") for n in numbers
    )


def script(name: str) -> str:
    """Return a script as it is in its file."""
    return files("nft").joinpath("rulesets", f"{name}.nft").read_text()
