"""A small library for nftables tables: transactions of set elements, through libnftables, in memory for tests.

It knows nothing of what the tables are for. `Transaction` collects changes as nft text, a `Client` carries them
out atomically, `NftError` has the errno of a failure. README.md has an example. The rulesets of ipvsproxy are in
the folder `rulesets`, and nothing here knows them.
"""

from nft.client import Client, Libnftables, can_read_tables
from nft.errors import NftError
from nft.transaction import Table, Transaction

__all__ = ["Client", "Libnftables", "NftError", "Table", "Transaction", "can_read_tables"]
