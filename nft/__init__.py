"""A small library for one nft table: elements in transactions, through libnftables, in memory for tests.

It knows nothing of Kubernetes. `Transaction` collects changes as nft text, a `Client` carries them out
atomically, `NftError` says with an errno why it could not. The ruleset of the proxy lies beside it as
`ipvsproxy.nft` and `quiet.nft` and is read with `ruleset()`.
"""

from importlib.resources import files

from nft.client import Client, Libnftables, can_read_tables
from nft.errors import NftError
from nft.transaction import Table, Transaction

REPLY_MARK = 0x4000


def ruleset(mark: int = REPLY_MARK, *, quiet_arp: bool = True) -> str:
    """Return the text of the static ruleset, `ipvsproxy.nft` and `quiet.nft`.

    `mark` is the bit of the packet mark for replies.
    """
    folder = files("nft")
    text = folder.joinpath("ipvsproxy.nft").read_text()
    if quiet_arp:
        text += folder.joinpath("quiet.nft").read_text()
    text = text.replace("redefine reply = 0x00004000", f"redefine reply = {mark:#010x}", 1)
    return text.replace("redefine others = 0xffffbfff", f"redefine others = {mark ^ 0xFFFFFFFF:#010x}", 1)


__all__ = ["REPLY_MARK", "Client", "Libnftables", "NftError", "Table", "Transaction", "can_read_tables", "ruleset"]
