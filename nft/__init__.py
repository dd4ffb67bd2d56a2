"""A small library for one nft table: elements in transactions, through libnftables, in memory for tests.

It knows nothing of Kubernetes. `Transaction` collects changes as nft text, a `Client` carries them out
atomically, `NftError` says with an errno why it could not. The ruleset of the proxy lies beside it as
`ipvsproxy.nft`, `quiet.nft` and the parts, and is read with `ruleset()` and `part()`.
"""

from collections.abc import Iterable
from importlib.resources import files

from nft.client import Client, Libnftables, can_read_tables
from nft.errors import NftError
from nft.transaction import Table, Transaction

REPLY_MARK = 0x4000
SOURCE_RANGES, INSIDE_VIEWS, REPLIES = PARTS = ("source_ranges", "inside_views", "replies")
"""Scripts that add chains to the table of `ipvsproxy.nft`, for nodes that need them."""


def ruleset(mark: int = REPLY_MARK, *, quiet_arp: bool = True, parts: Iterable[str] = PARTS) -> str:
    """Return the text of the static ruleset: `ipvsproxy.nft`, `quiet.nft` and some parts.

    `mark` is the bit of the packet mark for replies.
    """
    folder = files("nft")
    names = ["ipvsproxy", *(["quiet"] if quiet_arp else [])]
    text = "".join(folder.joinpath(f"{name}.nft").read_text() for name in names)
    return text + "".join(part(name, mark) for name in sorted(parts))


def part(name: str, mark: int = REPLY_MARK) -> str:
    """Return the text of one of the parts."""
    text = files("nft").joinpath(f"{name}.nft").read_text()
    text = text.replace("redefine reply = 0x00004000", f"redefine reply = {mark:#010x}", 1)
    return text.replace("redefine others = 0xffffbfff", f"redefine others = {mark ^ 0xFFFFFFFF:#010x}", 1)


__all__ = [
    "INSIDE_VIEWS", "PARTS", "REPLIES", "REPLY_MARK", "SOURCE_RANGES",
    "Client", "Libnftables", "NftError", "Table", "Transaction", "can_read_tables", "part", "ruleset",
]  # fmt: skip
