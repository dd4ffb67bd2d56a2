"""A small library for one nft table: elements in transactions, through libnftables, in memory for tests.

It knows nothing of Kubernetes. `Transaction` collects changes as nft text, a `Client` carries them out
atomically, `NftError` says with an errno why it could not. The ruleset of the proxy lies beside it as
`ipvsproxy.nft` and is read with `ruleset()`.
"""

from importlib.resources import files

from nft.client import Client, Libnftables
from nft.errors import NftError
from nft.transaction import Table, Transaction


def ruleset() -> str:
    """Return the text of the static ruleset, `ipvsproxy.nft`."""
    return files("nft").joinpath("ipvsproxy.nft").read_text()


__all__ = ["Client", "Libnftables", "NftError", "Table", "Transaction", "ruleset"]
