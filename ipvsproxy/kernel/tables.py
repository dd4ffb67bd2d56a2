"""The nftables tables of ours, and where their sets are."""

from collections.abc import Mapping

from ipvsproxy.base import names
from ipvsproxy.ruleset.schema import SETS
from nft import Table, Transaction

TABLE = Table("inet", names.TABLE)
SET_TABLES = {kind.name: Table(kind.table, names.TABLE) for kind in SETS.values() if kind.table != TABLE.family}
"""Of the sets that are in other tables than most."""


def new_transaction() -> Transaction:
    """Return a transaction that knows where each set is."""
    return Transaction(TABLE, SET_TABLES)


def delete_tables(found: Mapping[str, str]) -> Transaction:
    """Begin a transaction with the end of all tables of our name; `found` are those there are, by family."""
    transaction = new_transaction()
    transaction.delete_table()
    others = sorted(found.keys() - {TABLE.family, *(table.family for table in SET_TABLES.values())})
    transaction.delete_tables(Table(family, TABLE.name) for family in others)
    return transaction
