"""The static rulesets as text: what every node needs, and parts that only some need (nft/rulesets)."""

from collections.abc import Iterable
from importlib.resources import files
from typing import NamedTuple

from ipvsproxy.base.names import MASQUERADE_BIT
from ipvsproxy.ruleset.schema import BY_SOURCE, SOURCE_RANGES, VIEW_REPLIES

REPLIES = "replies"
"""The part that a FORWARD chain of iptables-nft makes necessary."""
PARTS = (SOURCE_RANGES, BY_SOURCE, VIEW_REPLIES, REPLIES)
"""Scripts that add chains to the table of `ipvsproxy.nft`, for nodes that need them."""
DEFAULT_MARK = 1 << MASQUERADE_BIT


class Scripts(NamedTuple):
    """The scripts for the settings of a node."""

    mark: int = DEFAULT_MARK
    quiet_arp: bool = True

    def whole(self, parts: Iterable[str]) -> str:
        """Return all of it, with some parts."""
        return ruleset(self.mark, quiet_arp=self.quiet_arp, parts=parts)

    def part(self, name: str) -> str:
        """Return one part alone."""
        return part(name, self.mark)


def ruleset(mark: int = DEFAULT_MARK, *, quiet_arp: bool = True, parts: Iterable[str] = PARTS) -> str:
    """Return the text of the static ruleset: `ipvsproxy.nft`, `quiet.nft` and some parts.

    `mark` is the bit of the packet mark for replies.
    """
    names = ["ipvsproxy", *(["quiet"] if quiet_arp else [])]
    return "".join(map(script, names)) + "".join(part(name, mark) for name in sorted(parts))


def part(name: str, mark: int = DEFAULT_MARK) -> str:
    """Return the text of one of the parts."""
    text = script(name)
    text = text.replace("redefine reply = 0x00004000", f"redefine reply = {mark:#010x}", 1)
    return text.replace("redefine others = 0xffffbfff", f"redefine others = {mark ^ 0xFFFFFFFF:#010x}", 1)


def script(name: str) -> str:
    """Return a script as it is in its file."""
    return files("nft").joinpath("rulesets", f"{name}.nft").read_text()
