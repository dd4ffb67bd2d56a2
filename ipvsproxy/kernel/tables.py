"""The nftables tables of ours, and where their sets are."""

from collections.abc import Mapping

from ipvsproxy.base import names
from ipvsproxy.ruleset.schema import SETS
from nft import Table, Transaction

TABLE = Table("inet", names.TABLE)
ELSEWHERE = {kind.name: Table(kind.table, names.TABLE) for kind in SETS.values() if kind.table != TABLE.family}


def delete_tables(found: Mapping[str, str]) -> Transaction:
    """Begin a transaction with the end of all tables of our name; `found` are those there are, by family."""
    transaction = Transaction(TABLE, ELSEWHERE)
    transaction.delete_table()
    others = sorted(found.keys() - {TABLE.family, *(table.family for table in ELSEWHERE.values())})
    transaction.delete_tables(Table(family, TABLE.name) for family in others)
    return transaction
